"""The unified phase's examples where `config.data.sources` names several sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from lavit_jax.data import prepared, streams
from lavit_jax.data.layout import Example
from lavit_jax.data.mixture import KINDS, ExampleMaker, check_room, check_shares
from lavit_jax.data.packing import Staged
from lavit_jax.data.streams import Mixture, Stream
from lavit_jax.data.text import TextTokenizer
from lavit_jax.data.views import Images, Together
from lavit_jax.data.visual_ids import VisualIds
from lavit_jax.errors import UserError

BOTH_ORDERS = {"image_text": 0.5, "text_image": 0.5}
DEFAULTS: dict[str, Any] = {
    "path": "",
    "weight": 1.0,
    "kinds": {},
    "epochs": 0.0,
    "cap": 0,
    "visual_ids": "",
}


class Several(NamedTuple):
    """Examples of several sources, and the list of images that they point into."""

    examples: Staged
    images: Together


class Held(NamedTuple):
    """What a source is read from."""

    records: Sequence[Any]
    images: Images
    ids: VisualIds | None


Opener = Callable[[str, Mapping[str, Any]], Held]


def several(
    config: ConfigDict, text: TextTokenizer, batch_size: int, seed: int, opened: Opener
) -> Several:
    """Mixes the sources of a config.

    Args:
      config: the experiment.
      text: text tokenizer.
      batch_size: rows of a step over all processes; the curriculum counts in steps.
      seed: of orders and choices.
      opened: opens a source by its name and fields.

    Raises:
      UserError: fields, kinds or sources that do not exist, or weights that cannot be.
    """
    made: list[Stream] = []
    images: list[Images] = []
    first = 0
    for place, (name, fields) in enumerate(_sources(config)):
        held = opened(name, fields)
        maker = ExampleMaker(config, held.records, text, held.ids, first)
        made.append(_stream(name, fields, maker, len(held.records), seed, place, held.ids))
        images.append(held.images)
        first += len(held.images)
    starts, weights = _stages(config, [stream.name for stream in made])
    if config.data.weigh_by == "tokens":
        weights = streams.per_token(made, weights)
    rows = tuple(step * batch_size for step in starts)
    return Several(Staged(rows, Mixture(made, weights).begun), Together(images))


def check(config: ConfigDict) -> None:
    """Checks what stage two will read, so that a mistake does not wait for stage one's end.

    Raises:
      UserError: fields, kinds or folders that do not exist, or numbers that cannot be.
    """
    if config.data.weigh_by not in ("examples", "tokens"):
        raise UserError(
            f"config.data.weigh_by={config.data.weigh_by!r}: expected 'examples' or 'tokens'"
        )
    sources = _sources(config)
    if sources:
        _stages(config, [name for name, _ in sources])
    else:
        check_room(config.data.mixture, config.data.images_per_row)
    for name, fields in sources:
        if fields["kinds"]:
            where = f"config.data.sources.{name}.kinds"
            check_shares(fields["kinds"], where, KINDS)
            check_room(fields["kinds"], config.data.images_per_row, where)
        if fields["path"]:
            check_folder(name, fields)
    stored = [config.data.visual_ids, *(fields["visual_ids"] for _, fields in sources)]
    if any(stored) and config.data.variants != 1:
        raise UserError(
            "stored visual ids are of plain images: config.data.variants must be 1, got "
            f"{config.data.variants}"
        )


def check_folder(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The index of a source's folder, which stage two can use.

    Raises:
      UserError: no such folder, images without ids, or some examples without an image.
    """
    whole, where = prepared.read_index(fields["path"]), f"config.data.sources.{name}"
    if whole["images"] and not fields["visual_ids"]:
        raise UserError(f"{where} has images: name its ids with {where}.visual_ids")
    if 0 < whole["images"] < whole["examples"]:
        raise UserError(f"{where} mixes images and text alone: prepare them apart")
    return whole


def _sources(config: ConfigDict) -> list[tuple[str, dict[str, Any]]]:
    """Names and fields of the sources, defaults filled in, in the order of names."""
    found = []
    for name, given in sorted(config.data.sources.items()):
        where = f"config.data.sources.{name}"
        unknown = sorted(set(given) - set(DEFAULTS))
        if unknown:
            raise UserError(f"{where}.{unknown[0]}: expected only {', '.join(DEFAULTS)}")
        fields = {**DEFAULTS, **dict(given.items())}
        for field in ("weight", "epochs", "cap"):
            if fields[field] < 0:
                raise UserError(f"{where}.{field} must be 0 or more, got {fields[field]}")
        found.append((name, fields))
    return found


def _stages(config: ConfigDict, names: Sequence[str]) -> tuple[list[int], list[list[float]]]:
    """The steps at which later stages begin, and every stage's weights."""
    now = {name: fields["weight"] for name, fields in _sources(config)}
    check_shares(now, "config.data.sources", names)
    weights, starts = [[now[name] for name in names]], list[int]()
    for step, changed in config.data.curriculum:
        if step <= (starts[-1] if starts else 0):
            raise UserError(f"config.data.curriculum: steps must ascend from 1, got {step}")
        now = {**now, **dict(changed.items())}
        check_shares(now, f"config.data.curriculum[{len(starts)}]", names)
        starts.append(step)
        weights.append([now[name] for name in names])
    return starts, weights


def _stream(
    name: str,
    fields: Mapping[str, Any],
    maker: ExampleMaker,
    count: int,
    seed: int,
    place: int,
    ids: VisualIds | None,
) -> Stream:
    shares = fields["kinds"] or (BOTH_ORDERS if ids is not None else {"text": 1.0})
    known = KINDS if ids is not None else ("text",)
    check_shares(shares, f"config.data.sources.{name}.kinds", known)
    names = [kind for kind in KINDS if shares.get(kind)]
    chances = np.cumsum([shares[kind] for kind in names])
    chances /= chances[-1]

    def make(record: int, rng: np.random.Generator) -> Example:
        kind = names[int(np.searchsorted(chances, rng.random(), side="right"))]
        return maker.make(kind, record, rng)

    used = min(count, fields["cap"] or count)
    examples = (
        grain.MapDataset.range(used)
        .seed((seed * 1009 + place) % 2**32)
        .shuffle()
        .repeat()
        .random_map(make)
    )
    capacity = math.floor(used * fields["epochs"]) if fields["epochs"] else None
    if capacity == 0:
        raise UserError(f"config.data.sources.{name}.epochs={fields['epochs']} is no example")
    return Stream(name, capacity, examples.__getitem__)
