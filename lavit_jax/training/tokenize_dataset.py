"""Visual ids of a whole prepared data set: sharded as the data set is, resumable, stamped.

Every process does shards of its own on its own devices; a shard is complete or absent.

Legend: B images of a stack, N patches, L kept ones at most, H = W side, C channels.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax import disk
from lavit_jax.convert import load, published, record
from lavit_jax.convert.published import Published
from lavit_jax.data import images as image_data
from lavit_jax.data import prepared, stored_ids
from lavit_jax.data.prepare.store import WORK, Store
from lavit_jax.data.stored_ids import Stamp, Tokens
from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.models.lavit import Modules
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel import peers, rules
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training import storage, visual_cache
from lavit_jax.training.restore import Restored, restore

PLAN = f"{WORK}/plan.json"
BATCH_PER_DEVICE = 64
THREADS = max(1, (os.cpu_count() or 2) - 1)
AHEAD = 2  # stacks read ahead
MAX_BAD_SHARE = 0.01  # where no run's config says another
NOTHING = Tokens(np.zeros(0, np.uint16), np.zeros(0, np.uint8))  # of text alone

Record = dict[str, Any]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard of ids and the examples of the data set it is of."""

    name: str
    first: int
    count: int

    @property
    def receipt(self) -> str:
        return f"{WORK}/{self.name}.json"


@dataclasses.dataclass(frozen=True)
class _Model:
    """A trained or converted tokenizer.

    Attributes:
      modules: of its sizes.
      params: of those modules.
      codebook: its codes.
      max_bad_share: of the images it is shown.
    """

    modules: Modules
    params: Mapping[str, Any]
    codebook: Codebook
    max_bad_share: float


def _open(checkpoint: Path | str, max_kept: int | None, attention: str | None) -> _Model:
    """The tokenizer of a work directory or of a folder of `lavit convert`."""
    folder, share = storage.folder(checkpoint), MAX_BAD_SHARE
    found: Restored | Published
    if (folder / record.FILE).exists():
        # As training will hold them, so that the stamp is that of training.
        found = load.load_converted(folder, parts=[published.VISUAL], dtype=jnp.float32)
        config = found.config
    else:
        found = restore(checkpoint)
        config, share = found.modules.config, found.config.data.max_bad_share
    if found.codebook is None:
        raise UserError(f"{checkpoint}: its visual tokenizer has no codebook")
    if max_kept is not None:
        if not 1 <= max_kept <= config.patches:
            raise UserError(f"--max-kept must lie in 1..{config.patches}, got {max_kept}")
        few = dataclasses.replace(config.selector, max_kept=max_kept)
        config = dataclasses.replace(config, selector=few)
    if attention is not None:
        form = dataclasses.replace(config.merger, attention=attention)
        config = dataclasses.replace(config, merger=form)
    return _Model(lavit.build_modules(config), found.params, found.codebook, share)


def tokenize_dataset(
    source: str,
    destination: str,
    checkpoint: Path | str,
    say: Say = lambda _: None,
    *,
    max_kept: int | None = None,
    attention: str | None = None,
) -> dict[str, Any]:
    """Tokenizes every image of a prepared data set, or what is left of it.

    Args:
      source: the prepared data set.
      destination: folder or URL.
      checkpoint: work directory of the run whose newest tokenizer is used, or a folder of
        `lavit convert`.
      say: told how far it is.
      max_kept: L_max, the most patches kept per image; None is the checkpoint's own.
      attention: the merger's form, "published" or "clean"; None is the checkpoint's own.

    Returns:
      The index.

    Raises:
      UserError: no such data set or checkpoint, or a destination with ids of another tokenizer or
        data set, or that another job works on.
    """
    model = _open(checkpoint, max_kept, attention)
    config = model.modules.config
    stamp = visual_cache.full_stamp(config, model, make_mesh())
    images = prepared.examples(source, config.encoder.image_size, model.max_bad_share)
    shards = _shards(prepared.read_index(source))
    store = Store(destination)
    plan: dict[str, Any] = {
        "job": {"source": os.fspath(source)},
        "stamp": dataclasses.asdict(stamp),
        "patches": config.patches,
        "examples": len(images),
    }
    done = functools.partial(_is_done, store, plan, stamp)
    if not peers.of_first(done):
        with peers.first_holds(store.claimed(say)):
            if not peers.of_first(done):  # by another job, meanwhile
                peers.of_first(lambda: _keep_plan(store, plan, stamp))
                tokenizer = _Tokenizer(model)
                own = shards[jax.process_index() :: jax.process_count()]
                for number, shard in enumerate(own, start=1):
                    if not store.exists(shard.receipt):
                        _write(store, shard, images, tokenizer)
                    say(f"{number} of {len(own)} shards")
                peers.meet()
                peers.of_first(lambda: _finish(store, plan, shards))
    return dict(store.read_json(prepared.INDEX))


def _is_done(store: Store, plan: dict[str, Any], stamp: Stamp) -> bool:
    """Whether the index is there."""
    index = store.read_json(prepared.INDEX)
    if index is None:
        return False
    _check_same(index, plan, stamp, store.url)
    store.remove_work()  # which a process that was killed at the very end has left
    return True


def _keep_plan(store: Store, plan: dict[str, Any], stamp: Stamp) -> None:
    """Stores what is done here, which must be what was begun."""
    begun = store.read_json(PLAN)
    if begun is not None:
        _check_same(begun, plan, stamp, store.url)
    store.write_json(PLAN, plan)


def _finish(store: Store, plan: dict[str, Any], shards: Sequence[_Shard]) -> None:
    """Writes the index from the receipts of all processes."""
    written = [store.read_json(shard.receipt) for shard in shards]
    for shard, receipt in zip(shards, written):
        if receipt is None:
            raise UserError(
                f"{store.url}: {shard.name} is not there, though a process has written it: "
                "several processes need a folder that all of them see"
            )
    size = sum(receipt["bytes"] for receipt in written)
    index = {**plan, "images": plan["examples"], "bytes": size, "shards": written}
    store.write_json(prepared.INDEX, index)
    store.remove_work()


def _check_same(stored: dict[str, Any], plan: dict[str, Any], stamp: Stamp, url: str) -> None:
    """Refuses a folder of another tokenizer or data set."""
    stamp.check(stored.get("stamp"), url)
    for field in ("job", "examples"):
        if stored.get(field) != plan[field]:
            raise UserError(
                f"{url} has the visual ids of another data set: {stored.get(field)} there, "
                f"{plan[field]} here"
            )


def _shards(index: dict[str, Any]) -> list[_Shard]:
    counts = [shard["examples"] for shard in index["shards"]]
    firsts = [0, *itertools.accumulate(counts)]
    return [
        _Shard(f"ids-{number:06d}.array_record", first, count)
        for number, (first, count) in enumerate(zip(firsts, counts))
    ]


class _Tokenizer:
    """Tokenizes stacks of images on all devices of this process.

    Attributes:
      height: images of a stack, at most.
      size: side of an image.
    """

    def __init__(self, model: _Model) -> None:
        modules = model.modules
        devices = jax.local_devices()
        mesh = make_mesh(devices=devices)
        here, self._spread = rules.replicated(mesh), rules.batch_sharding(mesh)
        used = {name: model.params[name] for name in visual_cache.TOKENIZER}
        self._params, self._codebook = jax.device_put(
            jax.tree.map(_local, (used, model.codebook)), here
        )
        self._program = jax.jit(
            lambda params, book, images: lavit.tokenize(modules, params, book, images)
        )
        self.height = BATCH_PER_DEVICE * len(devices)
        self.size = modules.config.encoder.image_size

    def __call__(self, images: Sequence[np.ndarray]) -> list[Tokens]:
        padded_BHWC = np.zeros((self.height, self.size, self.size, 3), np.uint8)
        padded_BHWC[: len(images)] = images
        stack = jax.device_put(padded_BHWC, self._spread)
        tokens = jax.device_get(self._program(self._params, self._codebook, stack))
        keep_BN = (tokens.keep_BN > 0.5).astype(np.uint8)
        return [
            Tokens(tokens.ids_BL[row, : keep_BN[row].sum()], keep_BN[row])
            for row in range(len(images))
        ]


def _local(array: jax.Array) -> np.ndarray:
    """The whole of an array that every device holds whole."""
    return np.asarray(array.addressable_data(0))


def _write(store: Store, shard: _Shard, images: Sequence[Record], tokenizer: _Tokenizer) -> None:
    """Tokenizes a shard and leaves its receipt."""
    with store.scratch() as folder:
        aside = folder / shard.name
        writer = store.records(aside)
        for stack in _stacks(images, shard, tokenizer.height, tokenizer.size):
            pictures = [pixels for _, pixels in stack if pixels is not None]
            found = iter(tokenizer(pictures) if pictures else ())
            for key, pixels in stack:
                writer.write(stored_ids.encode(key, NOTHING if pixels is None else next(found)))
        writer.close()
        size, digest = aside.stat().st_size, disk.sha256(aside)
        store.publish(aside, shard.name)
    receipt = {"name": shard.name, "examples": shard.count, "bytes": size, "sha256": digest}
    store.write_json(shard.receipt, receipt)


def _stacks(
    images: Sequence[Record], shard: _Shard, height: int, size: int
) -> Iterator[list[tuple[str, np.ndarray | None]]]:
    """Keys and pixels of a shard's examples, read by threads while devices work."""

    def read(place: int) -> tuple[str, np.ndarray | None]:
        example = images[place]
        picture = example["image"]
        return example["key"], None if picture is None else image_data.resize(picture, size)

    places = range(shard.first, shard.first + shard.count)
    with futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque[list[futures.Future[Any]]] = collections.deque()
        for start in range(0, len(places), height):
            waiting.append([pool.submit(read, place) for place in places[start : start + height]])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
