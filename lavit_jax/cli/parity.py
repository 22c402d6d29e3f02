"""Compare with a checkpoint's published outputs, array by array.

Reads a folder in the published layout with a `reference_io.npz`; exits with 1 if any array
differs or cannot be computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lavit_jax.cli.common import add_json, local, print_json, working

if TYPE_CHECKING:
    from lavit_jax.convert.parity import Row

EXIT_DIFFERS = 1
CHECKED, NOT_CHECKED = "checked", "not checked"

EXAMPLES = """\
examples:
  lavit parity checkpoints/lavit-mini
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=local, metavar="DIR", help="the checkpoint's folder")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lavit_jax.convert import parity

    with working("comparing"):
        rows = parity.run(args.directory)
    # Inputs alone prove nothing.
    ok = all(row.ok for row in rows) and any(row.status == CHECKED for row in rows)
    if args.json:
        print_json(
            {
                "ok": ok,
                "arrays": [
                    {
                        "name": row.name,
                        "shape": list(row.shape),
                        "max_abs_diff": row.max_abs_diff,
                        "tolerance": row.tolerance,
                        "ok": bool(row.ok),
                        "status": row.status,
                    }
                    for row in rows
                ],
            }
        )
    else:
        _print_table(rows)
    return 0 if ok else EXIT_DIFFERS


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    checked = [row for row in rows if row.status == CHECKED]
    table = Table(box=None, pad_edge=False)
    table.add_column("array", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("max abs diff", justify="right")
    table.add_column("")
    for row in checked:
        mark = "[green]ok[/]" if row.ok else "[bold red]DIFFERS[/]"
        table.add_row(row.name, "x".join(map(str, row.shape)), f"{row.max_abs_diff:.1e}", mark)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{sum(row.ok for row in checked)} of {len(checked)} arrays agree")
    others = [row.name for row in rows if row.status == NOT_CHECKED]
    if others:
        console.print(f"not compared: {', '.join(others)}")
