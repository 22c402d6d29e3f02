"""Say how likely texts are given a picture, and it given them.

Log-likelihoods in nats, of all tokens and of each: closer to 0 is likelier.
"""

from __future__ import annotations

import argparse

from lavit_jax.cli.common import (
    add_json,
    add_model,
    add_seed,
    add_select,
    load_images,
    load_model,
    nonblank,
    print_json,
    working,
)

EXAMPLES = """\
examples:
  lavit score hand.png "waving hand"
  lavit score hand.png "waving hand" "red apple" --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMG", help="a picture, of any common format")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="what may be in the picture")
    add_select(parser)
    add_seed(parser, "sampled patches")
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    texts = [nonblank(text, "text") for text in args.texts]
    images = load_images([args.image])
    model = load_model(args.workdir, args.mesh)
    with working("scoring"):
        scores = model.score(images, texts, select=args.select, seed=args.seed)
    if args.json:
        found = [
            {
                "text": text,
                "text_given_image": score.text_given_image,
                "image_given_text": score.image_given_text,
                "text_tokens": score.text_tokens,
                "image_tokens": score.image_tokens,
            }
            for text, score in zip(texts, scores, strict=True)
        ]
        print_json({"image": args.image, "scores": found})
        return
    for text, score in zip(texts, scores, strict=True):
        for what, total, tokens in (
            ("p(text|image)", score.text_given_image, score.text_tokens),
            ("p(image|text)", score.image_given_text, score.image_tokens),
        ):
            each = total / tokens
            print(f"{text}: log {what} {total:.2f}, {each:.3f} for each of {tokens} tokens")
