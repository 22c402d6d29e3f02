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
    if previous is None and not starting.sources(run.config):
        fresh = jax.jit(
            lambda: state.init_state(run.modules, phase.names, tx, phase.trained, run.config.seed),
            out_shardings=shardings,
        )()
        return codebook_start.begin(run, phase, fresh, interruption)
    held = {} if previous is None else previous.params
    new = tuple(name for name in phase.names if name not in held)
    # What others have trained is not made first: of a large model there is room for it once.
    params, found = starting.modules(run, new, shardings.params)
    if previous is None:
        starting.check_complete(run, phase, found)
    params |= _made(run, tuple(name for name in new if name not in params), shardings)
    if "conditioner" in new and "conditioner" not in found.params:
        starting.copy_merger(params, held)
    params = {**held, **params}
    if previous is None:
        previous = starting.bare_state(run, found)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(
        {name: params[name] for name in phase.trained}
    )
    entered = previous.replace(params=params, opt_state=opt_state)  # type: ignore[attr-defined]
    return codebook_start.begin(run, phase, entered, interruption)


def _made(run: Run, names: tuple[str, ...], shardings: TrainState) -> dict[str, Any]:
    """Fresh parameters of modules."""
    if not names:
        return {}
    key = jax.random.key(run.config.seed)
    return jax.jit(
        lambda: nn.meta.unbox(lavit.init_params(run.modules, names, jax.random.fold_in(key, 1))),
        out_shardings={name: shardings.params[name] for name in names},
    )()


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
