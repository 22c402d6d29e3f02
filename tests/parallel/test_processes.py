"""Two real processes of four devices do what one process of eight does."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import stages
from lavit_jax.errors import UserError
from lavit_jax.parallel import start
from lavit_jax.parallel.mesh import make_mesh
from processes import environments

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.subprocess
def test_two_processes_of_four_devices_equal_one_of_eight(tmp_path):
    out, running = tmp_path / "found.npz", []
    for variables in environments():
        env = {
            **os.environ,
            **variables,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        command = [sys.executable, str(TESTS / "parallel" / "process.py"), str(out)]
        running.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    said = [process.communicate(timeout=600)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    found = np.load(out)
    assert (found["processes"], found["devices"]) == (2, 8)
    for stage in stages.PHASES:
        loss, gradients = stages.loss_and_gradients(stage, make_mesh(data=2, fsdp=4))
        assert abs(float(found[f"{stage}/loss"]) - loss) < 1e-5
        for number, leaf in enumerate(jax.tree.leaves(gradients)):
            np.testing.assert_allclose(found[f"{stage}/{number}"], leaf, atol=1e-5)


def test_a_process_number_past_the_count_is_a_mistake(monkeypatch):
    for name, value in ((start.COORDINATOR, "localhost:1"), (start.COUNT, "2"), (start.INDEX, "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="LAVIT_PROCESS=2 must be below LAVIT_PROCESSES=2"):
        start.start()


def test_a_coordinator_without_a_count_is_a_mistake(monkeypatch):
    monkeypatch.setenv(start.COORDINATOR, "localhost:1")
    with pytest.raises(UserError, match="LAVIT_PROCESSES must be a whole number, got ''"):
        start.start()
