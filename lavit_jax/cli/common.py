"""What the commands share: arguments, loading a trained model, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lavit_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from lavit_jax.inference.api import Lavit


class Command(Protocol):
    """A module with one subcommand, named after it; its docstring is the help."""

    __name__: str
    __doc__: str | None
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int | None: ...


def default_workdir() -> Path:
    """Where the quickstart leaves its model, unless LAVIT_WORKDIR says otherwise."""
    return Path(os.environ.get("LAVIT_WORKDIR") or "workdir/quickstart")


def add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=Path,
        default=default_workdir(),
        metavar="DIR",
        help="of the training run, or a converted checkpoint "
        "(default: $LAVIT_WORKDIR or workdir/quickstart)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, for other programs"
    )


def add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help=f"where {what} are written (default: {default})",
    )


def number(kind: Callable[[str], Any], low: float) -> Callable[[str], Any]:
    """An argument type: a number of at least `low`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"takes {what} of at least {low:g}, got {text!r}")
        return value

    return parse


def nonblank(text: str, what: str) -> str:
    """The text without the space around it.

    Raises:
      UserError: nothing is left.
    """
    text = text.strip()
    if not text:
        raise UserError(f"the {what} is empty")
    return text


def load_images(paths: Sequence[str]) -> list[np.ndarray]:
    """The pictures, uint8 [H, W, 3] each.

    Raises:
      UserError: a file is missing or not a picture.
    """
    from lavit_jax.data.images import load_image

    return [load_image(path) for path in paths]


def load_model(workdir: Path) -> Lavit:
    """The model of a work directory, or of a converted checkpoint.

    Raises:
      UserError: there is none.
    """
    if not any((workdir / name).is_file() for name in ("config.json", "model.json")):
        raise UserError(
            f"{workdir} has no trained model: run `lavit quickstart` first, or name a training "
            "run's or a converted checkpoint's directory with --workdir"
        )
    import lavit_jax

    with working(f"loading {workdir}"):
        return lavit_jax.load(workdir)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Shows that something is going on, to people only."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def print_json(document: Any) -> None:
    """The one document of `--json`; what is not finite becomes null."""
    print(json.dumps(_finite(document), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def make_directory(path: Path) -> Path:
    """Makes a directory for output.

    Raises:
      UserError: that is impossible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}") from error
    return path


def slug(text: str, limit: int = 60) -> str:
    """A file name that says what the text says."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:limit].rstrip("-") or "picture"


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with numbers after those that occurred before."""
    seen: set[str] = set()
    found = []
    for name in names:
        fresh, count = name, 1
        while fresh in seen:
            count += 1
            fresh = f"{name}-{count}"
        seen.add(fresh)
        found.append(fresh)
    return found
