"""One loop for all phases: data in, steps, metrics, checkpoints and samples out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from lavit_jax.data.batches import Batches
from lavit_jax.errors import UserError, memory_told
from lavit_jax.parallel import feed, peers
from lavit_jax.parallel.mesh import placed
from lavit_jax.training import goodput, phase_start, replay, samples
from lavit_jax.training.agreement import Agreement
from lavit_jax.training.checkpoints import Checkpoints
from lavit_jax.training.goodput import Goodput
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.launches import Launch
from lavit_jax.training.metrics import MetricWriter
from lavit_jax.training.recorder import Recorder
from lavit_jax.training.retention import Policy
from lavit_jax.training.run import Run, abstract_state
from lavit_jax.training.saved import Position, Saved
from lavit_jax.training.schedule import Phase, phase_at
from lavit_jax.training.spikes import SUCCESSIVE
from lavit_jax.training.state import TrainState
from lavit_jax.training.watchdog import Watchdog


def fit(run: Run) -> TrainState:
    """Runs what is left of the schedule and returns the last state.

    SIGTERM and Ctrl-C end it between two steps, with a checkpoint: see `interruption`.

    Raises:
      UserError: the work directory cannot be written, or too many steps in a row were skipped.
    """
    checkpoints = Checkpoints(
        run.storage.checkpoints, _policy(run), lambda step: phase_at(run.phases, step).name
    )
    watchdog = Watchdog(run.workdir, run.config.health.hang_seconds, jax.process_index())
    with (
        Interruption(Agreement(run.mesh), peers.others()) as interruption,
        contextlib.closing(checkpoints),
        watchdog,
        placed(run.mesh),
    ):
        found = checkpoints.restore_latest(lambda place: _abstract(run, place))
        done, current = (found.step, found.state) if found is not None else (0, None)
        if current is not None and done == run.total:
            return current
        first = jax.process_index() == 0
        with MetricWriter(
            run.workdir, done, run.total, run.config.log.every, writes=first
        ) as writer:
            if done:
                writer.say(f"going on from step {done} of {run.total}")
            session = _Session(run, checkpoints, writer, interruption, watchdog, done)
            if found is not None:
                session.rewinds = found.position.get("rewinds", 0)
            with session:
                for phase in run.phases:
                    if phase.end <= done:
                        continue
                    interruption.stop_if_requested()
                    resumed = found if phase.start < done else None
                    begin = functools.partial(_begin, run, phase, current, resumed, interruption)
                    # Until its first step there is nothing to save that is not saved.
                    too_large = (
                        f"phase {phase.name!r} does not fit; `lavit plan` with this config and "
                        "--topology says what would"
                    )
                    with memory_told(too_large), contextlib.ExitStack() as nothing_to_lose:
                        nothing_to_lose.enter_context(session.nothing_to_lose())
                        begun = interruption.unless_requested(begin)
                        interruption.stop_if_requested()
                        assert begun is not None
                        current = session.run_phase(phase, *begun, nothing_to_lose.close)
                checkpoints.wait()
                checkpoints.prune()
        interruption.stop_if_requested()
    assert current is not None
    return current


def _begin(
    run: Run,
    phase: Phase,
    current: TrainState | None,
    resumed: Saved | None,
    interruption: Interruption,
) -> tuple[TrainState, Batches]:
    """A phase's state and data, at its start or where a checkpoint of it left them."""
    if resumed is None:
        current = phase_start.enter(run, phase, current, interruption)
    assert current is not None
    data = phase_start.batches(run, phase, current, interruption)
    if resumed is not None:
        data.set_state(resumed.position["data"])
    return current, data


def _policy(run: Run) -> Policy:
    """Which checkpoints stay: what `config.checkpoint` names, and each phase's last."""
    wanted, ends = run.config.checkpoint, tuple(phase.end for phase in run.phases)
    return Policy(wanted.keep, wanted.keep_every, wanted.keep_best, ends)


def _due(step: int, every: int, phase: Phase) -> bool:
    """Whether it is time for what comes every so many steps (0: never) and at a phase's end."""
    return every > 0 and (step % every == 0 or step == phase.end)


def _ready(metrics: Mapping[str, Any]) -> bool:
    """Whether the step that these come from is done."""
    return all(value.is_ready() for value in metrics.values())


def _abstract(run: Run, place: Position) -> TrainState:
    return abstract_state(run.modules, run.phases, run.mesh, run.config.seed, place["step"])


class _Session:
    """One launch's part of a run: from where it went on to where it ends.

    Used as a context manager, it stores how it ended.

    Attributes:
      rewinds: how often the run went back before a loss spike.
    """

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        interruption: Interruption,
        watchdog: Watchdog,
        done: int,
    ) -> None:
        self._run, self._checkpoints, self._writer = run, checkpoints, writer
        self._interruption, self._watchdog = interruption, watchdog
        self.rewinds = 0
        self._step = done
        self._known = done + writer.dropped  # steps up to here were done before
        self._launch = Launch(run.workdir, run.config, run.mesh, done)
        self._goodput = Goodput(run.started)
        if done:
            self._goodput.restarts()

    def run_phase(
        self, phase: Phase, current: TrainState, data: Batches, begun: Callable[[], None]
    ) -> TrainState:
        """All steps of a phase that are left, each checkpoint after its metrics.

        Args:
          phase: which.
          current: the state before them.
          data: their batches.
          begun: is called once the step is compiled, in all processes.
        """
        run, spending = self._run, self._goodput.spending
        compiling = functools.partial(self._compiling, begun)
        step_fn = goodput.first_call(phase_start.compiled_step(run, phase), compiling)
        recorder = Recorder(run, phase, self._writer)
        metrics: dict[str, Any] = {}
        drawn = False
        while self._step < phase.end:
            if (back := self._before_spike(phase, recorder)) is not None:
                current = self._rewind(back, recorder, data)
                recorder = Recorder(run, phase, self._writer)
                continue
            step = self._step + 1
            with spending("restart" if step <= self._known else goodput.STEPS):
                with self._goodput.waiting("input", functools.partial(_ready, metrics)):
                    batch = feed.to_mesh(next(data), run.mesh)
                current, metrics = step_fn(current, batch)
                self._step = step
                recorder.add(step, metrics, batch)
                self._watchdog.beat()
                if recorder.skipped:  # once something is wrong, nothing runs ahead of its metrics
                    recorder.flush()
                    self._give_up_if_useless(recorder, current, data)
                sheet = _due(step, run.config.log.sample_every, phase)
                # It compiles programs of its own.
                first = sheet and not drawn and samples.drawn(phase)
                if first or _due(step, run.config.checkpoint.every, phase):
                    self._save(recorder, current, data)
                if sheet:
                    draw = functools.partial(samples.write, run, phase, current, step)
                    lost = self.nothing_to_lose() if first else contextlib.nullcontext()
                    with spending("samples"), lost:
                        self._interruption.unless_requested(draw)
                    drawn = True
                if self._interruption.requested():
                    self._save(recorder, current, data)
                    self._checkpoints.wait()
                    self._writer.say(f"saved at step {step} of {run.total}")
                    self._interruption.stop()
        data.close()
        return current

    def nothing_to_lose(self) -> contextlib.AbstractContextManager[None]:
        """Around what comes after a save and before the next step, and may take long."""
        return self._interruption.nothing_to_lose(self._stopped)

    @contextlib.contextmanager
    def _compiling(self, begun: Callable[[], None]) -> Iterator[None]:
        with self._goodput.spending("compile"):
            yield
            peers.meet()  # no step ends before all have compiled; until then none needs the others
            begun()

    def _stopped(self) -> None:
        """Leaves everything as the end of a stopped launch does."""
        self._checkpoints.wait()
        self.__exit__(SystemExit)
        self._run.storage.publish()

    def _save(self, recorder: Recorder, current: TrainState, data: Batches) -> None:
        recorder.flush()
        with self._goodput.spending("checkpoint"):
            self._writer.flush()
            self._run.storage.publish()
            position = {
                "step": self._step,
                "data": data.get_state(),
                "rewinds": self.rewinds,
                "metrics": recorder.means(),
            }
            self._checkpoints.save(self._step, current, position)
            self._launch.update(self._step, self._goodput.seconds())

    def _give_up_if_useless(self, recorder: Recorder, current: TrainState, data: Batches) -> None:
        """Ends a run whose gradients stay broken, with the last batch and the state it met."""
        if recorder.skipped < self._run.config.health.max_skipped:
            return
        assert recorder.last is not None
        path = replay.save(self._run, self._step, recorder.last.batch)
        self._save(recorder, current, data)
        self._checkpoints.wait()
        raise UserError(
            f"stopped at step {self._step}: loss or gradients of {recorder.skipped} steps in a row "
            f"were not finite; `lavit replay {path}` says which"
        )

    def _before_spike(self, phase: Phase, recorder: Recorder) -> int | None:
        """The checkpoint to go back to; None where nothing spikes or the run is not to go back."""
        if not recorder.spike or self.rewinds >= self._run.config.health.rewinds:
            return None
        assert recorder.read is not None
        sound = recorder.read - SUCCESSIVE
        steps = [step for step in self._checkpoints.steps() if phase.start < step <= sound]
        return max(steps, default=None)

    def _rewind(self, to: int, recorder: Recorder, data: Batches) -> TrainState:
        """The state before a spike; the data go on after it, or it would come again."""
        if not recorder.ahead:  # so that the same data are passed over whenever metrics are read
            next(data)
        found = self._checkpoints.go_back(to, lambda place: _abstract(self._run, place))
        self._writer.go_back(to)
        self._writer.say(f"went back to step {to}, past the data since then")
        self._known = max(self._known, self._step)
        self.rewinds += 1
        self._step = to
        return found.state

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        stopped = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt)
        status = "finished" if kind is None else "stopped" if stopped else "failed"
        seconds = self._goodput.seconds()
        with contextlib.suppress(OSError, UserError):  # a full disk has been told by then
            self._launch.update(self._step, seconds, status)
        self._writer.say(goodput.describe(seconds))
