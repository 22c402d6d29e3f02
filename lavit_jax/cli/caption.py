"""Say what is in pictures."""

from __future__ import annotations

import argparse
from typing import Any

from lavit_jax.cli.common import (
    TEXT_FIELDS,
    add_json,
    add_model,
    add_preset,
    add_seed,
    add_select,
    add_text,
    given,
    load_images,
    load_model,
    number,
    print_json,
    working,
)

EXAMPLES = """\
examples:
  lavit caption cat.png dog.jpg
  lavit caption cat.png --prompt "a cat with" --json
  lavit caption cat.png --beams 5 --n-best 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMG", help="a picture, of any common format")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="how the caption begins (default: anyhow)"
    )
    parser.add_argument(
        "--n-best",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="captions of each picture, at most as many as beams (default: 1)",
    )
    add_select(parser)
    add_preset(parser)
    add_text(parser)
    add_seed(parser, "samples")
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    images = load_images(args.images)
    model = load_model(args.workdir, args.mesh)
    prompt = args.prompt.strip()
    with working("captioning"):
        said = model.complete(
            [[image, prompt] for image in images],
            n_best=args.n_best,
            select=args.select,
            seed=args.seed,
            preset=args.preset,
            **given(args, TEXT_FIELDS),
        )
    if args.json:
        print_json({"captions": [_entry(*pair, args) for pair in zip(args.images, said)]})
        return
    for path, texts in zip(args.images, said, strict=True):
        for number_, (text, score) in enumerate(texts):
            line = text if args.n_best == 1 else f"{number_ + 1} ({score:.2f}) {text}"
            print(line if len(said) == 1 else f"{path}: {line}")


def _entry(path: str, texts: Any, args: argparse.Namespace) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": path, "caption": texts[0].text}
    if args.n_best > 1:
        entry["n_best"] = [{"caption": text, "score": score} for text, score in texts]
    return entry
