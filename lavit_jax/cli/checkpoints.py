"""List, verify and prune the checkpoints of a run.

Nothing is taken away without --prune, which keeps what the run's config asks for, each phase's
last checkpoint among it, unless the --keep options say otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from lavit_jax.cli.common import add_json, number, print_json
from lavit_jax.errors import UserError

if TYPE_CHECKING:
    from lavit_jax.training.inventory import Entry, Inventory

EXAMPLES = """\
examples:
  lavit checkpoints workdir/full
  lavit checkpoints workdir/full --verify
  lavit checkpoints gs://BUCKET/run --prune --keep-newest 1 --keep-best loss --keep-every 5000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdir", metavar="DIR", help="work directory of the run; a folder or gs://"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file that has a checksum and compare; status 1 if one differs",
    )
    parser.add_argument(
        "--prune", action="store_true", help="take away the checkpoints that nothing keeps"
    )
    parser.add_argument(
        "--keep-newest", type=number(int, 0), metavar="N", help="keep so many of the last"
    )
    parser.add_argument(
        "--keep-best", metavar="METRIC", help="keep the best of each phase, such as loss"
    )
    parser.add_argument(
        "--keep-every", type=number(int, 1), metavar="STEPS", help="keep steps that this divides"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lavit_jax.training import inventory, storage

    chosen = (args.keep_newest, args.keep_best, args.keep_every)
    asked = any(value is not None for value in chosen)
    if asked and not args.prune:
        raise UserError("--keep-newest, --keep-best and --keep-every go with --prune")
    gone: tuple[Entry, ...] = ()
    with storage.reaching(args.workdir):
        place = storage.folder(args.workdir)
        found = inventory.take(place, verify=args.verify or args.prune)
        if args.prune:
            policy = found.policy
            if asked:
                kept = (args.keep_newest or 0, args.keep_every or 0, args.keep_best or "")
                policy = type(policy)(*kept)
            gone = inventory.superfluous(found, policy)
            inventory.remove(gone)
    left = dataclasses.replace(found, entries=tuple(e for e in found.entries if e not in gone))
    if args.json:
        print_json(
            {"checkpoints": [_plain(e) for e in left.entries], "pruned": [_plain(e) for e in gone]}
        )
    else:
        print(_table(left))
        for each in gone:
            print(f"took away {each.path}", file=sys.stderr)
    return int(bool(left.damaged))


def _plain(entry: Entry) -> dict[str, object]:
    return {**dataclasses.asdict(entry), "path": str(entry.path)}


def _table(found: Inventory) -> str:
    rows = [("step", "phase", "size", "written (UTC)", "complete", "checksums")]
    rows += [
        (
            entry.name,
            entry.phase,
            f"{entry.bytes / 1e6:,.1f} MB",
            entry.time.removesuffix("+00:00").replace("T", " "),
            "yes" if entry.complete else "no",
            entry.checksums,
        )
        for entry in found.entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )
