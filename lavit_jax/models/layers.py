"""Building blocks shared by the vision modules: projections, norms, MLP, stacking.

Legend: B batch, S tokens, D width, H heads, d head width. Every parameter names its logical
axes where it is created; `parallel/rules.py` maps them to the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from lavit_jax.models import int8, matmul, placement

Initializer = Callable[..., Any]

# Fan-in scaling: 0.027 at the published width 1408 (whose code uses 0.02), and sane at width 64.
fan_in_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
embed_init = nn.initializers.normal(0.02)


def grid_init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initial positions of a square grid of patches: sines and cosines of row and column.

    Places that are near each other start alike, so that attention finds its neighbours (and a
    decoder's queries the codes of their own place) from the first steps on (ours).

    Args:
      key: not used; the initial values are always the same.
      shape: [N or 1 + N, D]; an odd one out, [CLS], comes first and starts at zero.
      dtype: of the values.
    """
    count, width = shape
    side = math.isqrt(count)
    waves = width // 4
    # From half a wave over two patches to a quarter of a wave over the grid.
    frequency = math.pi / 2 * jnp.geomspace(1.0, 1.0 / side, waves)
    row, column = jnp.divmod(jnp.arange(side**2), side)
    angles = [place[:, None] * frequency for place in (row, column)]
    table = jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=1)
    return jnp.pad(table, ((count - side**2, 0), (0, width - 4 * waves))).astype(dtype)


def with_axes(init: Initializer, *axes: str | None) -> Initializer:
    """Attaches logical axis names to what an initializer makes."""
    return nn.with_logical_partitioning(init, axes)


# How a layer multiplies with its kernel, by name; "plain" is in the compute dtype.
_PROJECT: dict[str, Any] = {"plain": matmul.project, "int8": int8.project}


def _multiply(how: str) -> Any:
    """A `dot_general` for flax that multiplies as named."""

    def dot_general(x: Array, kernel: Array, dimensions: Any, **precision: Any) -> Array:
        return _PROJECT[how](x, kernel, len(dimensions[0][0]))

    return dot_general


def cast_all_but_kernel(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """What flax casts to the compute dtype before a matmul, which casts the kernel itself."""
    x, kernel, bias = args
    return [x.astype(dtype), kernel, None if bias is None else bias.astype(dtype)]


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: jnp.dtype,
    name: str | None = None,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = fan_in_init,
    how: str = "plain",
) -> nn.Dense:
    """A linear layer [.., in] -> [.., features] whose kernel has the given logical axes."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        dot_general=_multiply(how),
        promote_dtype=cast_all_but_kernel,
        kernel_init=with_axes(kernel_init, *axes),
        bias_init=with_axes(nn.initializers.zeros_init(), axes[1]),
        name=name,
    )


def head_projection(
    heads: int,
    head_dim: int,
    dtype: jnp.dtype,
    name: str | None = None,
    *,
    use_bias: bool = True,
    how: str = "plain",
) -> nn.DenseGeneral:
    """A linear layer [.., D] -> [.., H, d]."""
    return nn.DenseGeneral(
        (heads, head_dim),
        use_bias=use_bias,
        dtype=dtype,
        dot_general=_multiply(how),
        promote_dtype=cast_all_but_kernel,
        kernel_init=with_axes(fan_in_init, "embed", "heads", "head_dim"),
        bias_init=with_axes(nn.initializers.zeros_init(), "heads", "head_dim"),
        name=name,
    )


def merge_heads(
    features: int,
    dtype: jnp.dtype,
    name: str | None = None,
    *,
    use_bias: bool = True,
    how: str = "plain",
) -> nn.DenseGeneral:
    """A linear layer [.., H, d] -> [.., D]."""
    return nn.DenseGeneral(
        features,
        axis=(-2, -1),
        use_bias=use_bias,
        dtype=dtype,
        dot_general=_multiply(how),
        promote_dtype=cast_all_but_kernel,
        kernel_init=with_axes(
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1)),
            "heads",
            "head_dim",
            "embed",
        ),
        bias_init=with_axes(nn.initializers.zeros_init(), "embed"),
        name=name,
    )


FEW_ROWS = 32


class RowDense(nn.Module):
    """A linear layer without bias whose kernel lies [out, in], fast for few rows on a CPU.

    XLA:CPU multiplies matrices by copying both into tiles first; for a few rows that copy of the
    kernel takes several times as long as reading it. A sum of products is compiled to one loop that
    reads the kernel once, at the speed of memory (Ours).

    Of its outputs those from `first` on are computed.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"], first: int = 0) -> Float[Array, "*S F"]:
        shape = (self.features, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(-1, -2), shape)
        kernel = kernel[first:].astype(self.dtype)
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        if 1 < len(rows) <= FEW_ROWS and self.dtype == jnp.float32:
            out = (kernel * rows[:, None]).sum(axis=-1)
        else:
            # One row is a matrix times a vector, which needs no tiles.
            out = jnp.dot(rows, kernel.T)
        return out.reshape(*x.shape[:-1], len(kernel))


class VocabHead(nn.Module):
    """A linear layer without bias from hidden states to scores of ids.

    Of its outputs those from `first` on are computed.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"], first: int = 0) -> Float[Array, "*S F"]:
        init = with_axes(fan_in_init, "embed", "vocab")
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        return jnp.dot(x.astype(self.dtype), kernel[:, first:].astype(self.dtype))


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, always computed in float32, returned in the input's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        norm = nn.LayerNorm(
            epsilon=self.eps,
            dtype=jnp.float32,
            use_fast_variance=False,
            scale_init=with_axes(nn.initializers.ones_init(), "norm"),
            bias_init=with_axes(nn.initializers.zeros_init(), "norm"),
            name="norm",
        )
        return norm(x).astype(x.dtype)


def widened(x: Array) -> Array:
    """In float32, or in float64 where that is what is computed in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit_rms(x: Array, eps: float = 1e-6) -> Array:
    """x / rms(x) over the last axis, at least in float32."""
    h = widened(x)
    return h * jax.lax.rsqrt((h * h).mean(axis=-1, keepdims=True) + eps)


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, as every part of LaVIT uses it."""
    return jax.nn.gelu(x, approximate=False)


class Mlp(nn.Module):
    """Linear D -> hidden, GELU, Linear hidden -> D."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        h = named(dense(self.hidden, ("embed", "mlp"), self.dtype, "fc1")(x_BSD), "up")
        h = placement.constrain(gelu(h), "batch", "length", "act_mlp")
        return dense(x_BSD.shape[-1], ("mlp", "embed"), self.dtype, "fc2")(h)


# What each policy keeps of a block for the backward pass, beside the block's input.
_NAMED: dict[str, tuple[str, ...]] = {
    "context": ("context",),
    "projections": ("query", "key", "value", "context"),
    "attention": ("query", "key", "value", "context", "attended"),
    "most": ("query", "key", "value", "context", "attended", "gate"),
    "dots": ("query", "key", "value", "context", "attended", "gate", "up"),
}
_REMAT: dict[str, Any] = {
    "full": None,
    **{
        policy: jax.checkpoint_policies.save_only_these_names(*names)
        for policy, names in _NAMED.items()
    },
}


def named(x: Array, name: str) -> Array:
    """Gives a value the name that remat policies keep it by."""
    return checkpoint_name(x, name)


def border(x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """The residual stream between two blocks, laid out as everywhere."""
    return placement.constrain(x_BSD, "batch", "length", "act_embed")


def embedded(
    ids_BS: Int[Array, "B S"], table_VD: Float[Array, "V D"], dtype: jnp.dtype
) -> Float[Array, "B S D"]:
    """Rows of a table, in the compute dtype.

    Each device looks up the tokens of all that share the table with it, in its own columns; then
    they exchange. That moves embeddings of tokens, where gathering the table would move the whole
    vocabulary.
    """
    ids_BS = placement.constrain(ids_BS, "group", "length")
    x_BSD = table_VD[ids_BS].astype(dtype)
    return border(placement.constrain(x_BSD, "group", "length", "embed"))


def spread_heads(x_BSHd: Float[Array, "B S H d"]) -> Float[Array, "B S H d"]:
    """Queries, keys or values, heads split over tensor neighbours."""
    return placement.constrain(x_BSHd, "batch", "length", "act_heads", None)


def projected(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Queries, keys and values of a vision block, spread and named for remat policies."""
    q, k, v = spread_heads(q), spread_heads(k), spread_heads(v)
    return named(q, "query"), named(k, "key"), named(v, "value")


def attended(x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """The residual stream after attention, laid out and named for remat policies."""
    return named(border(x_BSD), "attended")


def stack(
    block: type[nn.Module],
    depth: int,
    remat: str,
    unroll: int,
    *,
    in_axes: Any = nn.broadcast,
    out_axes: Any = 0,
) -> Callable[..., nn.Module]:
    """Scans `depth` copies of a block whose call is (carry, *shared) -> (carry, None).

    Parameters get a leading axis named "layers"; `remat` names what backward recomputes;
    `unroll` copies stand in the program at a time (1 compiles fastest and suits a TPU).
    """
    if remat != "none":
        # A loop keeps what is recomputed apart from what it repeats; straight-line code does not.
        straight = unroll >= depth
        block = nn.remat(block, prevent_cse=straight, policy=_REMAT[remat])  # type: ignore[assignment]
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        out_axes=out_axes,
        length=depth,
        unroll=unroll,
        check_constancy_invariants=False,  # would trace every block twice
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def gather_tokens(x_BSD: Array, index_BL: Array) -> Array:
    """Takes tokens index_BL of every row: [B, S, ...] -> [B, L, ...]."""
    index = index_BL.reshape(index_BL.shape + (1,) * (x_BSD.ndim - 2))
    return jnp.take_along_axis(x_BSD, index, axis=1)


def axis_sizes(x: Array, names: Sequence[str]) -> dict[str, int]:
    """Names the sizes of an array's axes, for messages."""
    return dict(zip(names, x.shape, strict=True))
