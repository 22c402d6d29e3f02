"""Train everything on drawings, measure it, write a report.

Stopped at any time, it goes on where it was when it is run again. Any field of the config can be
changed with --config.FIELD=VALUE.
"""

from __future__ import annotations

import argparse
import json

from lavit_jax.cli.common import add_json, add_workdir, print_json

DEFAULT_CONFIG = "configs/twemoji.py"

EXAMPLES = """\
examples:
  lavit quickstart
  lavit quickstart --workdir workdir/full --config configs/twemoji.py:full
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument(
        "--config",
        default=DEFAULT_CONFIG,
        metavar="FILE.py[:ARG]",
        help=f"the experiment (default: {DEFAULT_CONFIG})",
    )
    add_json(parser)
    parser.set_defaults(overrides=[], resumes=True)


def run(args: argparse.Namespace) -> None:
    from lavit_jax import quickstart
    from lavit_jax.training.interruption import ending_well

    with ending_well():
        report = quickstart.run(args.workdir, args.config, args.overrides)
    if args.json:
        metrics = json.loads(report.with_name("metrics.json").read_text())
        print_json({"report": str(report), "metrics": metrics})
        return
    print(report)
