"""Runs the tasks of a preparation on Apache Beam: on this machine, on Dataflow, Flink or Spark.

Beam only has tasks done; what becomes of them is read from the destination, where every worker
leaves its receipts, whatever the runner. A worker that meets a user's mistake leaves that there
too instead of raising it: Beam would try it again, and bury it in tracebacks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from lavit_jax.data.prepare import tasks as pieces
from lavit_jax.data.prepare.run import Runner
from lavit_jax.data.prepare.store import STOP, WORK, Store
from lavit_jax.data.prepare.tasks import Job, Task
from lavit_jax.data.sources import files
from lavit_jax.errors import UserError

RUNNERS = {
    "direct": "DirectRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}
ASKS_SERVER = ("flink", "spark")  # these learn some of their options from a server
LOOK_SECONDS = 2.0  # between looks at the receipts
_WHERE = re.compile(r" *\[while running .*\]$")


def beam_runner(name: str, arguments: Sequence[str] = ()) -> Runner:
    """Does tasks on Beam, which may do one twice: the second finds the receipt of the first.

    Args:
      name: one of `RUNNERS`.
      arguments: of Beam's pipeline, such as "--project=mine".

    Raises:
      UserError: Beam is not installed, or does not know an argument.
    """
    beam = _import(name)
    options = _options(beam, name, arguments)
    with _told_in_one_line(name):
        beam.Pipeline(options=options)  # says which it misses, before anything is written

    def run(job: Job, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        if name != "direct":
            _check_reach(name, job)
        store = Store(job.destination)
        store.remove(STOP)
        waiting = {task.receipt: task for task in tasks}
        running = _Running(beam, options, job, tasks)
        try:
            ended = False
            while not ended:
                ended = running.ended(LOOK_SECONDS)
                for receipt in [name for name in store.names(WORK) if name in waiting]:
                    del waiting[receipt]
                    yield store.read_json(receipt)
        finally:
            running.stop(store)
        stopped = store.read_json(STOP)
        if stopped is not None:
            raise UserError(stopped["error"])
        with _told_in_one_line(name):
            if running.error is not None:
                raise running.error
        if waiting:
            raise UserError(
                f"--runner {name} left {len(waiting)} of {len(tasks)} tasks undone: run the same "
                "command again to go on"
            )

    return run


def _import(name: str) -> Any:
    """Beam, without what it says about packages that it could also use."""
    try:
        with _quiet():
            import apache_beam
            import apache_beam.options.pipeline_options
    except ImportError as error:
        raise UserError(
            f"--runner {name} needs Apache Beam: pip install 'lavit_jax[beam]'"
        ) from error
    return apache_beam


def _options(beam: Any, name: str, arguments: Sequence[str]) -> Any:
    """The pipeline's options; those that Beam would leave out in silence are refused."""
    for argument in arguments:
        if not argument.startswith("--"):
            raise UserError(f"--beam={argument}: expected --beam=--OPTION=VALUE")
        if argument.partition("=")[0] == "--runner":
            raise UserError(f"--beam={argument}: choose with --runner ({', '.join(RUNNERS)})")
    quiet = ["--default_sdk_harness_log_level=CRITICAL"] if name == "direct" else []
    said = io.StringIO()
    try:
        with _quiet(), contextlib.redirect_stderr(said):
            options = beam.options.pipeline_options.PipelineOptions(
                [f"--runner={RUNNERS[name]}", *quiet, *arguments]
            )
            given = options.get_all_options(retain_unknown_options=True)
            known = options.get_all_options()
    except SystemExit as error:  # it is an argument parser
        reason = (said.getvalue().strip() or "not understood").splitlines()[-1]
        raise UserError(f"--beam: {reason.partition('error: ')[2] or reason}") from error
    unknown = sorted(given.keys() - known.keys())
    if unknown and name not in ASKS_SERVER:
        raise UserError(f"--beam=--{unknown[0]}: Apache Beam has no such option")
    return options


def _check_reach(name: str, job: Job) -> None:
    """Refuses what only this machine has, for workers that are others."""
    if files.is_local(job.destination):
        raise UserError(
            f"--runner {name}: its workers cannot write to {job.destination}, a folder of this "
            "machine: name one in a bucket"
        )


@contextlib.contextmanager
def _told_in_one_line(name: str) -> Iterator[None]:
    """Each runner has errors of its own: of a traceback the last line says what it is."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()
        reason = said[-1] if any(line.startswith("Traceback") for line in said) else " ".join(said)
        raise UserError(f"--runner {name}: {_WHERE.sub('', reason)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class _Running:
    """A pipeline that runs in a thread: some runners return when all is done, some at once.

    Attributes:
      error: what it ended with.
    """

    def __init__(self, beam: Any, options: Any, job: Job, tasks: Sequence[Task]) -> None:
        self.error: Exception | None = None
        self._beam, self._options, self._job, self._tasks = beam, options, job, tasks
        self._result: Any = None
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        beam = self._beam
        try:
            pipeline = beam.Pipeline(options=self._options)
            _ = (
                pipeline
                | "tasks" >> beam.Create([task.to_json() for task in self._tasks])
                | "spread" >> beam.Reshuffle()
                | "do" >> beam.Map(_do, self._job)
            )
            self._result = pipeline.run()
            self._result.wait_until_finish()
        except Exception as error:
            self.error = error

    def ended(self, seconds: float) -> bool:
        """Waits so long for its end."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self, store: Store) -> None:
        """Has the tasks that were not begun left out, if it still runs, and waits for the others.

        Nobody waits for a runner that can cancel.
        """
        if not self._thread.is_alive():
            return
        store.write_json(STOP, {"error": "stopped"})
        with contextlib.suppress(Exception):
            if self._result is not None:
                self._result.cancel()
                return
        self._thread.join()


def _do(stored: dict[str, Any], job: Job) -> int:
    """Does a task on a worker, unless one before it has stopped them all."""
    task, store = Task.of_json(stored), Store(job.destination)
    if not store.exists(STOP):
        try:
            pieces.run_task(job, task)
        except UserError as error:
            store.write_json(STOP, {"error": str(error)})
    return task.number
