"""What the commands share: arguments, loading a trained model, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def directory(text: str) -> Path | str:
    """A work directory as typed; `Path` would make `gs:/` of `gs://`."""
    return text if "://" in text else Path(text)


def local(text: str) -> Path:
    """A place on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"expected a place on this machine, got {text}: copy it first, as with "
            "`gcloud storage cp --recursive`"
        )
    return Path(text)


def add_workdir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=directory,
        default=default_workdir(),
        metavar="DIR",
        help="of the training run (also gs://BUCKET/FOLDER), or a converted checkpoint "
        "(default: $LAVIT_WORKDIR or workdir/quickstart)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """A work directory to use, and the devices to use it on."""
    add_workdir(parser)
    parser.add_argument(
        "--mesh",
        type=mesh,
        metavar="AXIS=N,...",
        help="devices the model is split over, such as tensor=4 or data=2,tensor=4 "
        "(axes: data, fsdp, sequence, tensor; default: one device)",
    )


def mesh(text: str) -> dict[str, int]:
    """Sizes of mesh axes."""
    found = dict(re.findall(r"(\w+)=(-?\d+)(?:,|$)", text))
    if ",".join(f"{axis}={size}" for axis, size in found.items()) != text:
        raise argparse.ArgumentTypeError(f"takes AXIS=N,... such as tensor=4, got {text!r}")
    return {axis: int(size) for axis, size in found.items()}


SELECT_HELP = (
    "which patches become tokens: greedy, threshold=0.5, sample or top=K, a budget of K for each "
    "picture; sample is what the published code does at inference (default: greedy)"
)
PRESETS = ("own", "published", "fid", "fid-appendix")
DECODERS = ("onepass", "lowres", "highres")
SOLVERS = ("ddim", "dpm++")
DECODER_FIELDS = (
    "decoder",
    "decoder_guidance",
    "decoder_steps",
    "decoder_size",
    "decoder_solver",
    "decoder_tile",
)


def add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--select", default="greedy", metavar="HOW", help=SELECT_HELP)


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help=f"same seed, same {what} (default: 0)"
    )


def add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="where settings that are not given come from (default: the model's own)",
    )


def add_decoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        help="what makes pixels of visual ids (default: the first the model has)",
    )
    parser.add_argument(
        "--decoder-guidance",
        type=number(float, 0),
        metavar="SCALE",
        help="guidance of a diffusion decoder (default: its own)",
    )
    parser.add_argument(
        "--decoder-steps",
        type=number(int, 1),
        metavar="N",
        help="steps of a diffusion decoder (default: its own)",
    )
    parser.add_argument(
        "--size",
        dest="decoder_size",
        type=size,
        metavar="HxW",
        help="height and width of a diffusion decoder's pictures, such as 768x1344 (default: the "
        "size it was trained at)",
    )
    parser.add_argument(
        "--solver",
        dest="decoder_solver",
        choices=SOLVERS,
        help="of a diffusion decoder; dpm++ needs about half the steps (default: its own)",
    )
    parser.add_argument(
        "--tiled",
        dest="decoder_tile",
        action="store_true",
        default=None,
        help="decode a diffusion decoder's latents tile by tile, for less memory",
    )


def add_sampling(parser: argparse.ArgumentParser, temperature: str) -> None:
    """How one token is chosen; what is not given is the preset's."""
    for flag, low, metavar, text in (
        ("--temperature", 0.0, "T", temperature),
        ("--top-p", 0.0, "P", "sample among the likeliest ids of this probability together"),
        ("--repetition-penalty", 0.0, "X", "divide scores of ids chosen before; 1 is none"),
    ):
        parser.add_argument(flag, type=number(float, low), metavar=metavar, help=text)
    parser.add_argument(
        "--top-k", type=number(int, 1), metavar="K", help="sample among the K likeliest ids"
    )


def add_text(parser: argparse.ArgumentParser) -> None:
    """How text is written; what is not given is the preset's."""
    parser.add_argument(
        "--beams", type=number(int, 1), metavar="N", help="of the beam search; 1 is greedy"
    )
    parser.add_argument(
        "--min-new", type=number(int, 0), metavar="N", help="tokens before the text may end"
    )
    parser.add_argument("--max-new", type=number(int, 1), metavar="N", help="the most tokens")
    parser.add_argument(
        "--length-penalty",
        type=number(float, float("-inf")),
        metavar="X",
        help="of the beam search: scores are divided by length to this power",
    )
    parser.add_argument(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        help="end the beam search once as many beams have ended as there are",
    )
    add_sampling(parser, "sample at this temperature instead of searching beams")


TEXT_FIELDS = (
    "beams",
    "min_new",
    "max_new",
    "length_penalty",
    "early_stopping",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
)


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named arguments that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, for other programs"
    )


def add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    parser.add_argument(
        "--out",
        type=local,
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
        if value is None or not low <= value < float("inf") or value == float("-inf"):
            what = "a whole number" if kind is int else "a number"
            least = "" if low == float("-inf") else f" of at least {low:g}"
            raise argparse.ArgumentTypeError(f"takes {what}{least}, got {text!r}")
        return value

    return parse


def size(text: str) -> tuple[int, int]:
    """An argument type: height and width."""
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text, re.ASCII)
    if sides is None:
        raise argparse.ArgumentTypeError(f"takes HxW such as 768x1344, got {text!r}")
    return int(sides[1]), int(sides[2])


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


def load_model(workdir: Path | str, mesh: Mapping[str, int] | None) -> Lavit:
    """The model of a work directory, or of a converted checkpoint, on a mesh or one device.

    Raises:
      UserError: there is none, or the devices cannot form the mesh.
    """
    if isinstance(workdir, Path) and not any(
        (workdir / name).is_file() for name in ("config.json", "model.json")
    ):
        raise UserError(
            f"{workdir} has no trained model: run `lavit quickstart` first, or name a training "
            "run's or a converted checkpoint's directory with --workdir"
        )
    import lavit_jax

    with working(f"loading {workdir}"):
        return lavit_jax.load(workdir, mesh)


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
