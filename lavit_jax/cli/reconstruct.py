"""Draw pictures again from nothing but their visual ids.

Writes STEM.again.png for each picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lavit_jax.cli.common import (
    DECODER_FIELDS,
    add_decoder,
    add_json,
    add_model,
    add_out,
    add_seed,
    add_select,
    distinct,
    given,
    load_images,
    load_model,
    make_directory,
    print_json,
    working,
)

EXAMPLES = """\
examples:
  lavit reconstruct cat.png dog.jpg --out again
  lavit reconstruct cat.png --select top=32
  lavit reconstruct cat.png --decoder highres --size 768x1344 --solver dpm++ --decoder-steps 15
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMG", help="a picture, of any common format")
    add_decoder(parser)
    add_select(parser)
    add_seed(parser, "pictures")
    add_model(parser)
    add_out(parser, ".", "the pictures")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    images = load_images(args.images)
    out = make_directory(args.out)
    model = load_model(args.workdir, args.mesh)
    with working("reconstructing"):
        pictures = model.reconstruct(
            images, select=args.select, seed=args.seed, **given(args, DECODER_FIELDS)
        )

    from lavit_jax.report import figures

    stems = distinct([Path(path).stem for path in args.images])
    results = []
    for path, stem, picture in zip(args.images, stems, pictures, strict=True):
        again = out / f"{stem}.again.png"
        figures.save_png(again, picture)
        results.append({"image": path, "reconstruction": str(again)})
    if args.json:
        print_json({"images": results})
        return
    for result in results:
        print(result["reconstruction"])
