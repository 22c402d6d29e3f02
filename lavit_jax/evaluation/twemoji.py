"""What the quickstart measures on Twemoji's held-out pictures and prompts.

Legend: M pictures, N patches, F embedding width, K codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lavit_jax.data import images as image_data
from lavit_jax.inference.api import Lavit
from lavit_jax.inference.presets import DrawChanges
from lavit_jax.models import lavit as model_functions
from lavit_jax.training.losses import cosine_distance

Example = Mapping[str, Any]
Images = NDArray[np.uint8]
Progress = Callable[[str], None]

TOP = 5
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split, resized for the model.

    Attributes:
      examples: the data set's records.
      images_MHWC: uint8.
    """

    examples: Sequence[Example]
    images_MHWC: Images


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Numbers and the material the report shows.

    Attributes:
      metrics: by the names the report's metrics.json uses.
      code_counts_K: how often each code occurs in all pictures.
      new_kept_MN: keep decisions of `test_new`.
      new_reconstructions: `test_new` through ids, decoder and pixel head.
      new_captions: captions of `test_new`.
      combo_captions: captions of `test_combo`.
      combo_drawings: drawn from the captions of `test_combo`.
      combo_neighbours: for each drawing, indices into all pictures, nearest first.
    """

    metrics: dict[str, float]
    code_counts_K: NDArray[np.int64]
    new_kept_MN: NDArray[np.bool_]
    new_reconstructions: Images
    new_captions: list[str]
    combo_captions: list[str]
    combo_drawings: Images
    combo_neighbours: NDArray[np.int64]


def load_pictures(source: Any, size: int, limit: int | None = None) -> Pictures:
    """All (or the first `limit`) examples of a split, resized to the model's input."""
    count = len(source) if limit is None else min(limit, len(source))
    examples = [source[index] for index in range(count)]
    images = np.stack([image_data.resize(example["image"], size) for example in examples])
    return Pictures(examples, images)


def evaluate(
    model: Lavit,
    train: Pictures,
    new: Pictures,
    combo: Pictures,
    *,
    train_captions: int,
    drawing: DrawChanges,
    seed: int,
    say: Progress,
) -> Evaluation:
    """Measures tokenizer, captions and drawings.

    Args:
      model: all parts trained.
      train: the training split.
      new: pictures never seen.
      combo: skin-tone variants never seen together.
      train_captions: on how many training pictures, evenly spread, captions are compared.
      drawing: fields of `DrawOptions` for the drawings.
      seed: of the drawings.
      say: told what is being measured.
    """
    say("measuring the tokenizer")
    everything = np.concatenate([train.images_MHWC, new.images_MHWC, combo.images_MHWC])
    records = [*train.examples, *new.examples, *combo.examples]
    tokens = model.tokenize(list(everything))
    counts = np.bincount(
        np.concatenate([token.ids for token in tokens]), minlength=model.config.quantizer.codes
    )
    new_tokens = tokens[len(train.examples) : len(train.examples) + len(new.examples)]
    kept = np.stack([token.keep for token in new_tokens])
    shares = kept.mean(axis=1)
    metrics = {
        "cosine_loss": _cosine_loss(model, new.images_MHWC, new_tokens),
        "codebook_in_use": float((counts > 0).mean()),
        "kept_mean": float(shares.mean()),
        "kept_std": float(shares.std()),
    }
    say("captioning")
    wanted = min(train_captions, len(train.examples))
    shown = np.linspace(0, len(train.examples) - 1, wanted).astype(int)
    train_said = model.caption([train.images_MHWC[i] for i in shown])
    new_said = model.caption(list(new.images_MHWC))
    combo_said = model.caption(list(combo.images_MHWC))
    metrics |= {
        "caption_exact_train": _exact(train_said, [train.examples[i] for i in shown]),
        "caption_exact_new": _exact(new_said, new.examples),
        "caption_exact_combo": _exact(combo_said, combo.examples),
        "tone_correct_combo": _tones_right(combo_said, combo.examples),
    }
    say("drawing")
    prompts = [example["captions"][0] for example in combo.examples]
    drawings = np.stack([drawn[0] for drawn in model.draw(prompts, n=1, seed=seed, **drawing)])
    neighbours = _neighbours(_embed(model, drawings), _embed(model, everything))
    metrics |= _drawing_metrics(neighbours, combo.examples, records)
    return Evaluation(
        metrics=metrics,
        code_counts_K=counts,
        new_kept_MN=kept,
        new_reconstructions=np.stack(model.reconstruct(list(new.images_MHWC))),
        new_captions=new_said,
        combo_captions=combo_said,
        combo_drawings=drawings,
        combo_neighbours=neighbours,
    )


def _exact(said: Sequence[str], examples: Sequence[Example]) -> float:
    """Share of captions that equal, to the letter, one of the picture's own."""
    pairs = zip(said, examples, strict=True)
    return float(np.mean([text in example["captions"] for text, example in pairs]))


def tones_said(caption: str) -> list[str]:
    """The skin tones a caption names, in order: "medium-light" is one, not two."""
    words = caption.replace(",", " ").split()
    return [word for word in words if word in TONES]


TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def _tones_right(said: Sequence[str], examples: Sequence[Example]) -> float:
    """Share of captions that name exactly the picture's tones."""
    pairs = zip(said, examples, strict=True)
    return float(
        np.mean([sorted(tones_said(text)) == sorted(example["tones"]) for text, example in pairs])
    )


def _cosine_loss(model: Lavit, images_MHWC: Images, tokens: Sequence[Any]) -> float:
    """mean_i (1 - cos(x_i, x_rec_i)) through quantized codes (SPEC 6)."""
    m, length = model.modules, model.config.max_kept

    @jax.jit
    def distance(params: Any, images: Any, ids: Any, valid: Any) -> Any:
        x = model_functions.encode_image(m, params, images)
        rec = model_functions.detokenize(m, params, model.codebook, ids, valid)
        return jax.vmap(lambda one, other: cosine_distance(one[None], other[None]))(x, rec)

    ids = np.zeros((len(tokens), length), np.int32)
    valid = np.zeros((len(tokens), length), bool)
    for row, token in enumerate(tokens):
        ids[row, : token.kept], valid[row, : token.kept] = token.ids, True
    found = [
        np.asarray(distance(model.params, images_MHWC[s], ids[s], valid[s]))
        for s in _slices(len(tokens))
    ]
    return float(np.concatenate(found).mean())


def _slices(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def _embed(model: Lavit, images_MHWC: Images) -> NDArray[np.float32]:
    """The frozen encoder's embedding of [CLS], unit length, [M, F]."""
    m = model.modules

    @jax.jit
    def embed(params: Any, images: Any) -> Any:
        normal = model_functions.normalize_images(images)
        return model_functions.run(m, params, "encoder", normal, method="embed")

    parts = [np.asarray(embed(model.params, images_MHWC[s])) for s in _slices(len(images_MHWC))]
    embeddings = np.concatenate(parts)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _neighbours(queries_QF: NDArray[np.float32], all_MF: NDArray[np.float32]) -> NDArray[np.int64]:
    """The TOP nearest pictures of each query by cosine, nearest first."""
    return np.argsort(-(queries_QF @ all_MF.T), axis=1, kind="stable")[:, :TOP]


def _drawing_metrics(
    neighbours: NDArray[np.int64], wanted: Sequence[Example], records: Sequence[Example]
) -> dict[str, float]:
    """Whether drawings look like what their prompts name.

    `draw_top5_combo`: the right picture or another tone of it is among the five nearest.
    `draw_tone_combo`: the nearest picture has the prompt's tones.
    """
    top5 = [
        any(records[i]["base"] == example["base"] for i in row)
        for row, example in zip(neighbours, wanted, strict=True)
    ]
    tone = [
        list(records[row[0]]["tones"]) == list(example["tones"])
        for row, example in zip(neighbours, wanted, strict=True)
    ]
    return {"draw_top5_combo": float(np.mean(top5)), "draw_tone_combo": float(np.mean(tone))}
