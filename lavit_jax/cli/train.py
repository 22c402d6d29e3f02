"""Train every phase of a config, from the newest checkpoint on.

Any field of the config can be changed with --config.FIELD=VALUE.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lavit_jax.cli.common import directory

EXAMPLES = """\
examples:
  lavit train --config configs/mini.py --workdir workdir/mini
  lavit train --config configs/twemoji.py:full --workdir workdir/full --config.seed=1
  lavit train --config configs/twemoji_pixels.py --workdir workdir/pixels \
      --config.start_from=workdir/quickstart
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="the experiment: a file with get_config(arg)",
    )
    stored = os.environ.get("LAVIT_WORKDIR")
    parser.add_argument(
        "--workdir",
        type=directory,
        required=not stored,
        default=stored,
        metavar="DIR",
        help="gets everything: data, checkpoints, metrics; gs://BUCKET/FOLDER keeps data on each "
        "machine (default: $LAVIT_WORKDIR)",
    )
    parser.set_defaults(overrides=[], resumes=True)


def run(args: argparse.Namespace) -> None:
    from lavit_jax.config import load_config

    config = load_config(args.config, args.overrides)
    from lavit_jax.parallel.peers import ending_together
    from lavit_jax.parallel.start import start
    from lavit_jax.training.goodput import process_start
    from lavit_jax.training.interruption import ending_well
    from lavit_jax.training.run import train

    start()
    with ending_well():
        with ending_together():
            train(config, args.workdir, process_start())
        if config.get("start_from") and isinstance(args.workdir, Path):
            from lavit_jax import pixel_report

            pixel_report.add(args.workdir)
    print(f"done: {args.workdir}", file=sys.stderr)
