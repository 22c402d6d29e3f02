"""How fast a core turns shards into batches, step by step.

Rates are per second of processor time of one core, so that other work on the machine does not
change them. Language model ids stand in: one for each byte of a caption, and random visual ids.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lavit_jax.data import images as image_data
from lavit_jax.data import packing, pipeline, prepared, views
from lavit_jax.data.images import AugmentConfig
from lavit_jax.data.layout import Condition, Example, SpecialIds, image_text
from lavit_jax.data.sources.base import Raw
from lavit_jax.errors import UserError

HELD = 256  # images measured, again and again
KEPT_SHARE = 1 / 3
ROWS = 8  # of a packed batch
GATHERED = 32  # images of a batch that a worker reads
LISTED = 1 << 16
ROUNDS = 5  # in which all steps are timed; the median counts


def measure(config: ConfigDict, folder: str | os.PathLike[str], seconds: float) -> dict[str, Any]:
    """Times every step.

    Args:
      config: for the size of images and rows.
      folder: a prepared data set with images.
      seconds: for each step, over all rounds.

    Returns:
      JSON-able: images per second and core for each step and for gathering what worker processes
      read, useful tokens, bytes per second to the device.

    Raises:
      UserError: no prepared data set, or no images in it.
    """
    stored = prepared.Prepared(folder)
    raws = list(_images(stored))
    if not raws:
        raise UserError(f"{folder} has no images to measure with")
    size = config.model.image_size
    augment = AugmentConfig.of(config.data.augment)
    decoded = [image_data.decode_image(raw.image or b"", raw.origin, least=size) for raw in raws]
    places = len(stored)

    def preprocess(number: int) -> None:
        rng = np.random.default_rng(number)
        image_data.crop(decoded[number % len(decoded)], rng, augment, size)

    packed = _Packed(config, raws)
    steps: dict[str, Callable[[int], Any]] = {
        "read": lambda number: stored[number % places],
        "decode_alone": lambda number: _pillow(raws[number % len(raws)].image or b""),
        "decode": lambda number: image_data.decode_image(
            raws[number % len(raws)].image or b"", "", least=size
        ),
        "preprocess": preprocess,
    }
    augmenting = np.random.default_rng(0)
    examples = prepared.examples(folder, size, max_bad_share=1.0)

    def from_shard(place: int) -> np.ndarray:
        return image_data.crop(examples[place % places]["image"], augmenting, augment, size)

    def rates() -> dict[str, float]:
        share = seconds / ROUNDS
        found = {name: _rate(step, share) for name, step in steps.items()}
        found["pack"] = packed.rate(
            share, lambda place: decoded[place % len(decoded)][:size, :size]
        )
        found["jpeg_to_packed_batch"] = packed.rate(share, from_shard)
        return found

    rounds = [rates() for _ in range(ROUNDS)]
    found = {name: float(np.median([each[name] for each in rounds])) for name in rounds[0]}
    found["gather"] = _gathered(config, decoded[:GATHERED], seconds)
    sides = np.median([image.shape[:2] for image in decoded], axis=0)
    return {
        "data": os.fspath(folder),
        "image_size": size,
        "stored_pixels": [int(side) for side in sides],
        "images_per_second_per_core": {name: round(rate, 1) for name, rate in found.items()},
        "useful_tokens": round(packed.useful, 4),
        "transfer_mb_per_second": round(_transfer(packed.batch, seconds) / 1e6, 1),
    }


def _images(stored: prepared.Prepared) -> Iterator[Raw]:
    found = 0
    for place in range(len(stored)):
        raw = stored[place]
        if isinstance(raw, Raw) and raw.image is not None:
            yield raw
            found += 1
            if found == HELD:
                return


def _pillow(data: bytes) -> np.ndarray:
    """What any loader has to do at least: the limit of this machine."""
    image = Image.open(io.BytesIO(data))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _rate(step: Callable[[int], Any], seconds: float) -> float:
    step(0)
    begun, number = time.process_time(), 0
    while time.process_time() - begun < seconds:
        step(number)
        number += 1
    return number / (time.process_time() - begun)


def _gathered(config: ConfigDict, images: list[np.ndarray], seconds: float) -> float:
    """Images per second of this process's time, where a worker process reads them."""
    augment, size = AugmentConfig.of(config.data.augment), config.model.image_size
    # A long list of few images: of a short one, shuffling takes longer than all the rest.
    records = [{"image": image} for image in images] * (LISTED // len(images))
    view = views.ImageView(records, augment, size)
    with contextlib.closing(
        pipeline.view_batches(view, len(images), 0, pipeline.Readers(workers=1))
    ) as batches:
        next(batches)
        until, begun, count = time.monotonic() + seconds, time.process_time(), 0
        while not count or time.monotonic() < until:
            count += len(next(batches)["images"])
        return count / (time.process_time() - begun)


def _transfer(batch: dict[str, np.ndarray], seconds: float) -> float:
    """Bytes per second, by the clock, from here to a device."""
    import jax

    size = sum(array.nbytes for array in batch.values())
    jax.block_until_ready(jax.device_put(batch))
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        jax.block_until_ready(jax.device_put(batch))
        count += 1
    return size * count / (time.monotonic() - begun)


class _Packed:
    """Packs [image, text] examples into batches as the unified phase does."""

    def __init__(self, config: ConfigDict, raws: list[Raw]) -> None:
        self._raws = raws
        patches = (config.model.image_size // config.model.patch_size) ** 2
        most = config.model.selector.max_kept or patches
        limits = packing.Limits(config.data.row_length, config.data.images_per_row)
        self._shape = packing.RowShape(limits, patches, config.model.image_size)
        self._special = SpecialIds(259, config.model.quantizer.codes)
        rng = np.random.default_rng(0)
        kept = rng.binomial(patches, KEPT_SHARE, len(raws)).clip(1, most)
        self._keep_MN = np.zeros((len(raws), patches), np.uint8)
        for keep_N, count in zip(self._keep_MN, kept, strict=True):
            keep_N[rng.permutation(patches)[:count]] = 1
        self.batch: dict[str, np.ndarray] = {}
        self.useful = 0.0

    def __getitem__(self, place: int) -> Example:
        number = place % len(self._raws)
        condition = Condition(place, self._keep_MN[number])
        room = max(0, self._shape.limits.tokens - condition.kept - 3)
        ids = [3 + byte for byte in str(self._raws[number].captions[0]).encode()[:room]]
        return image_text(self._special, condition, ids)

    def rate(self, seconds: float, image: Callable[[int], np.ndarray]) -> float:
        """Images per second of processor time, from `image` to stacked rows."""
        size = self._shape.image_size

        def sized(place: int) -> np.ndarray:
            found = image(place)
            return found if found.shape[:2] == (size, size) else np.resize(found, (size, size, 3))

        rows = iter(packing.PackedRows(self, self._shape.limits))
        shares, images, begun = list[float](), 0, time.process_time()
        while not images or time.process_time() - begun < seconds:
            laid = []
            for _ in range(ROWS):
                row = next(rows)
                images += len(row)
                laid.append(packing.lay_row(row, self._shape, sized))
            self.batch = {name: np.stack([row[name] for row in laid]) for name in laid[0]}
            shares.append(packing.useful_share(self.batch["segment_ids"]))
        self.useful = float(np.mean(shares))
        return images / (time.process_time() - begun)


def describe(found: dict[str, Any]) -> str:
    """The rates for people."""
    height, width = found["stored_pixels"]
    lines = [
        f"{found['data']}: stored {width} x {height}, wanted {found['image_size']} x "
        f"{found['image_size']}; images per second and core"
    ]
    rates = found["images_per_second_per_core"]
    for name, what in (
        ("read", "record from shard"),
        ("decode_alone", "Pillow alone: no loader on this machine can be faster"),
        ("decode", "checked, and no larger than needed"),
        ("preprocess", "cut and resized"),
        ("pack", "laid out, packed and stacked"),
        ("jpeg_to_packed_batch", "all of it, one after the other"),
        ("gather", "what one process can gather from its workers"),
    ):
        lines.append(f"  {name:22} {rates[name]:10,.0f}   {what}")
    lines.append(f"  useful tokens of packed rows: {found['useful_tokens']:.1%}")
    lines.append(f"  to the device: {found['transfer_mb_per_second']:,.0f} MB/s")
    return "\n".join(lines)
