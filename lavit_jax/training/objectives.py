"""What each kind of phase minimises: parameters, codebook, batch, key -> loss, metrics, codebook.

Legend: B batch, N patches, D width, L kept (padded), C code dimension, S row length, J condition
images of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lavit_jax.models import attention, lavit, quantizer, selector
from lavit_jax.models.lavit import Modules, Params
from lavit_jax.models.quantizer import Codebook
from lavit_jax.training import losses, vocabulary

Batch = Mapping[str, Array]
Function = Callable[[Array], Array]


class Outcome(NamedTuple):
    """What a loss function returns beside the loss."""

    metrics: dict[str, Array]
    codebook: Codebook


class Objective(Protocol):
    """One kind of phase."""

    def __call__(
        self, params: Params, codebook: Codebook, batch: Batch, key: Array
    ) -> tuple[Array, Outcome]: ...


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Stage zero: image and caption embeddings agree (sigmoid loss)."""

    modules: Modules

    def __call__(
        self, params: Params, codebook: Codebook, batch: Batch, key: Array
    ) -> tuple[Array, Outcome]:
        """Batch: images uint8 [B, H, W, 3], text int [B, S] (0 = padding), index int [B]."""
        m = self.modules
        pixels = lavit.normalize_images(batch["images"])
        image = lavit.run(m, params, "encoder", pixels, method="embed")
        text = lavit.run(m, params, "text_tower", batch["text"])
        scale, bias = lavit.run(m, params, "contrastive")
        same = (batch["index"][:, None] == batch["index"][None, :]).astype(jnp.float32)
        loss, accuracy = losses.sigmoid_contrastive(image, text, same, scale, bias)
        return loss, Outcome({"accuracy": accuracy, "scale": scale}, codebook)


@dataclasses.dataclass(frozen=True)
class TokenizerPhase:
    """The fields of a tokenizer phase that change its computation (see `configs/twemoji.py`)."""

    quantize: bool
    selection: str
    kept_share: float
    share_weight: float
    entropy_weight: float
    commitment: float
    pixel_weight: float
    train_selector: bool

    def __post_init__(self) -> None:
        if self.selection not in ("sample", "greedy"):
            raise ValueError(f"selection must be 'sample' or 'greedy', got {self.selection!r}")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Stage one.  Paper: Eq. 4, plus commitment and the one-pass pixel head (SPEC 6)."""

    modules: Modules
    phase: TokenizerPhase

    def __call__(
        self, params: Params, codebook: Codebook, batch: Batch, key: Array
    ) -> tuple[Array, Outcome]:
        """Batch: images uint8 [B, H, W, 3]."""
        m, phase = self.modules, self.phase
        select_key, seed_key = jax.random.split(key)
        x = jax.lax.stop_gradient(lavit.encode_image(m, params, batch["images"]))
        log_probs = lavit.run(m, params, "selector", x)
        decided = self._decide(log_probs, select_key)
        scores = log_probs[..., selector.KEEP] - log_probs[..., selector.DROP]
        keep = selector.limit_kept(decided, scores, m.config.max_kept)
        encode, decode, valid = self._forms(params, keep)
        z = quantizer.l2_normalize(lavit.run(m, params, "quantizer", encode(x)))
        ids = quantizer.nearest_code(jax.lax.stop_gradient(z), codebook.codes_KC)
        nearest = quantizer.lookup(ids, codebook.codes_KC)
        commitment = losses.masked_mean(((z - nearest) ** 2).sum(axis=-1), valid)
        x_rec = decode(quantizer.straight_through(z, nearest) if phase.quantize else z)
        cosine = losses.cosine_distance(x, x_rec)
        share = losses.share_penalty(decided, phase.kept_share)
        pictures = lavit.paint(m, params, jax.lax.stop_gradient(x_rec))
        pixel = jnp.abs(pictures - batch["images"].astype(jnp.float32) / 255.0).mean()
        loss = cosine + phase.pixel_weight * pixel
        if phase.train_selector:
            entropy = selector.keep_entropy(log_probs)
            loss = loss + phase.share_weight * share + phase.entropy_weight * entropy
        new_codebook = codebook
        if phase.quantize:
            loss = loss + phase.commitment * commitment
            flat = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
            new_codebook = quantizer.update_codebook(
                codebook, flat, ids.reshape(-1), valid.reshape(-1), seed_key, m.config.quantizer
            )
        metrics = {
            "cosine_loss": cosine,
            "pixel_loss": pixel,
            "share_loss": share,
            **_kept_metrics(decided, log_probs),
        }
        if phase.quantize:
            metrics |= {"commitment": commitment, **_code_metrics(m, new_codebook, codebook)}
        return loss, Outcome(metrics, new_codebook)

    def _decide(self, log_probs_BN2: Array, key: Array) -> Array:
        """Keep decisions; they carry gradient only where the selector learns."""
        if self.phase.selection == "sample":
            keep = selector.gumbel_keep(log_probs_BN2, key)
        else:
            keep = selector.greedy_keep(log_probs_BN2)
        return keep if self.phase.train_selector else jax.lax.stop_gradient(keep)

    def _forms(self, params: Params, keep_BN: Array) -> tuple[Function, Function, Array]:
        """Merger and decoder for these decisions, and which of their tokens are real.

        A selector that learns needs the masked forms over all N patches: its gradient runs
        through the masks. With the selector frozen both run on the kept patches alone.
        """
        m = self.modules
        if self.phase.train_selector:
            return (
                lambda x: lavit.run(m, params, "merger", x, keep_BN),
                lambda codes: lavit.run(m, params, "decoder", codes, keep_BN, method="masked"),
                jax.lax.stop_gradient(keep_BN),
            )
        kept = selector.kept_index(keep_BN, m.config.max_kept)
        return (
            lambda x: lavit.run(m, params, "merger", x, keep_BN, kept, method="kept_features"),
            lambda codes: lavit.run(m, params, "decoder", codes, kept.valid_BL),
            kept.valid_BL.astype(jnp.float32),
        )


def _kept_metrics(keep_BN: Array, log_probs_BN2: Array) -> dict[str, Array]:
    share_B = jax.lax.stop_gradient(keep_BN).mean(axis=1)
    greedy_B = (log_probs_BN2[..., selector.KEEP] > log_probs_BN2[..., selector.DROP]).mean(axis=1)
    return {
        "kept_mean": share_B.mean(),
        "kept_min": share_B.min(),
        "kept_max": share_B.max(),
        "kept_greedy": greedy_B.mean(),
        "selector_entropy": selector.keep_entropy(log_probs_BN2),
    }


def _code_metrics(modules: Modules, new: Codebook, old: Codebook) -> dict[str, Array]:
    uniform = new.count_K.mean()
    floor = modules.config.quantizer.reseed_below * uniform
    moved = (new.count_K > old.count_K) & (old.count_K * modules.config.quantizer.decay < floor)
    return {
        "codebook_perplexity": quantizer.perplexity(new.count_K),
        "codebook_in_use": (new.count_K > 0.1 * uniform).mean(),
        "dead_codes": moved.sum().astype(jnp.float32),
    }


@dataclasses.dataclass(frozen=True)
class Unified:
    """Stage two: next token, text or visual, over packed mixed rows.  Paper: Eq. 6.

    Attributes:
      modules: the model.
      z_weight: of the squared log normaliser, which keeps logits from drifting (0 is the paper).
    """

    modules: Modules
    z_weight: float = 0.0

    def __call__(
        self, params: Params, codebook: Codebook, batch: Batch, key: Array
    ) -> tuple[Array, Outcome]:
        """Batch: see `data/packing.py`."""
        m = self.modules
        ids, segments = batch["ids"], batch["segment_ids"]
        features = self._condition(params, batch["images"], batch["keep"])
        embeds = lavit.run(m, params, "llm", ids, method="embed")
        x = lavit.embed_mixed(embeds, features, batch["feature"], m.config.patches)
        llm = m.config.llm
        readable = attention.packed_rows(segments, llm.head_dim)
        hidden, _ = lavit.run(m, params, "llm", x, batch["positions"], readable, method="hidden")
        # Each place predicts the next one; the last has none. Rolling keeps rows whole, so that
        # their tokens stay where they are when devices share a row.
        targets = jnp.roll(ids, -1, axis=1)
        weights = jnp.roll(batch["loss"].astype(jnp.float32).at[:, 0].set(0.0), -1, axis=1)
        # Where the layers stand in the program one after the other, so do the vocabulary's parts.
        unroll = llm.vocab_chunks if llm.unroll >= llm.depth else 1
        head = params["llm"]["lm_head"]["kernel"]
        scored = vocabulary.next_token(hidden, head, targets, llm.vocab_chunks, unroll)
        visual = weights * (targets > llm.image_start)
        text = weights - visual
        loss = losses.masked_mean(scored.loss, weights)
        if self.z_weight:
            loss += self.z_weight * losses.masked_mean(scored.log_z**2, weights)
        return loss, Outcome(
            {
                "text_loss": losses.masked_mean(scored.loss, text),
                "visual_loss": losses.masked_mean(scored.loss, visual),
                "text_accuracy": losses.masked_mean(scored.correct, text),
                "visual_accuracy": losses.masked_mean(scored.correct, visual),
                "useful_tokens": (segments > 0).mean(),
            },
            codebook,
        )

    def _condition(self, params: Params, images_BJHWC: Array, keep_BJN: Array) -> Array:
        """Continuous features of every row's condition images, [B, J, L, E]."""
        m = self.modules
        rows, slots = images_BJHWC.shape[:2]
        images = images_BJHWC.reshape(rows * slots, *images_BJHWC.shape[2:])
        x = jax.lax.stop_gradient(lavit.encode_image(m, params, images))
        keep = keep_BJN.reshape(rows * slots, -1).astype(jnp.float32)
        kept = selector.kept_index(keep, m.config.max_kept)
        features = lavit.run(m, params, "conditioner", x, keep, kept)
        return features.reshape(rows, slots, *features.shape[1:])


# Modules whose parameters each objective reads, trained or not.
READS: dict[str, tuple[str, ...]] = {
    "contrastive": ("encoder", "text_tower", "contrastive"),
    "tokenizer": ("encoder", "selector", "merger", "quantizer", "decoder", "pixel_head"),
    "unified": (
        "encoder",
        "selector",
        "merger",
        "quantizer",
        "decoder",
        "pixel_head",
        "conditioner",
        "llm",
    ),
}


def make_objective(modules: Modules, phase: Mapping[str, Any]) -> Objective:
    """The objective a phase's config names.

    Raises:
      ValueError: unknown objective or selection.
    """
    kind = phase["objective"]
    if kind == "contrastive":
        return Contrastive(modules)
    if kind == "unified":
        return Unified(modules, phase.get("z_weight", 0.0))
    if kind == "tokenizer":
        fields = {
            name: phase[name]
            for name in (
                "quantize",
                "selection",
                "kept_share",
                "share_weight",
                "entropy_weight",
                "commitment",
                "pixel_weight",
            )
        }
        trained = "selector" in phase["modules"]
        return Tokenizer(modules, TokenizerPhase(**fields, train_selector=trained))
    raise ValueError(f"objective must be one of {sorted(READS)}, got {kind!r}")
