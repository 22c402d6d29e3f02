"""Token merger: folds dropped patches into kept ones (SPEC 3).

Legend: B batch, N patches, Q positions the blocks run on (N masked, L gathered), D width.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lavit_jax.models import layers
from lavit_jax.models.attention import policy_attend
from lavit_jax.models.config import MergerConfig
from lavit_jax.models.selector import Kept

NORM_EPS = 1e-5


class MergerBlock(nn.Module):
    """Causal self-attention over kept patches, cross-attention to dropped ones, MLP."""

    config: MergerConfig

    def _attention(self, q_in: Array, kv_in: Array, mask_BQK: Array, name: str) -> Array:
        c = self.config
        dtype = c.compute_dtype
        q = layers.head_projection(c.heads, c.head_dim, dtype, f"{name}_query")(q_in)
        k = layers.head_projection(c.heads, c.head_dim, dtype, f"{name}_key")(kv_in)
        v = layers.head_projection(c.heads, c.head_dim, dtype, f"{name}_value")(kv_in)
        q, k, v = layers.projected(q, k, v)
        out = layers.named(policy_attend(q, k, v, mask_BQK, c.attention), "context")
        return layers.merge_heads(c.width, dtype, f"{name}_proj")(out)

    @nn.compact
    def __call__(
        self,
        x_BQD: Float[Array, "B Q D"],
        origin_BND: Float[Array, "B N D"],
        self_mask_BQQ: Float[Array, "B Q Q"],
        cross_mask_BQN: Float[Array, "B 1 N"],
    ) -> tuple[Float[Array, "B Q D"], None]:
        x_BQD = layers.border(x_BQD)
        h = layers.LayerNorm(NORM_EPS, name="norm0")(x_BQD)
        x_BQD = layers.attended(x_BQD + self._attention(h, h, self_mask_BQQ, "self"))
        h = layers.LayerNorm(NORM_EPS, name="norm1")(x_BQD)
        x_BQD = layers.attended(x_BQD + self._attention(h, origin_BND, cross_mask_BQN, "cross"))
        h = layers.LayerNorm(NORM_EPS, name="norm2")(x_BQD)
        mlp = layers.Mlp(self.config.hidden, self.config.compute_dtype, name="mlp")
        return layers.border(x_BQD + mlp(h)), None


class Merger(nn.Module):
    """Raw encoder features and keep decisions to merged features, in two equal forms."""

    config: MergerConfig

    def setup(self) -> None:
        c = self.config
        self.ln_vision = layers.LayerNorm(NORM_EPS)
        self.blocks = layers.stack(MergerBlock, c.depth, c.remat, c.unroll)(c)
        self.norm = layers.LayerNorm(NORM_EPS)

    def __call__(
        self, x_BND: Float[Array, "B N D"], keep_BN: Float[Array, "B N"]
    ) -> Float[Array, "B N D"]:
        """Masked over all N positions; carries gradient to `keep_BN`.

        Only kept positions mean anything in the result.
        """
        count = keep_BN.shape[1]
        eye = jnp.eye(count)
        readable_BQQ = keep_BN[:, None, :] * (1 - eye) + eye
        self_mask = readable_BQQ * jnp.tril(jnp.ones((count, count)))
        cross_mask = 1.0 - keep_BN[:, None, :]
        x, _ = self.blocks(x_BND, self.ln_vision(x_BND), self_mask, cross_mask)
        return self.norm(x)

    def gathered(
        self, x_BND: Float[Array, "B N D"], keep_BN: Float[Array, "B N"], kept: Kept
    ) -> Float[Array, "B L D"]:
        """On the kept patches alone, left-aligned; equals `__call__` at those, "clean" only.

        Raises:
          ValueError: the config asks for "published" attention, which has no gathered form
            (its eps lets dropped streams leak into kept ones).
        """
        if self.config.attention != "clean":
            raise ValueError(
                f"merger.attention={self.config.attention!r} has no gathered form; use 'clean'"
            )
        length = kept.index_BL.shape[1]
        causal = jnp.tril(jnp.ones((length, length)))
        real = kept.valid_BL[:, None, :].astype(jnp.float32)
        eye = jnp.eye(length)
        self_mask = causal * (real * (1 - eye) + eye)
        cross_mask = 1.0 - keep_BN[:, None, :]
        x_BLD = layers.gather_tokens(x_BND, kept.index_BL)
        x, _ = self.blocks(x_BLD, self.ln_vision(x_BND), self_mask, cross_mask)
        return self.norm(x)

    def kept_features(
        self, x_BND: Float[Array, "B N D"], keep_BN: Float[Array, "B N"], kept: Kept
    ) -> Float[Array, "B L D"]:
        """Merged features of the kept patches, by the cheapest form this attention allows."""
        if self.config.attention == "clean":
            return self.gathered(x_BND, keep_BN, kept)
        return layers.gather_tokens(self(x_BND, keep_BN), kept.index_BL)
