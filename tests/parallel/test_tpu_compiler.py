"""What only the TPU compiler can say: libtpu, which comes with the `test` extra."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lavit_jax.parallel import xla_flags

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="libtpu is made for Linux on x86-64 alone",
)
REPO = Path(__file__).parents[2]
ENV = {
    "LIBTPU_INIT_ARGS": xla_flags.line(),
    "TPU_SKIP_MDS_QUERY": "1",  # nobody to ask here
    "XLA_FLAGS": "",  # those of the tests are for CPUs
}


def run(*args: str) -> str:
    """What Python says, run in a process of its own: libtpu reads its flags once."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=REPO,
        env={**os.environ, **ENV},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPILED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from lavit_jax.parallel import topology
from lavit_jax.parallel.compiled import Program, build
from lavit_jax.parallel.mesh import make_mesh

for name in ("v4-128", "v5e-16", "v5p-128", "v6e-16"):
    mesh = make_mesh(data=1, fsdp=-1, devices=topology.parse(name).devices())
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    args = [jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=rows) for _ in range(2)]
    build(Program(jnp.dot, tuple(args), rows, donate=()), mesh)
"""


def test_the_compiler_takes_the_flags_for_every_generation():
    run("-c", COMPILED)


def test_a_step_with_attention_kernels_is_planned(tmp_path):
    sizes = {"llm.width": 128, "llm.heads": 1, "llm.kv_heads": 1}  # a head of 128 lanes
    sizes |= {"encoder.depth": 1, "merger.depth": 1}
    model = [f"--config.model.{name}={size}" for name, size in sizes.items()]
    where = ["--config", "configs/mini.py", "--phase", "unified", "--topology", "v5p-8"]
    said = run(
        *("-m", "lavit_jax", "plan", "--quick", *where, "--json", str(tmp_path / "plan.json")),
        *("--config.mesh.fsdp=2", "--config.data.row_length=128", *model),
    )
    assert "by the compiler" in said
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"]
    assert (plan["chips"], plan["seconds_by"]) == (4, "compiler")
    assert plan["mesh"] == {"slice": 1, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert plan["kernel_flops"] > 0
    assert 0 < plan["compiler_seconds"] < 1e-3
    assert {"all-gather", "reduce-scatter"} <= {each["kind"] for each in plan["collectives"]}
