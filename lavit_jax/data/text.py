"""Text to ids: a sentencepiece BPE model, trained on a corpus or read from a published one."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece as spm
from etils import epath

from lavit_jax import disk
from lavit_jax.errors import UserError

# Llama's ids; its published models have no padding piece, so unk pads.
PAD_ID = UNK_ID = 0
BOS_ID = 1
EOS_ID = 2
_CONTROL_PIECES = 3 + 256  # unk, bos, eos and the bytes that spell unknown characters
_LEAST_COVERAGE = 0.98  # of sentencepiece
_LONGEST_SENTENCE = 1 << 16  # bytes; sentencepiece silently skips longer ones


def train_tokenizer(
    sentences: Iterable[str], path: str | os.PathLike[str], vocab_size: int
) -> None:
    """Trains a BPE model with byte fallback in Llama's conventions and writes it in one move.

    The same sentences in the same order give the same model.

    Args:
      sentences: the corpus.
      path: where the model goes; its folder is made if missing.
      vocab_size: pieces, special ones and the 256 bytes included.

    Raises:
      UserError: an empty corpus, or one too small or too varied for `vocab_size`.
    """
    corpus = [sentence for sentence in sentences if sentence.strip()]
    if not corpus:
        raise UserError("the text tokenizer got no sentences to train on")
    if vocab_size <= _CONTROL_PIECES:
        raise UserError(
            f"config.data.text_vocab_size={vocab_size} is too small: "
            f"{_CONTROL_PIECES} pieces are bytes and special ones"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(path, _train(corpus, vocab_size))


def _train(corpus: Sequence[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=_coverage(corpus, vocab_size),
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",  # decode(encode(text)) == text
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=-1,
            unk_surface="\u2047",
            shuffle_input_sentence=False,
            max_sentence_length=_LONGEST_SENTENCE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"value <= (\d+)", str(error))
        least = re.search(r"required_chars\D+\d+ vs (\d+)", str(error))
        if most:
            reason = f"is more than the captions can fill; use at most {most.group(1)}"
        elif least:
            reason = f"is too small for the captions' characters; use at least {least.group(1)}"
        else:
            reason = f"cannot be trained: {error}"
        raise UserError(f"config.data.text_vocab_size={vocab_size} {reason}") from error
    return model.getvalue()


def _coverage(corpus: Sequence[str], vocab_size: int) -> float:
    """The share of characters that get a piece of their own.

    All of them, unless they would fill over half of the vocabulary: then the rarest are spelt in
    bytes, so that scripts of thousands of characters fit small vocabularies.
    """
    counts: dict[str, int] = {}
    for sentence in corpus:
        for character in sentence:
            counts[character] = counts.get(character, 0) + 1
    room = max(1, (vocab_size - _CONTROL_PIECES) // 2)
    if len(counts) <= room:
        return 1.0
    kept = sorted(counts.values(), reverse=True)[:room]
    return max(_LEAST_COVERAGE, sum(kept) / sum(counts.values()))


class TextTokenizer:
    """A sentencepiece model in Llama's conventions.

    Attributes:
      vocab_size: T.
      bos_id: 1.
      eos_id: 2.
      pad_id: 0, the unknown piece, as published.
    """

    bos_id = BOS_ID
    eos_id = EOS_ID
    pad_id = PAD_ID

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads a model.

        Raises:
          UserError: no such file, not a sentencepiece model, or one with other special ids.
        """
        place = epath.Path(path)  # a converted checkpoint's may be in a bucket
        if not place.is_file():
            raise UserError(f"text tokenizer not found: {place}")
        try:
            self._model = spm.SentencePieceProcessor(model_proto=place.read_bytes())
        except (RuntimeError, OSError) as error:
            raise UserError(f"not a sentencepiece model: {place}") from error
        if (self._model.bos_id(), self._model.eos_id()) != (BOS_ID, EOS_ID):
            raise UserError(
                f"{place}: expected bos and eos ids {BOS_ID} and {EOS_ID} as in Llama, got "
                f"{self._model.bos_id()} and {self._model.eos_id()}"
            )
        self.vocab_size: int = self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos."""
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bos, eos, padding and ids beyond the text vocabulary are left out."""
        return self._model.decode([int(i) for i in ids if EOS_ID < i < self.vocab_size])
