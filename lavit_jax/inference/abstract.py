"""Reading prompts and writing tokens with shapes instead of arrays, to compile ahead of time."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from lavit_jax.inference import decoding
from lavit_jax.inference.decoding import Context, Prompt
from lavit_jax.models import lavit, llama, placement
from lavit_jax.models.lavit import Modules
from lavit_jax.parallel import rules
from lavit_jax.parallel.compiled import Program

CACHE = ("layers", "batch", "act_heads", None, None)


def prefill_program(modules: Modules, mesh: Mesh, rows: int, places: int, room: int) -> Program:
    """Reads `rows` prompts of `places` tokens, with room for more."""
    llm, dtype = modules.llm, modules.config.llm.compute_dtype
    prompt = Prompt(
        _shape((rows, places, modules.config.llm.width), dtype, ("batch",), mesh),
        _shape((rows, places), jnp.bool_, ("batch",), mesh),
    )

    def read(params: Any, prompt: Prompt) -> tuple[Array, Context]:
        return decoding.prefill(llm, params, prompt, room)

    out = (None, _context(modules, mesh, rows, places + room, shardings=True))
    return Program(read, (_weights(modules, mesh), prompt), out, donate=())


def decode_program(modules: Modules, mesh: Mesh, rows: int, places: int) -> Program:
    """Reads one more token of every row, of `places` in the cache, and scores the next."""
    context = _context(modules, mesh, rows, places, shardings=False)

    def write(params: Any, context: Context, ids: Array) -> tuple[Array, Context]:
        return decoding.extend(modules.llm, params, context, ids)

    ids = _shape((rows,), jnp.int32, ("batch",), mesh)
    out = (None, _context(modules, mesh, rows, places, shardings=True))
    return Program(write, (_weights(modules, mesh), context, ids), out, donate=(1,))


def _weights(modules: Modules, mesh: Mesh) -> Any:
    """The language model's parameters as they are held for inference: matrices in bfloat16."""
    boxed = jax.eval_shape(lambda: lavit.init_params(modules, ("llm",), jax.random.key(0)))["llm"]
    dtype = modules.config.llm.compute_dtype
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, dtype if x.ndim > 1 else x.dtype, sharding=sharding
        ),
        nn.meta.unbox(boxed),
        rules.param_shardings(boxed, mesh),
    )


def _context(modules: Modules, mesh: Mesh, rows: int, places: int, *, shardings: bool) -> Any:
    cache = jax.eval_shape(lambda: llama.empty_cache(modules.config.llm, rows, places))
    context = Context(
        jax.tree.map(lambda x: _shape(x.shape, x.dtype, CACHE, mesh), cache),
        _shape((rows, places), jnp.bool_, ("batch",), mesh),
        _shape((rows,), jnp.int32, ("batch",), mesh),
        _shape((), jnp.int32, (), mesh),
    )
    return jax.tree.map(lambda x: x.sharding, context) if shardings else context


def _shape(shape: tuple[int, ...], dtype: Any, names: tuple[str | None, ...], mesh: Mesh) -> Any:
    padded = (*names, *[None] * (len(shape) - len(names)))
    sharding = NamedSharding(mesh, placement.spec(shape, padded, mesh, rules.RULES))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
