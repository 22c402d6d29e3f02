import shutil

import pytest

from small_run import UNSEEN, run_apart

ARGUMENTS = (
    *UNSEEN,
    "--config.schedule=encoder",
    "--config.phases.encoder.steps=4",
    "--config.checkpoint.every=2",
)


@pytest.mark.subprocess
def test_going_on_elsewhere_asks_for_the_step_programs_that_were_kept(new_workdir, monkeypatch):
    workdir = new_workdir()
    for name in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    ):
        monkeypatch.delenv(name, raising=False)

    def steps(workdir):
        return {path.name for path in (workdir / "compiled").glob("jit_step*-cache")}

    assert run_apart(workdir, *ARGUMENTS) == 0
    before = steps(workdir)
    assert before
    shutil.rmtree(workdir / "checkpoints" / "4")
    moved = workdir.rename(workdir.with_name("moved"))
    assert run_apart(moved, *ARGUMENTS) == 0
    assert steps(moved) == before
