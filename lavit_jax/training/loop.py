"""One loop for all phases: data in, steps, metrics, checkpoints and samples out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.data import pipeline
from lavit_jax.data.batches import Batches
from lavit_jax.models import lavit
from lavit_jax.parallel import feed, rules
from lavit_jax.parallel.mesh import placed
from lavit_jax.training import codebook_start, samples, starting, state, visual_cache
from lavit_jax.training.checkpoints import Checkpoints
from lavit_jax.training.health import Health
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.metrics import MetricWriter
from lavit_jax.training.objectives import make_objective
from lavit_jax.training.optimizer import make_optimizer
from lavit_jax.training.run import Run, abstract_state
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState


def fit(run: Run) -> TrainState:
    """Runs what is left of the schedule and returns the last state.

    SIGTERM and Ctrl-C end it between two steps, with a checkpoint: see `interruption`.
    """
    checkpoints = Checkpoints(
        run.storage.checkpoints,
        keep=run.config.checkpoint.keep,
        milestones=tuple(phase.end for phase in run.phases),
    )
    with Interruption() as interruption, contextlib.closing(checkpoints), placed(run.mesh):
        found = checkpoints.restore_latest(
            lambda place: abstract_state(
                run.modules, run.phases, run.mesh, run.config.seed, place["step"]
            )
        )
        done, current = (found.step, found.state) if found is not None else (0, None)
        with MetricWriter(run.workdir, done, run.total, run.config.log.every) as writer:
            if 0 < done < run.total:
                writer.say(f"going on from step {done} of {run.total}")
            session = _Session(run, checkpoints, writer, interruption)
            for phase in run.phases:
                if phase.end <= done:
                    continue
                resumed = found is not None and phase.start < done
                if not resumed:
                    current = _enter(run, phase, current, interruption)
                assert current is not None
                data = _batches(run, phase, current, interruption)
                if resumed:
                    assert found is not None
                    data.set_state(found.position["data"])
                current = session.run_phase(phase, current, data)
        checkpoints.wait()
        interruption.stop_if_requested()
    assert current is not None
    return current


@dataclasses.dataclass(frozen=True)
class _Session:
    """One process's part of a run: from where it went on to where it ends."""

    run: Run
    checkpoints: Checkpoints
    writer: MetricWriter
    interruption: Interruption

    def run_phase(self, phase: Phase, current: TrainState, data: Batches) -> TrainState:
        """All steps of a phase that are left, each checkpoint after its metrics."""
        run = self.run
        step_fn = _compiled_step(run, phase)
        recorder = _Recorder(run, phase, self.writer)
        for step in range(int(current.step) + 1, phase.end + 1):
            self.interruption.stop_if_requested()
            current, metrics = step_fn(current, feed.to_mesh(next(data), run.mesh))
            recorder.add(step, metrics)
            if step % run.config.checkpoint.every == 0 or step == phase.end:
                self._save(recorder, step, current, data)
            if step % run.config.log.sample_every == 0 or step == phase.end:
                samples.write(run, phase, current, step)
            if self.interruption.requested:
                self._save(recorder, step, current, data)
                self.checkpoints.wait()
                self.writer.say(f"saved at step {step} of {run.total}")
                self.interruption.stop()
        data.close()
        return current

    def _save(self, recorder: _Recorder, step: int, current: TrainState, data: Batches) -> None:
        recorder.flush()
        self.writer.flush()
        self.run.storage.publish()
        self.checkpoints.save(step, current, {"step": step, "data": data.get_state()})


def _compiled_step(run: Run, phase: Phase) -> state.Step:
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shardings = state.state_shardings(run.modules, phase.names, tx, phase.trained, run.mesh)
    objective = make_objective(run.modules, phase.config)
    return jax.jit(
        state.make_step(objective, tx, phase.trained, phase.config.get("accumulate", 1)),
        donate_argnums=0,
        out_shardings=(shardings, rules.replicated(run.mesh)),
    )


class _Recorder:
    """Writes each step's metrics once the next is under way, so that devices never wait for it."""

    def __init__(self, run: Run, phase: Phase, writer: MetricWriter) -> None:
        self._run, self._phase, self._writer = run, phase, writer
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._health = Health()
        self._times: list[float] = []

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._times = [*self._times[-20:], time.monotonic()]
        gaps = np.diff(self._times)
        rate = 1.0 / float(np.median(gaps)) if len(gaps) else 0.0
        left = (self._run.total - step) / rate if rate else 0.0
        self._writer.write(step, self._phase.name, values, rate, left)
        for warning in self._health.check(self._phase.name, step - self._phase.start, values):
            self._writer.say(warning)


def _enter(
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
        if run.config.get("start_from"):
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
    if "conditioner" in made and "merger" in previous.params:
        # The language model's merger starts as a copy of the tokenizer's (SPEC 7).
        made["conditioner"]["merger"] = jax.tree.map(jnp.copy, previous.params["merger"])
    params = {**previous.params, **made}
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(
        {name: params[name] for name in phase.trained}
    )
    entered = previous.replace(params=params, opt_state=opt_state)  # type: ignore[attr-defined]
    return codebook_start.begin(run, phase, entered, interruption)


def _batches(run: Run, phase: Phase, current: TrainState, interruption: Interruption) -> Batches:
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
        stamp = visual_cache.full_stamp(run.config, current, run.mesh)
    return pipeline.unified_batches(
        run.config, run.data_dir, run.text, cache, batch_size, seed, stamp=stamp
    )
