"""One loop for all phases: data in, steps, metrics, checkpoints and samples out."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.data import pipeline
from lavit_jax.models import lavit
from lavit_jax.parallel import feed, rules
from lavit_jax.parallel.mesh import placed
from lavit_jax.training import codebook_start, samples, state, visual_cache
from lavit_jax.training.checkpoints import Checkpoints
from lavit_jax.training.health import Health
from lavit_jax.training.metrics import MetricWriter
from lavit_jax.training.objectives import make_objective
from lavit_jax.training.optimizer import make_optimizer
from lavit_jax.training.run import Run, abstract_state
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState


def fit(run: Run) -> TrainState:
    """Runs what is left of the schedule and returns the last state."""
    checkpoints = Checkpoints(
        run.workdir / "checkpoints",
        keep=run.config.checkpoint.keep,
        milestones=tuple(phase.end for phase in run.phases),
    )
    with contextlib.closing(checkpoints), _terminable(), placed(run.mesh):
        restored = checkpoints.restore_latest(
            lambda place: abstract_state(
                run.modules, run.phases, run.mesh, run.config.seed, place["step"]
            )
        )
        done, current, position = restored or (0, None, {})
        with MetricWriter(run.workdir, done, run.total, run.config.log.every) as writer:
            if restored is not None and done < run.total:
                writer.say(f"going on from step {done} of {run.total}")
            for phase in run.phases:
                if phase.end <= done:
                    continue
                resumed = phase.start < done
                if current is None or not resumed:
                    current = _enter(run, phase, current)
                data = _batches(run, phase, current)
                if resumed:
                    data.set_state(position["data"])
                current = _run_phase(run, phase, current, data, checkpoints, writer)
    assert current is not None
    return current


def _run_phase(
    run: Run,
    phase: Phase,
    current: TrainState,
    data: Any,
    checkpoints: Checkpoints,
    writer: MetricWriter,
) -> TrainState:
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shardings = state.state_shardings(run.modules, phase.names, tx, phase.trained, run.mesh)
    step_fn = jax.jit(
        state.make_step(
            make_objective(run.modules, phase.config),
            tx,
            phase.trained,
            phase.config.get("accumulate", 1),
        ),
        donate_argnums=0,
        out_shardings=(shardings, rules.replicated(run.mesh)),
    )
    recorder = _Recorder(run, phase, writer)
    done = int(current.step)
    try:
        for step in range(done + 1, phase.end + 1):
            current, metrics = step_fn(current, feed.to_mesh(next(data), run.mesh))
            recorder.add(step, metrics)
            done = step
            if step % run.config.checkpoint.every == 0 or step == phase.end:
                recorder.flush()
                checkpoints.save(step, current, {"step": step, "data": data.get_state()})
            if step % run.config.log.sample_every == 0 or step == phase.end:
                samples.write(run, phase, current, step)
    except KeyboardInterrupt:
        recorder.flush()
        checkpoints.save(done, current, {"step": done, "data": data.get_state()})
        raise
    recorder.flush()
    return current


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


def _enter(run: Run, phase: Phase, previous: TrainState | None) -> TrainState:
    """The state at a phase's start: old parameters, new modules, a fresh optimizer."""
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shardings = state.state_shardings(run.modules, phase.names, tx, phase.trained, run.mesh)
    seed = run.config.seed
    if previous is None:
        fresh = jax.jit(
            lambda: state.init_state(run.modules, phase.names, tx, phase.trained, seed),
            out_shardings=shardings,
        )()
        return codebook_start.begin(run, phase, fresh)
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
    return codebook_start.begin(run, phase, entered)


def _batches(run: Run, phase: Phase, current: TrainState) -> Any:
    """The phase's data iterator: `next`, `get_state`, `set_state`."""
    objective, batch_size = phase.config["objective"], phase.config["batch_size"]
    seed = run.config.seed * 1000 + phase.index
    if objective == "contrastive":
        length = run.modules.config.text_tower.length
        return pipeline.pair_batches(
            run.config, run.data_dir, run.text, batch_size, seed, text_length=length
        )
    if objective == "tokenizer":
        return pipeline.image_batches(run.config, run.data_dir, batch_size, seed)
    cache = visual_cache.load_or_build(run, current)
    return pipeline.unified_batches(run.config, run.data_dir, run.text, cache, batch_size, seed)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end a run as Ctrl-C does: after saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
