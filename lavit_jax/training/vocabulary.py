"""Cross-entropy over a large vocabulary, a part of it at a time.

All logits of a step of the 7B model would take gigabytes in float32. Here the loss walks over parts
of the vocabulary with a running maximum and sum, and walks over them again for the gradient. Each
part's weights are gathered, and their gradient is summed over devices, exactly once a walk.

Legend: B rows, S row length, E llm width, V vocabulary, n parts of W words each (n W >= V).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lavit_jax.models import placement
from lavit_jax.training import losses

LANES = 128


class Scored(NamedTuple):
    """What is known of each prediction, float32 [B, S] each.

    Attributes:
      loss: cross-entropy.
      log_z: log of the sum of exponentials of all logits.
      correct: 1 where the target has the highest logit.
    """

    loss: Float[Array, "B S"]
    log_z: Float[Array, "B S"]
    correct: Float[Array, "B S"]


def next_token(
    hidden_BSE: Float[Array, "B S E"],
    kernel_EV: Float[Array, "E V"],
    targets_BS: Int[Array, "B S"],
    chunks: int,
    unroll: int = 1,
) -> Scored:
    """Scores the targets, and nothing else of the vocabulary.

    Args:
      hidden_BSE: hidden states in the compute dtype.
      kernel_EV: the language model's head, float32.
      targets_BS: ids.
      chunks: n. With 1 all logits are kept for the backward pass.
      unroll: parts that stand in the program at a time.
    """
    if chunks == 1:
        logits = _logits(hidden_BSE, kernel_EV.astype(hidden_BSE.dtype))
        loss, correct = losses.next_token(logits, targets_BS)
        return Scored(loss, jax.nn.logsumexp(logits, axis=-1), correct)
    return _chunked(hidden_BSE, kernel_EV, targets_BS, chunks, unroll)


class _Running(NamedTuple):
    top_BS: Array  # highest logit so far
    total_BS: Array  # sum of exponentials, relative to it
    picked_BS: Array  # logit of the target
    best_BS: Array  # id of the highest logit


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked(hidden: Array, kernel: Array, targets: Array, chunks: int, unroll: int) -> Scored:
    return _forward(hidden, kernel, targets, chunks, unroll)[0]


def _forward(
    hidden: Array, kernel: Array, targets: Array, chunks: int, unroll: int
) -> tuple[Scored, tuple[Array, ...]]:
    vocab = kernel.shape[1]
    parts_nEW = _parts(kernel.astype(hidden.dtype), chunks)

    def look(so_far: _Running, part: tuple[Array, Array]) -> tuple[_Running, None]:
        index, kernel_EW = part
        logits, ids_W = _part_logits(hidden, kernel_EW, index, vocab)
        top = jnp.maximum(so_far.top_BS, logits.max(axis=-1))
        total = so_far.total_BS * jnp.exp(so_far.top_BS - top)
        total += jnp.exp(logits - top[..., None]).sum(axis=-1)
        hit = ids_W == targets[..., None]
        picked = so_far.picked_BS + jnp.where(hit, logits, 0.0).sum(axis=-1)
        best = jnp.where(top > so_far.top_BS, logits.argmax(axis=-1) + ids_W[0], so_far.best_BS)
        return _Running(top, total, picked, best), None

    zeros = placement.constrain(jnp.zeros(targets.shape, jnp.float32), "batch", "length")
    start = _Running(zeros - jnp.inf, zeros, zeros, zeros.astype(targets.dtype))
    last, _ = jax.lax.scan(look, start, (jnp.arange(chunks), parts_nEW), unroll=unroll)
    log_z = last.top_BS + jnp.log(last.total_BS)
    correct = (last.best_BS == targets).astype(jnp.float32)
    return Scored(log_z - last.picked_BS, log_z, correct), (hidden, kernel, targets, log_z)


def _backward(
    chunks: int, unroll: int, saved: tuple[Array, ...], grads: Scored
) -> tuple[Array, Array, None]:
    hidden, kernel, targets, log_z = saved
    vocab = kernel.shape[1]
    parts_nEW = _parts(kernel.astype(hidden.dtype), chunks)

    def look(dhidden: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        index, kernel_EW = part
        logits, ids_W = _part_logits(hidden, kernel_EW, index, vocab)
        weight = (grads.loss + grads.log_z)[..., None]
        dlogits = jnp.exp(logits - log_z[..., None]) * weight
        dlogits -= jnp.where(ids_W == targets[..., None], grads.loss[..., None], 0.0)
        dlogits = dlogits.astype(hidden.dtype)
        dhidden += jnp.einsum("bsw,ew->bse", dlogits, kernel_EW, preferred_element_type=jnp.float32)
        dkernel = jnp.einsum("bse,bsw->ew", hidden, dlogits, preferred_element_type=jnp.float32)
        return placement.constrain(dhidden, "batch", "length", "act_embed"), placement.constrain(
            dkernel, "embed", "vocab"
        )

    start = placement.constrain(
        jnp.zeros(hidden.shape, jnp.float32), "batch", "length", "act_embed"
    )
    dhidden, dparts_nEW = jax.lax.scan(look, start, (jnp.arange(chunks), parts_nEW), unroll=unroll)
    dkernel = dparts_nEW.transpose(1, 0, 2).reshape(kernel.shape[0], -1)[:, :vocab]
    return dhidden.astype(hidden.dtype), dkernel.astype(kernel.dtype), None


_chunked.defvjp(_forward, _backward)


def _parts(kernel_EV: Array, chunks: int) -> Array:
    """[n, E, W]; each device cuts up what it holds of the kernel."""
    width, vocab = kernel_EV.shape
    size = -(-vocab // (chunks * LANES)) * LANES
    padded = jnp.pad(kernel_EV, ((0, 0), (0, chunks * size - vocab)))
    parts = padded.reshape(width, chunks, size).transpose(1, 0, 2)
    return placement.constrain(parts, None, "embed", "vocab")


def _part_logits(hidden: Array, kernel_EW: Array, index: Array, vocab: int) -> tuple[Array, Array]:
    """Logits of one part and the ids they belong to; places past the vocabulary get none."""
    size = kernel_EW.shape[1]
    ids_W = index * size + jnp.arange(size)
    logits = _logits(hidden, placement.constrain(kernel_EW, None, "act_vocab"))
    return jnp.where(ids_W < vocab, logits, jnp.finfo(jnp.float32).min), ids_W


def _logits(hidden: Array, kernel: Array) -> Array:
    logits = jnp.einsum("bse,ev->bsv", hidden, kernel, preferred_element_type=jnp.float32)
    return placement.constrain(logits, "batch", "length", "act_vocab")
