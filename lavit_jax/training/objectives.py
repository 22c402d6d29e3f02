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

from lavit_jax.models import attention, diffusion, lavit, pixels, quantizer, selector
from lavit_jax.models.lavit import Modules, Params
from lavit_jax.models.quantizer import Codebook
from lavit_jax.models.unet import Condition
from lavit_jax.training import losses, vocabulary

Batch = Mapping[str, Array]
Function = Callable[[Array], Array]

# Straight-through Gumbel for a selector that learns, its likelier decision once it is frozen, and
# any patches while there is no selector worth asking.
SELECTIONS = ("sample", "greedy", "random")
SHARES = ("image", "batch")  # what the kept share is a share of


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
    """Stage zero: image and caption embeddings agree (sigmoid loss), patch features are local.

    Attributes:
      modules: the model.
      pixel_weight: of the pixel head's linear readout of every patch.
      alike_weight: of `losses.alikeness`.
    """

    modules: Modules
    pixel_weight: float
    alike_weight: float

    def __call__(
        self, params: Params, codebook: Codebook, batch: Batch, key: Array
    ) -> tuple[Array, Outcome]:
        """Batch: images uint8 [B, H, W, 3], text int [B, S] (0 = padding), index int [B]."""
        m = self.modules
        pixels = lavit.normalize_images(batch["images"])
        x = lavit.run(m, params, "encoder", pixels, method="features_with_cls")
        image = lavit.run(m, params, "encoder", x[:, 0], method="head")
        text = lavit.run(m, params, "text_tower", batch["text"])
        scale, bias = lavit.run(m, params, "contrastive")
        same = (batch["index"][:, None] == batch["index"][None, :]).astype(jnp.float32)
        loss, accuracy = losses.sigmoid_contrastive(image, text, same, scale, bias)
        readout = lavit.run(m, params, "pixel_head", x[:, 1:], method="readout")
        pixel = _pixel_loss(readout, batch["images"])
        alike = losses.alikeness(x[:, 1:])
        loss = loss + self.pixel_weight * pixel + self.alike_weight * alike
        metrics = {
            "accuracy": accuracy,
            "scale": scale,
            "pixel_loss": pixel,
            "alikeness": alike,
        }
        return loss, Outcome(metrics, codebook)


def _slow_gradient(x: Array, share: float) -> Array:
    """x itself, through which only a share of the gradient passes."""
    return share * x + (1 - share) * jax.lax.stop_gradient(x)


def _pixel_loss(pictures_BHWC: Array, images_BHWC: Array) -> Array:
    return jnp.abs(pictures_BHWC - images_BHWC.astype(jnp.float32) / 255.0).mean()


@dataclasses.dataclass(frozen=True)
class TokenizerPhase:
    """The fields of a tokenizer phase that change its computation (see `configs/twemoji.py`)."""

    quantize: bool
    selection: str
    kept_share: float
    share_over: str
    share_weight: float
    entropy_weight: float
    commitment: float
    pixel_weight: float
    pixel_gradient: float
    train_selector: bool

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {SELECTIONS}, got {self.selection!r}")
        if self.share_over not in SHARES:
            raise ValueError(f"share_over must be one of {SHARES}, got {self.share_over!r}")


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
        decided, scores = self._decide(log_probs, select_key)
        keep = selector.limit_kept(decided, scores, m.config.max_kept)
        encode, decode, valid = self._forms(params, keep)
        z = quantizer.l2_normalize(lavit.run(m, params, "quantizer", encode(x)))
        ids = quantizer.nearest_code(jax.lax.stop_gradient(z), codebook.codes_KC)
        nearest = quantizer.lookup(ids, codebook.codes_KC)
        commitment = losses.masked_mean(((z - nearest) ** 2).sum(axis=-1), valid)
        x_rec = decode(quantizer.straight_through(z, nearest) if phase.quantize else z)
        cosine = losses.cosine_distance(x, x_rec)
        share = losses.share_penalty(decided, phase.kept_share, phase.share_over)
        pictures = lavit.paint(m, params, _slow_gradient(x_rec, phase.pixel_gradient))
        pixel = _pixel_loss(pictures, batch["images"])
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

    def _decide(self, log_probs_BN2: Array, key: Array) -> tuple[Array, Array]:
        """Keep decisions and what ranks them; with gradient only where the selector learns."""
        scores = log_probs_BN2[..., selector.KEEP] - log_probs_BN2[..., selector.DROP]
        if self.phase.selection == "random":
            return selector.random_keep(key, scores.shape, self.phase.kept_share)
        if self.phase.selection == "sample":
            keep = selector.gumbel_keep(log_probs_BN2, key)
        else:
            keep = selector.greedy_keep(log_probs_BN2)
        return (keep if self.phase.train_selector else jax.lax.stop_gradient(keep)), scores

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
        x = lavit.run(m, params, "llm", ids, method="embed")
        if batch["images"].shape[1]:  # rows of stored ids and text alone need no encoder
            features = self._condition(params, batch["images"], batch["keep"])
            x = lavit.embed_mixed(x, features, batch["feature"], m.config.patches)
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


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The pixel decoder: noise prediction conditioned on x_rec.  Paper: Eq. 5.

    Tokenizer and autoencoder are frozen: whatever the phase trains, no gradient reaches them.

    Attributes:
      modules: of a config with `pixels`.
      condition_drop: share of pictures painted without their condition, for guidance (ours: 0.1).
    """

    modules: Modules
    condition_drop: float

    def __post_init__(self) -> None:
        if self.modules.config.pixels is None:
            raise ValueError("objective 'diffusion' needs config.model.pixels")
        if not 0 <= self.condition_drop < 1:
            raise ValueError(f"condition_drop must lie in [0, 1), got {self.condition_drop}")

    def __call__(
        self, params: Params, codebook: Codebook, batch: Batch, key: Array
    ) -> tuple[Array, Outcome]:
        """Batch: images uint8 [B, H, W, 3]; pixels likewise, where pictures are painted larger."""
        m, config = self.modules, self.modules.config.pixels
        assert config is not None
        latent_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
        tokens = lavit.tokenize(m, params, codebook, batch["images"])
        x_rec = jax.lax.stop_gradient(
            lavit.detokenize(m, params, codebook, tokens.ids_BL, tokens.kept.valid_BL)
        )
        pictures = batch.get("pixels", batch["images"]).astype(jnp.float32) / 255.0
        x = jax.lax.stop_gradient(
            pixels.to_latents(config, params.get("lowres_autoencoder"), pictures, latent_key)
        )
        noise = jax.random.normal(noise_key, x.shape)
        time = jax.random.randint(time_key, x.shape[:1], 0, config.noise.steps)
        noisy, target = diffusion.add_noise(config.noise, x, noise, time)
        condition = Condition(lavit.run(m, params, "lowres_head", x_rec))
        dropped = jax.random.bernoulli(drop_key, self.condition_drop, x.shape[:1])
        condition = pixels.drop_condition(condition, dropped)
        predicted = lavit.run(m, params, "lowres_unet", noisy, time, condition)
        errors_B = ((predicted - target) ** 2).mean(axis=(1, 2, 3))
        late = (time >= config.noise.steps // 2).astype(jnp.float32)
        return errors_B.mean(), Outcome(
            {
                "denoise_noisy": losses.masked_mean(errors_B, late),
                "denoise_clear": losses.masked_mean(errors_B, 1 - late),
            },
            codebook,
        )


# Modules whose parameters each objective reads, trained or not.
READS: dict[str, tuple[str, ...]] = {
    "contrastive": ("encoder", "text_tower", "contrastive", "pixel_head"),
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
    "diffusion": (
        "encoder",
        "selector",
        "merger",
        "quantizer",
        "decoder",
        "lowres_head",
        "lowres_unet",
    ),
}
# What a phase may also hold, frozen, by its field `frozen`.
MODULES = frozenset({name for names in READS.values() for name in names} | {"lowres_autoencoder"})


def make_objective(modules: Modules, phase: Mapping[str, Any]) -> Objective:
    """The objective a phase's config names.

    Raises:
      ValueError: unknown objective, selection or share.
    """
    kind = phase["objective"]
    if kind == "contrastive":
        return Contrastive(modules, phase["pixel_weight"], phase["alike_weight"])
    if kind == "unified":
        return Unified(modules, phase.get("z_weight", 0.0))
    if kind == "diffusion":
        return Diffusion(modules, phase["condition_drop"])
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
                "pixel_gradient",
            )
        }
        trained = "selector" in phase["modules"]
        over = phase.get("share_over", SHARES[0])
        return Tokenizer(modules, TokenizerPhase(**fields, share_over=over, train_selector=trained))
    raise ValueError(f"objective must be one of {sorted(READS)}, got {kind!r}")
