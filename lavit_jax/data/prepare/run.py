"""Prepares a source: plans, has the tasks done by a runner, writes the index."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from lavit_jax.data import tally as tallies
from lavit_jax.data.prepare import tasks as pieces
from lavit_jax.data.prepare.store import WORK, Store
from lavit_jax.data.prepare.tasks import Job, Task
from lavit_jax.data.tally import Tally
from lavit_jax.errors import UserError

INDEX = "index.json"
REJECTED = "rejected.jsonl"
FORMAT = "lavit-data-1"
PLAN = f"{WORK}/plan.json"
SAY_SECONDS = 5.0

Runner = Callable[[Job, Sequence[Task]], Iterator[dict[str, Any]]]
Say = Callable[[str], None]


def prepare(
    job: Job,
    runner: Runner,
    max_bad_share: float = tallies.MAX_BAD_SHARE,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Does what is left of a job.

    Args:
      job: what and where to.
      runner: does tasks and gives their receipts, in any order.
      max_bad_share: stops past this share of broken examples.
      say: told now and then how far it is.

    Returns:
      The index.

    Raises:
      UserError: a source that cannot be read, or has changed since it was prepared; a destination
        that cannot be written or belongs to another job; or too many broken examples.
    """
    store = Store(job.destination)
    index = _finished(job, store)
    if index is not None:
        return index
    state = pieces.source_state(job)  # first: what is new in the plan is told another time
    tasks = pieces.make_tasks(job)
    with store.claimed(say):
        index = _finished(job, store)  # by another, meanwhile
        if index is not None:
            return index
        store.sweep()
        _keep_plan(job, store, tasks)
        left = [task for task in tasks if not store.exists(task.receipt)]
        if len(left) < len(tasks):
            say(f"{len(tasks) - len(left)} of {len(tasks)} tasks were done before")
        total, told = _done_before(store, tasks, left), time.monotonic()
        for number, receipt in enumerate(runner(job, left), start=len(tasks) - len(left) + 1):
            total.merge(Tally.of_json(receipt["tally"]))
            total.check(max_bad_share, "--max-bad-share")
            if time.monotonic() - told > SAY_SECONDS:
                told = time.monotonic()
                say(f"{number} of {len(tasks)} tasks, {total.good} examples, {total.bad} broken")
        index = _finish(job, store, tasks, max_bad_share, state)
        store.remove_work()
    return index


def _finished(job: Job, store: Store) -> dict[str, Any] | None:
    """The index of a preparation that is done; None where it is not."""
    index = store.read_json(INDEX)
    if index is None:
        return None
    if index.get("job") != _stored(job):
        raise UserError(
            f"{job.destination} holds another data set, of {index.get('job', {}).get('source')}"
        )
    _check_unchanged(job, index.get("state"))
    store.remove_work()
    return index


def _check_unchanged(job: Job, known: dict[str, Any] | None) -> None:
    """Refuses a source that has other files than what was prepared of it.

    One that is gone, or out of reach here, has served; what was prepared before states were kept
    cannot be compared.
    """
    if known is None:
        return
    try:
        now = pieces.source_state(job)
    except UserError:
        return
    if now != known:
        count = f"{known['files']} files then, {now['files']} now"
        what = "some files are others" if now["files"] == known["files"] else count
        raise UserError(
            f"{job.source} changed since {job.destination} was prepared from it ({what}): prepare "
            f"it to another folder, or delete {job.destination} to prepare it anew"
        )


def _stored(job: Job) -> dict[str, Any]:
    return {"format": FORMAT, **job.to_json()}


def _keep_plan(job: Job, store: Store, tasks: Sequence[Task]) -> None:
    """Stores the plan, which must be what it was when the job was begun."""
    plan = {"job": _stored(job), "tasks": [task.to_json() for task in tasks]}
    begun = store.read_json(PLAN)
    if begun is None:
        store.write_json(PLAN, plan)
    elif begun != plan:
        what = "options" if begun.get("tasks") == plan["tasks"] else "source or the options"
        raise UserError(
            f"the {what} changed since {job.destination} was begun: delete it to start anew"
        )


def _done_before(store: Store, tasks: Sequence[Task], left: Sequence[Task]) -> Tally:
    total, numbers = Tally(), {task.number for task in left}
    for task in tasks:
        if task.number not in numbers:
            total.merge(Tally.of_json(store.read_json(task.receipt)["tally"]))
    return total


def _finish(
    job: Job,
    store: Store,
    tasks: Sequence[Task],
    max_bad_share: float,
    state: dict[str, Any],
) -> dict[str, Any]:
    """Writes the index from the receipts, in the order of the tasks."""
    shards: list[dict[str, Any]] = []
    total = Tally()
    for task in tasks:
        receipt = store.read_json(task.receipt)
        if receipt is None:
            raise UserError(f"{job.destination}: task {task.number} was not done: run it again")
        shards += receipt["shards"]
        total.merge(Tally.of_json(receipt["tally"]))
    for shard in shards:
        size = store.size(shard["name"])
        if size != shard["bytes"]:
            raise UserError(
                f"{job.destination}/{shard['name']} has {size} bytes, {shard['bytes']} were "
                "written: delete the folder to start anew"
            )
    total.check(max_bad_share, "--max-bad-share", soonest=1)
    if not total.good:
        raise UserError(f"{job.source} has no examples")
    store.copy_together([task.rejected for task in tasks], REJECTED)
    index = {
        "job": _stored(job),
        "state": state,
        "examples": total.good,
        "images": sum(shard["images"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "rejected": dict(total.reasons),
        "shards": shards,
    }
    store.write_json(INDEX, index)
    return index


def local_runner(workers: int) -> Runner:
    """Does tasks in processes of this machine."""

    def run(job: Job, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        if workers == 1 or len(tasks) <= 1:
            for task in tasks:
                yield pieces.run_task(job, task)
            return
        pool = concurrent.futures.ProcessPoolExecutor(
            min(workers, len(tasks)),
            # A forked process would share locks and threads of whatever is loaded here.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_die_with_parent,
        )
        try:
            doing = [pool.submit(pieces.run_task, job, task) for task in tasks]
            for done in concurrent.futures.as_completed(doing):
                yield done.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?): run the same command again to go on"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return run


def _die_with_parent() -> None:
    """Ends a worker whose parent was killed; the pool itself would leave it waiting for ever.

    Ctrl-C ends it at once and without a word: its task is done again next time.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
