"""Say what is in pictures."""

from __future__ import annotations

import argparse

from lavit_jax.cli.common import (
    add_json,
    add_workdir,
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
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMG", help="a picture, of any common format")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="how the caption begins (default: anyhow)"
    )
    parser.add_argument(
        "--beams",
        type=number(int, 1),
        default=2,
        metavar="N",
        help="of the beam search; 1 is greedy (default: 2)",
    )
    add_workdir(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    images = load_images(args.images)
    model = load_model(args.workdir)
    with working("captioning"):
        captions = model.caption(images, prompt=args.prompt.strip(), beams=args.beams)
    if args.json:
        pairs = zip(args.images, captions, strict=True)
        print_json({"captions": [{"image": path, "caption": text} for path, text in pairs]})
        return
    for path, text in zip(args.images, captions, strict=True):
        print(text if len(captions) == 1 else f"{path}: {text}")
