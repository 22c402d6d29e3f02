"""How an example is stored in our shards: a small msgpack map."""

from __future__ import annotations

from typing import Any

import msgpack

from lavit_jax.data.sources.base import Raw


def encode(example: Raw) -> bytes:
    """The bytes of a checked example."""
    stored: dict[str, Any] = {"key": example.key, "captions": example.captions}
    if example.image is not None:
        stored["image"] = example.image
    if example.questions:
        stored["questions"], stored["answers"] = example.questions, example.answers
    return msgpack.packb(stored)


def decode(data: bytes, origin: str) -> Raw:
    """An example from its bytes.

    Raises:
      ValueError: they are not of `encode`.
    """
    try:
        stored = msgpack.unpackb(data)
    except (msgpack.exceptions.UnpackException, ValueError, RecursionError) as error:
        raise ValueError(f"not a record of ours: {type(error).__name__}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("key"), str):
        raise ValueError("not a record of ours: no key")
    image = stored.get("image")
    if image is not None and not isinstance(image, bytes):
        raise ValueError("not a record of ours: image")
    listed = {name: stored.get(name, []) for name in ("captions", "questions", "answers")}
    for name, values in listed.items():
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise ValueError(f"not a record of ours: {name}")
    return Raw(
        stored["key"], origin, image, **{name: tuple(values) for name, values in listed.items()}
    )
