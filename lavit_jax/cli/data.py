"""Prepare, inspect and time data sets for training."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lavit_jax import console
from lavit_jax.cli.common import add_json, local, number, print_json
from lavit_jax.errors import UserError

if TYPE_CHECKING:
    from lavit_jax.data.needs import Target

EXAMPLES = """\
examples:
  lavit data prepare 'shards/{00000..00099}.tar' data/laion
  lavit data prepare coco_captions data/coco --split train
  lavit data prepare gs://bucket/parquet gs://bucket/prepared --runner dataflow \\
      --beam=--project=mine --beam=--temp_location=gs://bucket/tmp
  lavit data inspect data/laion
  lavit data inspect gs://bucket/prepared --shards 2
  lavit data bench data/laion --config configs/unified_7b.py:v5p-128 --topology v5p-128
"""

SOURCE_HELP = (
    "webdataset tars, parquet, array_record, JSON lines (with an image folder) or plain text: a "
    "file, folder, glob or {00..99} range, local or gs://; or a TFDS data set by name or "
    "package.module:Builder"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    kept = argparse.RawDescriptionHelpFormatter
    for name, add, run, text in (
        ("prepare", _add_prepare, _prepare, "turn any source into array_record shards"),
        ("inspect", _add_inspect, _inspect, "show what a prepared data set has"),
        ("bench", _add_bench, _bench, "time every step from shard to device"),
    ):
        action = actions.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=kept
        )
        add(action)
        action.set_defaults(action=run)


def run(args: argparse.Namespace) -> None:
    args.action(args)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help=SOURCE_HELP)
    parser.add_argument("destination", metavar="DST", help="a folder, local or gs://")
    parser.add_argument("--split", default="train", help="of a TFDS data set (default: train)")
    parser.add_argument("--data-dir", default="", metavar="DIR", help="of a TFDS data set")
    parser.add_argument("--image-field", default="", metavar="NAME", help="default: found by name")
    parser.add_argument("--caption-field", default="", metavar="NAME", help="likewise")
    parser.add_argument(
        "--shard-mb",
        type=number(float, 0.001),
        default=256,
        metavar="MB",
        help="size of a shard, about (default: 256)",
    )
    parser.add_argument(
        "--runner",
        choices=("local", "direct", "dataflow", "flink", "spark"),
        default="local",
        help="what does the work: processes of this machine, or a runner of Apache Beam "
        "(default: local)",
    )
    parser.add_argument(
        "--beam",
        action="append",
        default=[],
        metavar="--OPTION=VALUE",
        help="of the Beam pipeline, with any --runner but local; may be repeated",
    )
    parser.add_argument(
        "--workers",
        type=number(int, 1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes of --runner local (default: one for each core)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=number(float, 0),
        default=0.01,
        metavar="SHARE",
        help="stop past this share of broken examples (default: 0.01)",
    )
    add_json(parser)
    parser.set_defaults(resumes=True)


def _prepare(args: argparse.Namespace) -> None:
    from lavit_jax.data.prepare import run, tasks
    from lavit_jax.data.sources import Options

    options = Options(args.split, args.data_dir, args.image_field, args.caption_field)
    job = tasks.Job(args.source, args.destination, options, int(args.shard_mb * 1e6))
    if args.runner == "local":
        if args.beam:
            raise UserError(f"--beam={args.beam[0]} goes with --runner direct, dataflow, ...")
        runner = run.local_runner(args.workers)
    else:
        from lavit_jax.data.prepare.beam import beam_runner

        runner = beam_runner(args.runner, args.beam)
    index = run.prepare(job, runner, args.max_bad_share, console.say)
    if args.json:
        print_json({"data": args.destination, **index})
        return
    print(
        f"{args.destination}: {index['examples']} examples ({index['images']} with an image) in "
        f"{len(index['shards'])} shards, {index['bytes'] / 1e6:.1f} MB"
    )
    for reason, count in sorted(index["rejected"].items(), key=lambda item: -item[1]):
        print(f"  left out: {count} {reason}")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DST",
        help="a prepared data set; also in a bucket, of which shards are fetched",
    )
    parser.add_argument(
        "--most",
        type=number(int, 1),
        default=10_000,
        metavar="N",
        help="examples looked at, evenly spread (default: 10000)",
    )
    parser.add_argument(
        "--shards",
        type=number(int, 1),
        metavar="N",
        help="of which they are at most, evenly spread (default: all, in a bucket 8)",
    )
    parser.add_argument(
        "--sheet",
        type=local,
        metavar="PNG",
        help="where the contact sheet is written (default: DST/contact_sheet.png, of a bucket "
        "./contact_sheet.png)",
    )
    add_json(parser)


def _inspect(args: argparse.Namespace) -> None:
    from lavit_jax.data import copies
    from lavit_jax.report import survey

    folder = Path() if copies.is_remote(args.data) else Path(args.data)
    sheet = args.sheet or folder / "contact_sheet.png"
    found = survey.survey(args.data, args.most, args.shards, sheet, console.say)
    if args.json:
        print_json(found)
        return
    print(survey.describe(found))


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DST", help="a prepared data set with images; also in a bucket"
    )
    parser.add_argument(
        "--config",
        default="configs/twemoji.py",
        metavar="FILE.py[:ARG]",
        help="whose image size, rows and batches are meant (default: configs/twemoji.py)",
    )
    parser.add_argument(
        "--seconds",
        type=number(float, 0.1),
        default=5.0,
        metavar="S",
        help="for each step (default: 5)",
    )
    parser.add_argument(
        "--topology",
        default="",
        metavar="NAME",
        help="that trains (v5p-128, v5e:4x8, ...); says what each of its hosts must deliver",
    )
    parser.add_argument(
        "--slices", type=number(int, 1), default=1, metavar="N", help="slices of it (default: 1)"
    )
    parser.add_argument(
        "--hosts", type=number(int, 1), metavar="N", help="instead of --topology (default: 1)"
    )
    parser.add_argument(
        "--plan",
        type=local,
        metavar="FILE",
        help="of `lavit plan --json FILE`: takes topology and steps' durations from there",
    )
    parser.add_argument(
        "--step-seconds",
        type=number(float, 1e-6),
        metavar="S",
        help="of a training step, instead of --plan",
    )
    parser.set_defaults(overrides=[])
    add_json(parser)


def _bench(args: argparse.Namespace) -> None:
    from lavit_jax.config import load_config
    from lavit_jax.data import needs, rates

    config = load_config(args.config, args.overrides)
    target, seconds = _target(args, config.schedule)
    found = rates.measure(config, args.data, args.seconds)
    asked = needs.needs(config, target, seconds, found["images_per_second_per_core"])
    if args.json:
        print_json({**found, "target": dataclasses.asdict(target), "needs": asked})
        return
    print("\n".join([rates.describe(found), *needs.describe(target, asked)]))


def _target(args: argparse.Namespace, phases: Sequence[str]) -> tuple[Target, dict[str, float]]:
    """Where training will be, and what is known of its steps' seconds by phase."""
    from lavit_jax.data.needs import Target
    from lavit_jax.parallel import topology
    from lavit_jax.planning import stored

    for one, other in (("hosts", "topology"), ("hosts", "plan"), ("step_seconds", "plan")):
        if getattr(args, one) and getattr(args, other):
            raise UserError(f"give --{one.replace('_', '-')} or --{other}, not both")
    place = topology.parse(args.topology, args.slices) if args.topology else None
    seconds = dict.fromkeys(phases, args.step_seconds) if args.step_seconds else {}
    if args.plan:
        place, seconds = stored.step_seconds(args.plan, place, phases)
    if place is None:
        return Target("", args.hosts or 1, 0), seconds
    return Target(place.title, place.hosts, place.host_cores), seconds
