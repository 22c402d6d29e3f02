"""Say which loss or gradient of a broken step is not finite.

A run that gives up on broken steps stores the last one's batch in WORKDIR/bad_batches.
"""

from __future__ import annotations

import argparse
import dataclasses

from lavit_jax.cli.common import add_json, print_json

EXAMPLES = """\
examples:
  lavit replay workdir/full/bad_batches/0001234.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="a batch, in the work directory of its run (gs:// too)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    import jax

    from lavit_jax.training import replay

    jax.config.update("jax_threefry_partitionable", True)
    finding = replay.replay(args.file)
    if args.json:
        print_json(dataclasses.asdict(finding))
        return
    print(replay.describe(finding))
