"""How pictures and text are laid out as sequences for the language model (SPEC 7 and 8).

Legend: n tokens of an example, N patches, L kept patches.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8, Int32, UInt8

from lavit_jax.data.text import BOS_ID, EOS_ID, PAD_ID

QUESTION = "Question: {} Answer:"  # as published (SPEC 9)
MOST_WORDS = 50  # of a question, as published


def plain_question(question: str) -> str:
    """A question as the published model is asked: lower case, some marks removed, 50 words."""
    text = re.sub(r'[.!"()*#:;~]', "", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:MOST_WORDS])


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Where ids lie: text 0..T-1, then [IMG], [/IMG] and the K visual codes.

    Attributes:
      text_vocab: T.
      n_codes: K.
    """

    text_vocab: int
    n_codes: int

    bos = BOS_ID
    eos = EOS_ID
    pad = PAD_ID

    @property
    def image_start(self) -> int:
        """[IMG]."""
        return self.text_vocab

    @property
    def image_end(self) -> int:
        """[/IMG]."""
        return self.text_vocab + 1

    @property
    def vocab(self) -> int:
        return self.text_vocab + 2 + self.n_codes

    def code(self, k: int) -> int:
        """The id of visual code k."""
        return self.text_vocab + 2 + k

    def visual(self, codes: Sequence[int] | np.ndarray) -> list[int]:
        """[IMG] codes [/IMG]."""
        return [self.image_start, *(self.code(int(k)) for k in codes), self.image_end]


@dataclasses.dataclass(frozen=True)
class Condition:
    """An image whose continuous features stand in a sequence.

    Attributes:
      image: which one; a place in the fixed list of images.
      keep_N: 1 for each kept patch, uint8 [N].
    """

    image: int
    keep_N: UInt8[np.ndarray, "N"]

    @property
    def kept(self) -> int:
        """L."""
        return int(self.keep_N.sum())


@dataclasses.dataclass(frozen=True)
class Example:
    """One sequence; the model predicts each token from those before it.

    Attributes:
      ids: tokens, int32 [n]; pad where a feature stands instead.
      loss: 1 where this token is a target that counts, int8 [n]; never at the first place.
      feature: rank of the kept patch whose feature stands here, int32 [n]; -1 elsewhere.
      condition: the image those features come from.
    """

    ids: Int32[np.ndarray, "n"]
    loss: Int8[np.ndarray, "n"]
    feature: Int32[np.ndarray, "n"]
    condition: Condition | None = None

    def __len__(self) -> int:
        return len(self.ids)


def image_text(special: SpecialIds, condition: Condition, caption: Sequence[int]) -> Example:
    """[IMG] L features [/IMG] caption </s>; the caption and </s> are targets."""
    return _conditioned(special, condition, (), caption)


def question(
    special: SpecialIds, condition: Condition, asked: Sequence[int], answer: Sequence[int]
) -> Example:
    """[IMG] L features [/IMG] question answer </s>; the answer and </s> are targets.

    Args:
      special: ids.
      condition: the image.
      asked: ids of the question put into `QUESTION`.
      answer: ids of the answer.
    """
    return _conditioned(special, condition, asked, answer)


def text_image(
    special: SpecialIds, caption: Sequence[int], codes: Sequence[int] | np.ndarray
) -> Example:
    """caption [IMG] L codes [/IMG]; codes and [/IMG] are targets.

    Without a caption this is the unconditional branch of guidance, which starts at [IMG].
    """
    return _plain([*caption, *special.visual(codes)], given=len(caption) + 1)


def plain_text(special: SpecialIds, ids: Sequence[int]) -> Example:
    """text </s>; everything after the first token is a target."""
    return _plain([*ids, special.eos], given=1)


def _conditioned(
    special: SpecialIds, condition: Condition, asked: Sequence[int], answer: Sequence[int]
) -> Example:
    kept = condition.kept
    image = [special.image_start, *[special.pad] * kept, special.image_end]
    example = _plain([*image, *asked, *answer, special.eos], given=len(image) + len(asked))
    example.feature[1 : 1 + kept] = np.arange(kept)
    return dataclasses.replace(example, condition=condition)


def _plain(ids: Sequence[int], given: int) -> Example:
    """Ids of which the first `given` are no targets."""
    loss = np.ones(len(ids), np.int8)
    loss[:given] = 0
    return Example(np.asarray(ids, np.int32), loss, np.full(len(ids), -1, np.int32))
