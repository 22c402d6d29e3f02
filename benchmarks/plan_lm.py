"""The language model's training step alone, planned: Llama 2 7B with its own 32,000 words, rows of
2,048 tokens, AdamW in float32, parameters split over all chips.

    python -m benchmarks.plan_lm --topology v5p-128 --remat full --chunks 8

This is what docs/pods.md holds against MaxText's step of the same model, which has no vision
modules. Needs libtpu, no TPU.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from configs import common
from lavit_jax import config as configs
from lavit_jax.models import attention, lavit
from lavit_jax.models.config import lavit_config
from lavit_jax.models.lavit import Modules
from lavit_jax.parallel import rules, topology, xla_flags
from lavit_jax.parallel.compiled import Program
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.planning import plan, table
from lavit_jax.planning.plan import Job
from lavit_jax.planning.workload import Workload, attention_flops, parameter_count
from lavit_jax.training import abstract, losses, vocabulary
from lavit_jax.training.optimizer import make_optimizer

WORDS, CODES, LENGTH = 32_000, 64, 2048


class State(NamedTuple):
    """What a step changes."""

    params: Any
    opt_state: Any


def modules_of(remat: str, chunks: int) -> Modules:
    """The published sizes with Llama's own vocabulary."""
    model = configs.load_config("configs/unified_7b.py").model
    model.quantizer.codes = CODES
    model.llm.update({"remat": remat, "vocab_chunks": chunks})
    return lavit.build_modules(lavit_config(model.to_dict(), WORDS - CODES - 2))


def program(modules: Modules, mesh: Mesh, rows: int) -> Program:
    """A step of packed rows: loss, gradients, AdamW."""
    llm, config = modules.llm, modules.config.llm
    tx = make_optimizer(common.optimizer(1e-4, b2=0.95, weight_decay=0.05, warmup=100), 1000)
    whole: Any = rules.replicated(mesh)

    # Where the layers stand in the program one after the other, so do the vocabulary's parts.
    unroll = config.vocab_chunks if config.unroll >= config.depth else 1

    def step(state: State, batch: dict[str, Array]) -> tuple[State, Array]:
        params, opt_state = state

        def loss_of(params: Any) -> Array:
            run: Any = functools.partial(llm.apply, {"params": params})
            x = run(batch["ids"], method="embed")
            segments = attention.packed_rows(batch["segments"], config.head_dim)
            hidden, _ = run(x, batch["positions"], segments, method="hidden")
            targets = jnp.roll(batch["ids"], -1, axis=1)
            kernel = params["lm_head"]["kernel"]
            scored = vocabulary.next_token(hidden, kernel, targets, config.vocab_chunks, unroll)
            return losses.masked_mean(scored.loss, batch["loss"])

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return State(optax.apply_updates(params, updates), opt_state), loss

    boxed = jax.eval_shape(lambda: lavit.init_params(modules, ("llm",), jax.random.key(0)))["llm"]
    shardings = rules.param_shardings(boxed, mesh)
    params = abstract.placed_like(nn.meta.unbox(boxed), shardings)
    moments = jax.eval_shape(tx.init, params)
    opt_shardings = optax.tree_map_params(
        tx, lambda _, s: s, moments, shardings, transform_non_params=lambda _: whole
    )
    dtypes = dict.fromkeys(("ids", "positions", "segments"), jnp.int32) | {"loss": jnp.float32}
    batch = {
        name: jax.ShapeDtypeStruct((rows, LENGTH), dtype, sharding=rules.batch_sharding(mesh))
        for name, dtype in dtypes.items()
    }
    state = State(params, abstract.placed_like(moments, opt_shardings))
    return Program(step, (state, batch), (State(shardings, opt_shardings), whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topology", default="v5p-128")
    parser.add_argument("--rows", type=int, default=4, help="a chip")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--chunks", type=int, default=8, help="parts of the vocabulary")
    parser.add_argument("--quick", action="store_true", help="compile with less effort")
    args = parser.parse_args()
    xla_flags.use()
    where = topology.parse(args.topology)
    mesh = make_mesh(data=1, fsdp=-1, devices=where.devices())
    modules, rows = modules_of(args.remat, args.chunks), args.rows * where.chips
    tokens = rows * LENGTH
    work = Workload(
        tokens,
        0,
        1.0,
        6.0 * parameter_count(modules, ("llm",))["llm"] * tokens,
        rows * attention_flops(modules.config.llm, LENGTH),
    )
    settings = {"rows": rows, "rows_per_chip": args.rows, "remat": args.remat, "row_length": LENGTH}
    make = functools.partial(program, mesh=mesh, rows=rows)
    job = Job("llm", modules, ("llm",), make, mesh, work, 0, settings)
    for line in table.rows(plan.plan(job, where, quick=args.quick)):
        print(*line, sep=": ")


if __name__ == "__main__":
    main()
