"""Turn pictures into visual ids and show which patches are kept.

Writes STEM.kept.png for each picture: kept patches as they are, dropped ones washed out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lavit_jax.cli.common import (
    add_json,
    add_model,
    add_out,
    add_seed,
    add_select,
    distinct,
    load_images,
    load_model,
    make_directory,
    print_json,
    working,
)

EXAMPLES = """\
examples:
  lavit tokenize cat.png dog.jpg --out overlays
  lavit tokenize cat.png --select top=32 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMG", help="a picture, of any common format")
    add_select(parser)
    add_seed(parser, "sampled patches")
    add_model(parser)
    add_out(parser, ".", "the overlays")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    images = load_images(args.images)
    out = make_directory(args.out)
    model = load_model(args.workdir, args.mesh)
    with working("tokenizing"):
        found = model.tokenize(images, select=args.select, seed=args.seed)

    from lavit_jax.report import figures

    stems = distinct([Path(path).stem for path in args.images])
    results = []
    for path, stem, image, tokens in zip(args.images, stems, images, found, strict=True):
        overlay = out / f"{stem}.kept.png"
        figures.save_png(overlay, figures.kept_overlay(image, tokens.keep))
        results.append(
            {
                "image": path,
                "ids": [int(code) for code in tokens.ids],
                "kept": int(tokens.kept),
                "keep": [int(keep) for keep in tokens.keep],
                "overlay": str(overlay),
            }
        )
    if args.json:
        print_json({"images": results})
        return
    for result in results:
        print(f"{result['image']}: kept {result['kept']} of {len(result['keep'])} patches")
        print("  ids", *result["ids"])
        print(f"  overlay {result['overlay']}")
