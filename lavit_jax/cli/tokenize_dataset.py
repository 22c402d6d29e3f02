"""Turn a whole prepared data set into visual ids, for stage two.

Stopped at any time, it goes on where it was when it is run again.
"""

from __future__ import annotations

import argparse

from lavit_jax import console
from lavit_jax.cli.common import add_json, directory, print_json

EXAMPLES = """\
examples:
  lavit tokenize-dataset data/laion data/laion-ids --checkpoint workdir/stage-one
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="of `lavit data prepare`; a folder or gs://")
    parser.add_argument("destination", metavar="DST", help="gets the ids; a folder or gs://")
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=directory,
        metavar="DIR",
        help="work directory of the run with the tokenizer, or a folder of `lavit convert`; also "
        "gs://BUCKET/FOLDER",
    )
    parser.add_argument(
        "--max-kept",
        type=int,
        metavar="N",
        help="most patches kept of an image (default: the checkpoint's); has to be that of the "
        "training that reads the ids, model.selector.max_kept",
    )
    parser.add_argument(
        "--attention",
        choices=("published", "clean"),
        help="form of the merger's attention (default: the checkpoint's; converted ones have the "
        "published one); has to be that training's model.merger.attention",
    )
    add_json(parser)
    parser.set_defaults(resumes=True)


def run(args: argparse.Namespace) -> None:
    from lavit_jax.parallel.peers import ending_together
    from lavit_jax.parallel.start import start
    from lavit_jax.training.tokenize_dataset import tokenize_dataset

    start()
    with ending_together():
        index = tokenize_dataset(
            args.source,
            args.destination,
            args.checkpoint,
            console.say,
            max_kept=args.max_kept,
            attention=args.attention,
        )
    if args.json:
        print_json({"ids": args.destination, **index})
        return
    print(f"{args.destination}: {index['examples']} examples, {index['bytes'] / 1e6:.1f} MB")
