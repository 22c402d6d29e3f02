"""What a phase begins with: its state, its data and its step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from lavit_jax.data import pipeline
from lavit_jax.data.batches import Batches
from lavit_jax.models import lavit
from lavit_jax.parallel import rules
from lavit_jax.training import codebook_start, starting, state, visual_cache
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.objectives import make_objective
from lavit_jax.training.optimizer import make_optimizer
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState

if TYPE_CHECKING:
    from lavit_jax.training.run import Run


def enter(
    run: Run, phase: Phase, previous: TrainState | None, interruption: Interruption
) -> TrainState:
    """The state at a phase's start: old parameters, new modules, a fresh optimizer."""
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shardings = state.state_shardings(run.modules, phase.names, tx, phase.trained, run.mesh)
    seed = run.config.seed
    if previous is None:
        fresh = jax.jit(
            lambda: state.init_state(run.modules, phase.names, tx, phase.trained, seed),
            out_shardings=shardings,
        )()
        if starting.sources(run.config):
            fresh = starting.begin(run, phase, fresh, tx, shardings)
        return codebook_start.begin(run, phase, fresh, interruption)
    missing = tuple(name for name in phase.names if name not in previous.params)
    made: dict[str, Any] = {}
    if missing:
        made = jax.jit(
            lambda: nn.meta.unbox(
                lavit.init_params(run.modules, missing, jax.random.fold_in(jax.random.key(seed), 1))
            ),
            out_shardings={name: shardings.params[name] for name in missing},
        )()
    made, found = starting.modules(run, missing, made)
    params = {**previous.params, **made}
    if "conditioner" in missing and "conditioner" not in found.params:
        starting.copy_merger(params)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(
        {name: params[name] for name in phase.trained}
    )
    entered = previous.replace(params=params, opt_state=opt_state)  # type: ignore[attr-defined]
    return codebook_start.begin(run, phase, entered, interruption)


def batches(run: Run, phase: Phase, current: TrainState, interruption: Interruption) -> Batches:
    """The phase's data, from its beginning."""
    objective, batch_size = phase.config["objective"], phase.config["batch_size"]
    seed = run.config.seed * 1000 + phase.index
    if objective == "contrastive":
        length = run.modules.config.text_tower.length
        return pipeline.pair_batches(
            run.config, run.data_dir, run.text, batch_size, seed, text_length=length
        )
    if objective == "tokenizer":
        return pipeline.image_batches(run.config, run.data_dir, batch_size, seed)
    if objective == "diffusion":
        pixels = run.modules.config.pixels
        assert pixels is not None
        return pipeline.pixel_batches(
            run.config, run.data_dir, batch_size, seed, pixel_size=pixels.size
        )
    cache = visual_cache.load_or_build(run, current, interruption)
    stamp = None
    if run.config.data.sources:
        stamp = visual_cache.full_stamp(run.modules.config, current, run.mesh)
    return pipeline.unified_batches(
        run.config, run.data_dir, run.text, cache, batch_size, seed, stamp=stamp
    )


def compiled_step(run: Run, phase: Phase) -> state.Step:
    """The phase's step, compiled when it is first called."""
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shardings = state.state_shardings(run.modules, phase.names, tx, phase.trained, run.mesh)
    objective = make_objective(run.modules, phase.config)
    return jax.jit(
        state.make_step(objective, tx, phase.trained, phase.config.get("accumulate", 1)),
        donate_argnums=0,
        out_shardings=(shardings, rules.replicated(run.mesh)),
    )
