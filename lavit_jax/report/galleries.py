"""The report's galleries, from what an evaluation found.

Legend: M pictures, N patches, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

from lavit_jax.report.data import SHOWN_CARDS, Card, Gallery
from lavit_jax.report.figures import Picture, kept_overlay

OVERLAY_SIDE = 192

Pictures = Sequence[Picture] | UInt8[np.ndarray, "M H W 3"]


def kept_patches(
    images: Pictures, keep_MN: Shaped[np.ndarray, "M N"], count: int = SHOWN_CARDS
) -> Gallery:
    """Pictures with the patches they keep, from those that keep least to those that keep most.

    Args:
      images: the pictures.
      keep_MN: nonzero where a patch is kept.
      count: how many to show, evenly spread over that order.
    """
    order = np.argsort((keep_MN != 0).sum(axis=1), kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    cards = [
        Card(
            images=[kept_overlay(images[index], keep_MN[index], OVERLAY_SIDE)],
            note=f"{(keep_MN[index] != 0).sum()} of {keep_MN.shape[1]}",
        )
        for index in order
    ]
    return Gallery(
        "What it keeps",
        cards,
        "The selector decides patch by patch what becomes a token; plain pictures need few. "
        "Framed patches are kept, grey ones dropped.",
    )


def reconstructions(
    images: Pictures, rebuilt: Pictures, kept: Sequence[int] | None = None
) -> Gallery:
    """Originals beside what comes back from their ids; `kept` counts the ids of each."""
    cards = [
        Card(
            images=[image, again],
            labels=["picture", "from ids"],
            note="" if kept is None else f"{kept[index]} ids",
        )
        for index, (image, again) in enumerate(zip(images, rebuilt, strict=True))
    ]
    return Gallery(
        "From ids back to pictures",
        cards,
        "Unseen pictures, and what the pixel head draws from nothing but their visual ids, in one "
        "forward pass.",
    )


def decoders(
    titles: Sequence[str],
    pictures: Sequence[Picture | None],
    one_pass: Pictures,
    diffused: Pictures,
    intro: str,
) -> Gallery:
    """The same ids through both decoders.

    Args:
      titles: of each card: what was drawn.
      pictures: the real picture the ids are of; None where they were drawn from words.
      one_pass: by the pixel head.
      diffused: by the diffusion decoder.
      intro: what to say of them.
    """
    cards = []
    for title, picture, head, diffusion in zip(titles, pictures, one_pass, diffused, strict=True):
        images, labels = [head, diffusion], ["one pass", "diffusion"]
        if picture is not None:
            images, labels = [picture, *images], ["picture", *labels]
        cards.append(Card(images=images, labels=labels, title=title))
    return Gallery("Painted by both decoders", cards, intro)


def captions(
    images: Pictures,
    said: Sequence[str],
    names: Sequence[Sequence[str]],
    title: str = "Captions of unseen pictures",
    intro: str = "Right means: one of the picture's own names, to the letter.",
) -> Gallery:
    """What the model said of each picture; right if it is one of the picture's names.

    Args:
      images: the pictures.
      said: their captions.
      names: every name each picture has, the usual one first.
      title: of the section.
      intro: what right means.
    """
    cards = []
    for image, text, known in zip(images, said, names, strict=True):
        right = text in known
        note = "" if right or not known else f"is: {known[0]}"
        cards.append(Card(images=[image], title=text or "(nothing)", note=note, right=right))
    return Gallery(title, cards, intro)


def drawings(
    prompts: Sequence[str],
    drawn: Pictures,
    nearest: Pictures,
    names: Sequence[str],
    right: Sequence[bool | None] | None = None,
) -> Gallery:
    """What was drawn from each prompt, beside the real picture most like it.

    Args:
      prompts: what to draw.
      drawn: one picture of each prompt.
      nearest: the real picture nearest to each drawing.
      names: of the nearest pictures.
      right: whether each drawing counts as right; None for no mark.
    """
    marks: Sequence[bool | None] = right if right is not None else [None] * len(prompts)
    cards = [
        Card(
            images=[picture, real],
            labels=["drawn", "nearest real"],
            title=prompt,
            note=f"nearest: {name}",
            right=mark,
        )
        for prompt, picture, real, name, mark in zip(
            prompts, drawn, nearest, names, marks, strict=True
        )
    ]
    return Gallery(
        "Drawn from unseen prompts",
        cards,
        "Prompt to ids to features to pixels, and the real picture whose embedding lies nearest.",
    )
