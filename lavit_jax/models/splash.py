"""JAX's splash attention (a Pallas TPU kernel) on packed rows, placed on the ambient mesh.

Called by `attention.py` alone. Blocks of keys that causality hides are never computed, and nothing
of size [S, S] is ever stored.

Legend: B batch, S tokens, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from lavit_jax.models import placement

LANES = 128
BLOCK = 512
CONTEXT = "context"  # names the output and its log sum of exponentials, for remat policies


def fits(length: int, head_dim: int) -> bool:
    """Whether the kernel computes rows of this length: blocks and heads are whole lanes."""
    parts = placement.axis_parts("length")
    return length % (parts * LANES) == 0 and head_dim % LANES == 0


def causal(
    q_BSHd: Float[Array, "B S H d"],
    k_BSGd: Float[Array, "B S G d"],
    v_BSGd: Float[Array, "B S G d"],
    segments_BS: Int[Array, "B S"],
    *,
    interpret: bool = False,
) -> Float[Array, "B S H d"]:
    """Attention of each token to those before it in its own segment.

    Args:
      q_BSHd: queries; H is a multiple of G.
      k_BSGd: keys.
      v_BSGd: values.
      segments_BS: segment of each token. Padding (0) reads padding.
      interpret: computes the kernel step by step on any backend, for tests.

    Returns:
      [B, S, H, d] in the dtype of the queries.
    """
    q = (q_BSHd * q_BSHd.shape[-1] ** -0.5).transpose(0, 2, 1, 3)
    k, v = k_BSGd.transpose(0, 2, 1, 3), v_BSGd.transpose(0, 2, 1, 3)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        kernel = _kernel(q.shape[1], q.shape[2], 1, 1, interpret)
        out = _rows(kernel, q, k, v, segments_BS, segments_BS)
        return out.transpose(0, 2, 1, 3)
    names = ("batch", "act_heads", "length", None)
    here = placement.spec(q.shape, names, mesh)
    # Every part of the queries reads all keys before it.
    there = placement.spec(k.shape, (*names[:2], None, None), mesh)
    if here[1] != there[1]:  # fewer key heads than parts: each part would need a piece of one
        here, there = (PartitionSpec(s[0], None, *s[2:]) for s in (here, there))
    kernel = _kernel(
        q.shape[1],
        q.shape[2],
        placement.parts(mesh, here[1]),
        placement.parts(mesh, here[2]),
        interpret,
    )
    kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(*here[1:3])))
    run = jax.shard_map(
        _rows,
        mesh=mesh,
        in_specs=(
            kernel_spec,
            here,
            there,
            there,
            PartitionSpec(here[0], here[2]),
            PartitionSpec(here[0], None),
        ),
        out_specs=here,
        check_vma=False,
    )
    return run(kernel, q, k, v, segments_BS, segments_BS).transpose(0, 2, 1, 3)


def _rows(
    kernel: kernels.SplashAttentionKernel,
    q: Array,
    k: Array,
    v: Array,
    mine_BS: Array,
    all_BS: Array,
) -> Array:
    """One device's rows: [B, H, S, d]."""
    segments = kernels.SegmentIds(q=mine_BS, kv=all_BS)
    out: Any = jax.vmap(kernel)(q, k, v, segments)
    return out


@functools.lru_cache(maxsize=32)
def _masks(heads: int, length: int, parts: int) -> masks.MultiHeadMask:
    causal = masks.CausalMask((length, length), shard_count=parts)
    return masks.MultiHeadMask([causal] * heads)


def _kernel(
    heads: int, length: int, head_parts: int, length_parts: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    block = _block(length // length_parts)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernels.make_splash_mha(
        _masks(heads, length, length_parts),
        block_sizes=sizes,
        head_shards=head_parts,
        q_seq_shards=length_parts,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )


def _block(length: int) -> int:
    """The largest block, in whole lanes and at most `BLOCK`, that divides the length."""
    return next(size for size in range(BLOCK, 0, -LANES) if length % size == 0)
