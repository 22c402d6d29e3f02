"""Draw pictures from words, or from words and pictures.

Writes each picture and, of several, a contact sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lavit_jax.cli.common import (
    DECODER_FIELDS,
    add_decoder,
    add_json,
    add_model,
    add_out,
    add_preset,
    add_sampling,
    add_seed,
    add_select,
    distinct,
    given,
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
  lavit draw "a green apple" --image red-apple.png --best-of 4
  lavit draw "a red apple" --decoder highres --size 768x1344
"""

FIELDS = (
    "guidance",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "min_ids",
    "max_ids",
    "best_of",
    *DECODER_FIELDS,
)


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
        metavar="SCALE",
        help="how closely to follow the prompt; 1 is no guidance (default: 4, with pictures 5)",
    )
    add_sampling(parser, "of sampling; 0 is greedy (default: 1)")
    parser.add_argument(
        "--min-ids", type=number(int, 0), metavar="N", help="visual ids of a drawing at least"
    )
    parser.add_argument(
        "--max-ids", type=number(int, 1), metavar="N", help="visual ids of a drawing at most"
    )
    parser.add_argument(
        "--best-of",
        type=number(int, 1),
        metavar="N",
        help="draw N for each picture and keep the one its words are likeliest for",
    )
    add_select(parser)
    add_preset(parser)
    add_decoder(parser)
    add_seed(parser, "pictures")
    add_model(parser)
    add_out(parser, "drawings", "the pictures")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    prompts = [nonblank(prompt, "prompt") for prompt in args.prompts]
    images = load_images(args.images) if args.images else None
    out = make_directory(args.out)
    model = load_model(args.workdir, args.mesh)
    with working("drawing"):
        drawn = model.draw(
            prompts,
            images=images,
            n=args.n,
            select=args.select,
            seed=args.seed,
            preset=args.preset,
            **given(args, FIELDS),
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
        print_json({"seed": args.seed, "settings": given(args, FIELDS), "drawings": results})
        return
    for result in results:
        print(*result["images"], *([result["sheet"]] if "sheet" in result else []), sep="\n")
