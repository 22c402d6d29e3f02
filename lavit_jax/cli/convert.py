"""Convert a published PyTorch checkpoint, and back.

SRC is a folder in the published layout, or a plain EVA-CLIP or Llama (a folder or a file); DST is
made, and is complete or absent. With --reverse, SRC is a folder this command made, and
modules that a run has trained since may take the place of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lavit_jax.cli.common import add_json, local, number, print_json, working
from lavit_jax.errors import UserError

if TYPE_CHECKING:
    from lavit_jax.convert.convert import Report

EXAMPLES = """\
examples:
  lavit convert LaVIT-7B-v2 converted --dtype bfloat16
  lavit convert LaVIT-7B-v2 converted --part visual_tokenizer
  lavit convert Llama-2-7b-hf converted --codes 16384
  lavit convert converted LaVIT-back --reverse
  lavit convert converted LaVIT-tuned --reverse --weights WORKDIR
"""

# Written out, so that --help needs neither numpy nor jax.
PARTS = (
    "all",
    "visual_tokenizer",
    "language_model",
    "pixel_decoding",
    "highres_pixel_decoding",
)
LLM_DIRS = ("language_model", "language_model_sft")
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", type=local, metavar="SRC", help="the checkpoint")
    parser.add_argument("dst", type=local, metavar="DST", help="the folder to be made")
    parser.add_argument(
        "--part", choices=PARTS, default="all", help="what to convert (default: all there is)"
    )
    parser.add_argument(
        "--llm-dir",
        choices=LLM_DIRS,
        help="the language model's folder in SRC (default: language_model)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the parameters (default: float32; with --reverse each tensor's own)",
    )
    parser.add_argument(
        "--heads",
        type=number(int, 1),
        metavar="H",
        help="attention heads of the vision modules, which no tensor tells "
        "(default: as reference_config.json says, else heads of 88)",
    )
    parser.add_argument(
        "--codes",
        type=number(int, 2),
        metavar="K",
        help="visual codes, where no file tells their number (a plain Llama)",
    )
    parser.add_argument(
        "--reverse", action="store_true", help="write a converted checkpoint back as it was"
    )
    parser.add_argument(
        "--weights",
        metavar="WORKDIR",
        help="with --reverse: write this run's modules instead of the same ones of SRC",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    if args.reverse:
        _refuse_unused(args)
        from lavit_jax.convert.reverse import reverse

        with working(f"writing {args.dst}"):
            report = reverse(args.src, args.dst, args.part, dtype=args.dtype, weights=args.weights)
    else:
        if args.weights is not None:
            raise UserError(f"--weights {args.weights} without --reverse: it is written back only")
        from lavit_jax.convert.convert import convert

        with working(f"converting {args.src}"):
            report = convert(
                args.src,
                args.dst,
                args.part,
                llm_dir=args.llm_dir,
                dtype=args.dtype or "float32",
                heads=args.heads,
                codes=args.codes,
            )
    if args.json:
        rows = [component._asdict() for component in report.components]
        print_json({"out": str(args.dst), **report._asdict(), "components": rows})
    else:
        _print(report, args.dst)


def _refuse_unused(args: argparse.Namespace) -> None:
    for flag in ("llm_dir", "heads", "codes"):
        value = getattr(args, flag)
        if value is not None:
            name = f"--{flag.replace('_', '-')}"
            raise UserError(f"{name} {value} with --reverse: model.json tells it, leave it out")


def _print(report: Report, dst: Path) -> None:
    for row in report.components:
        print(f"{row.name:26} {row.tensors:5} tensors {row.parameters:14,} numbers  {row.path}")
    if report.created:
        print(f"created: {report.created} rows of the vocabulary, as the text's are spread")
    for what, names in (
        ("no parameter of ours, kept for --reverse", report.left),
        ("not in this release", report.absent),
        ("kept as it is", report.carried),
        ("weights no part reads, not kept", report.unread),
        ("trained since", report.replaced),
    ):
        for name in names:
            print(f"{what}: {name}")
    print(f"wrote {dst}")
