"""Runs the tasks of a preparation on Apache Beam: on this machine, or on Dataflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lavit_jax.data.prepare import tasks as pieces
from lavit_jax.data.prepare.run import Runner
from lavit_jax.data.prepare.tasks import Job, Task
from lavit_jax.errors import UserError

RUNNERS = {"direct": "DirectRunner", "dataflow": "DataflowRunner"}


def beam_runner(name: str, arguments: Sequence[str] = ()) -> Runner:
    """Does tasks on Beam, which may do one twice: the second finds the receipt of the first.

    Args:
      name: one of `RUNNERS`.
      arguments: of Beam's pipeline, such as "--project=mine".

    Raises:
      UserError: Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--runner {name} needs Apache Beam: pip install 'lavit_jax[beam]'"
        ) from error

    def run(job: Job, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        options = PipelineOptions([f"--runner={RUNNERS[name]}", *arguments])
        try:
            with beam.Pipeline(options=options) as pipeline:
                _ = (
                    pipeline
                    | "tasks" >> beam.Create([task.to_json() for task in tasks])
                    | "spread" >> beam.Reshuffle()
                    | "do" >> beam.Map(_do, job)
                )
        except UserError:
            raise
        except Exception as error:  # each runner has errors of its own; the last line says what
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(f"--runner {name}: {reason}") from error
        for task in tasks:
            yield pieces.run_task(job, task)  # the receipts are all there by now

    return run


def _do(stored: dict[str, Any], job: Job) -> int:
    task = Task.of_json(stored)
    pieces.run_task(job, task)
    return task.number
