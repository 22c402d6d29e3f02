"""Say what a config needs on TPU pods, without a TPU.

Compiles the real steps for the real topology with libtpu (`pip install "lavit_jax[plan]"`) and
prints memory, work, traffic and time for each chip. Any field of the config can be changed with
--config.FIELD=VALUE.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from lavit_jax import console, disk
from lavit_jax.cli.common import local, number
from lavit_jax.parallel import xla_flags

EXAMPLES = """\
examples:
  lavit plan --config configs/unified_7b.py --topology v5p-128
  lavit plan --config configs/unified_7b.py:v5e-256 --topology v5e-256 --phase decode
  lavit plan --config configs/tokenizer_vitg.py --topology v5p-128 --topology v4-128
  lavit plan --config configs/unified_7b.py --topology v5p-128 --search
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="the experiment: a file with get_config(arg)",
    )
    parser.add_argument(
        "--topology",
        required=True,
        action="append",
        metavar="NAME",
        help="a product name (v5p-128, v5e-256, ...) or a shape (v5p:4x4x4); repeatable",
    )
    parser.add_argument(
        "--slices", type=number(int, 1), default=1, metavar="N", help="slices of it (default: 1)"
    )
    parser.add_argument(
        "--phase",
        action="append",
        metavar="NAME",
        help="a phase of the schedule, prefill or decode; repeatable (default: all of them)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try remat policies, rows per chip and mesh shapes of phases, and rank them; an "
        "hour or two at 7B",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile with less effort, in half the CPU time; step times come out some percent too "
        "low (--search does so always)",
    )
    parser.add_argument("--json", type=local, metavar="FILE", help="write everything there as JSON")
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> None:
    # Nothing runs here: the CPU backend starts quickest, and libtpu must not look for a TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # `compiled.cost` wants programs that the compiler has just written down.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    xla_flags.use()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from rich.console import Console

    from lavit_jax.config import load_config
    from lavit_jax.errors import UserError
    from lavit_jax.parallel import compiled, topology
    from lavit_jax.planning import advice, jobs, plan, search, table

    config = load_config(args.config, args.overrides)
    wanted = args.phase or list(jobs.names(config))
    places = [topology.parse(name, args.slices) for name in args.topology]
    screen, found, failed = Console(highlight=False), [], []
    for place in places:
        devices = place.devices()
        for name in wanted:
            if args.search and name not in jobs.PARTS:
                fitting = search.Search(config, name, place, devices, console.say).run()
                screen.print(f"{name} on {place.title}, best first")
                screen.print(table.ranking(fitting))
                found += fitting
                continue
            try:
                job = jobs.make_job(config, name, place, devices)
                made = plan.plan(job, place, quick=args.quick)
            except compiled.OutOfMemory as error:  # the others may fit
                failed.append(UserError(f"{name} on {place.title}: {error}"))
                continue
            screen.print(table.table(made))
            found.append(made)
    if args.json:
        _write(args.json, [plan.to_json(made) for made in found])
    screen.print(table.CONVENTION, style="dim")
    advice.check_fits(found)
    if failed:
        raise failed[0]


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, json.dumps(document, indent=1) + "\n")
