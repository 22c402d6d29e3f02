"""The whole step of stage two against its parts: frozen encoder, the language model's merger and
the language model, each planned alone on the same chips and shapes.

    python -m benchmarks.plan_parts --config configs/unified_7b.py:v5p-128 --topology v5p-128 \
        --whole workdir/plans/unified-v5p-128.json

Prints the flops of each chip, and how many times their sum the whole step takes. Needs libtpu, no
TPU.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from benchmarks import plan_lm
from lavit_jax import config as configs
from lavit_jax.models import lavit, selector
from lavit_jax.models.config import lavit_config
from lavit_jax.models.lavit import Modules
from lavit_jax.parallel import rules, topology, xla_flags
from lavit_jax.parallel.compiled import Program
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.planning import plan
from lavit_jax.planning.plan import Job
from lavit_jax.planning.workload import Workload
from lavit_jax.training import abstract

NOTHING = Workload(0, 0, 1.0, 0.0, 0.0)


def held(modules: Modules, name: str, mesh: Mesh) -> Any:
    """A module's parameters as shapes."""
    boxed = jax.eval_shape(lambda: lavit.init_params(modules, (name,), jax.random.key(0)))[name]
    return abstract.placed_like(nn.meta.unbox(boxed), rules.param_shardings(boxed, mesh))


def array(mesh: Mesh, dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rules.batch_sharding(mesh))


def encoder(modules: Modules, mesh: Mesh, images: int) -> Program:
    """Features of uint8 images, nothing for a backward pass."""
    side = modules.config.encoder.image_size

    def run(params: Any, pictures: Array) -> Array:
        return lavit.encode_image(modules, {"encoder": params}, pictures)

    args = (held(modules, "encoder", mesh), array(mesh, jnp.uint8, images, side, side, 3))
    return Program(run, args, rules.batch_sharding(mesh), donate=())


def conditioner(modules: Modules, mesh: Mesh, images: int) -> Program:
    """Gradients of the language model's merger and projection, for given gradients of features."""
    c = modules.config

    def run(params: Any, x: Array, keep: Array, wanted: Array) -> Any:
        def loss_of(params: Any) -> Array:
            kept = selector.kept_index(keep, c.max_kept)
            found = lavit.run(modules, {"conditioner": params}, "conditioner", x, keep, kept)
            return (found.astype(jnp.float32) * wanted).sum()

        return jax.grad(loss_of)(params)

    params = held(modules, "conditioner", mesh)
    args = (
        params,
        array(mesh, c.encoder.compute_dtype, images, c.patches, c.encoder.width),
        array(mesh, jnp.float32, images, c.patches),
        array(mesh, jnp.float32, images, c.max_kept, c.llm.width),
    )
    return Program(run, args, jax.tree.map(lambda x: x.sharding, params), donate=())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/unified_7b.py:v5p-128")
    parser.add_argument("--topology", default="v5p-128")
    parser.add_argument("--quick", action="store_true", help="compile with less effort")
    parser.add_argument("--whole", type=Path, required=True, help="what `lavit plan --json` wrote")
    args = parser.parse_args()
    xla_flags.use()
    config, where = configs.load_config(args.config, []), topology.parse(args.topology)
    mesh = make_mesh(**config.mesh, devices=where.devices())
    modules = lavit.build_modules(lavit_config(config.model.to_dict(), config.data.text_vocab_size))
    rows = config.phases.unified.batch_size
    images = rows * config.data.images_per_row
    makers = {
        "encoder": functools.partial(encoder, mesh=mesh, images=images),
        "merger": functools.partial(conditioner, mesh=mesh, images=images),
        "llm": functools.partial(plan_lm.program, mesh=mesh, rows=rows),
    }
    total = 0.0
    for stack, make in makers.items():
        job = Job(stack, modules, (stack,), make, mesh, NOTHING, 0, {})
        flops = plan.cost(job, quick=args.quick).flops
        print(f"{stack}: {flops / 1e12:.1f}e12", flush=True)
        total += flops
    (whole,) = json.loads(args.whole.read_text())
    print(f"sum: {total / 1e12:.1f}e12; whole step: {whole['flops'] / 1e12:.1f}e12")
    print(f"whole / sum: {whole['flops'] / total:.3f}")


if __name__ == "__main__":
    main()
