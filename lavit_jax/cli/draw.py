"""Draw pictures from words, or from words and pictures.

Writes each picture and, of several, a contact sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lavit_jax.cli.common import (
    add_json,
    add_out,
    add_workdir,
    distinct,
    load_images,
    load_model,
    make_directory,
    nonblank,
    number,
    print_json,
    slug,
    working,
)

EXAMPLES = """\
examples:
  lavit draw "waving hand dark skin tone"
  lavit draw "red apple" "green apple" --n 9 --guidance 6 --seed 1 --out apples
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw")
    parser.add_argument(
        "--image",
        dest="images",
        action="append",
        metavar="IMG",
        help="a picture that goes before the words; may be repeated",
    )
    parser.add_argument(
        "--n", type=number(int, 1), default=4, help="pictures of each prompt (default: 4)"
    )
    parser.add_argument(
        "--guidance",
        type=number(float, 0),
        default=4.0,
        metavar="SCALE",
        help="how closely to follow the prompt; 1 is no guidance (default: 4)",
    )
    parser.add_argument(
        "--temperature",
        type=number(float, 0),
        metavar="T",
        help="of sampling; 0 is greedy (default: the model's)",
    )
    parser.add_argument(
        "--top-k",
        type=number(int, 1),
        metavar="K",
        help="sample among the K likeliest ids (default: the model's)",
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="same seed, same pictures (default: 0)"
    )
    add_workdir(parser)
    add_out(parser, "drawings", "the pictures")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    prompts = [nonblank(prompt, "prompt") for prompt in args.prompts]
    images = load_images(args.images) if args.images else None
    out = make_directory(args.out)
    model = load_model(args.workdir)
    chosen = {
        name: getattr(args, name)
        for name in ("temperature", "top_k")
        if getattr(args, name) is not None
    }
    with working("drawing"):
        drawn = model.draw(
            prompts, images=images, n=args.n, guidance=args.guidance, seed=args.seed, **chosen
        )

    from lavit_jax.report import figures

    results: list[dict[str, Any]] = []
    stems = distinct([slug(prompt) for prompt in prompts])
    for prompt, stem, pictures in zip(prompts, stems, drawn, strict=True):
        paths = [out / f"{stem}-{number + 1}.png" for number in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            figures.save_png(path, picture)
        result: dict[str, Any] = {"prompt": prompt, "images": [str(path) for path in paths]}
        if len(paths) > 1:
            result["sheet"] = str(out / f"{stem}-sheet.png")
            figures.save_png(Path(result["sheet"]), figures.contact_sheet(list(pictures)))
        results.append(result)
    if args.json:
        print_json({"seed": args.seed, "guidance": args.guidance, "drawings": results})
        return
    for result in results:
        print(*result["images"], *([result["sheet"]] if "sheet" in result else []), sep="\n")
