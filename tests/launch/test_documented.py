"""Every documented run on named machines: its mesh and batches fit them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from fake_cloud import REPO
from lavit_jax.config import load_config
from lavit_jax.parallel import topology
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.parallel.topology import Topology
from lavit_jax.training.run import check_batch
from lavit_jax.training.schedule import make_schedule
from slices import devices

MANIFEST = REPO / "launch" / "gke" / "jobset.yaml"
ACCELERATORS = {
    "tpu-v4-podslice": "v4",
    "tpu-v5-lite-podslice": "v5e",
    "tpu-v5p-slice": "v5p",
    "tpu-v6e-slice": "v6e",
}


class Run(NamedTuple):
    """A command or manifest: what it trains, and on what."""

    file: str
    config: str
    overrides: tuple[str, ...]
    machines: Topology

    def __str__(self) -> str:
        return f"{self.file}: {self.config} on {self.machines.title}"


def commands(file: Path) -> list[list[str]]:
    """The commands of a text, also those in comments of scripts."""
    text = re.sub(r"\\\n#?", " ", file.read_text())
    found = []
    for line in text.splitlines():
        try:
            found.append(shlex.split(line.lstrip("# ").partition("  #")[0]))
        except ValueError:  # prose with an apostrophe
            continue
    return found


def option(words: list[str], name: str) -> str | None:
    for word, after in zip(words, [*words[1:], ""]):
        if word == name:
            return after
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def in_text(file: Path) -> list[Run]:
    """Runs that are launched, or planned, on machines that their command or one above it names."""
    exported: dict[str, str] = {}
    runs = []
    for words in commands(file):
        if words[:1] == ["export"]:
            exported.update(word.split("=", 1) for word in words[1:] if "=" in word)
        config = option(words, "--config") or ""
        kind = option(words, "--topology") or option(words, "--type")
        if kind is None and any("launch/" in word for word in words):
            kind = exported.get("LAVIT_TPU_TYPE")
        if re.match("configs/[a-z]", config) and kind:  # not configs/FILE.py
            slices = option(words, "--slices") or exported.get("LAVIT_TPU_SLICES", "1")
            overrides = tuple(word for word in words if word.startswith("--config."))
            machines = topology.parse(kind, int(slices))
            runs.append(Run(str(file.relative_to(REPO)), config, overrides, machines))
    return runs


def in_manifest() -> Run:
    (slices,) = yaml.safe_load(MANIFEST.read_text())["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    where = {key.rpartition("-tpu-")[2]: value for key, value in pod["nodeSelector"].items()}
    args = pod["containers"][0]["args"]
    name = f"{ACCELERATORS[where['accelerator']]}:{where['topology']}"
    return Run(
        str(MANIFEST.relative_to(REPO)),
        str(option(args, "--config")),
        tuple(arg for arg in args if arg.startswith("--config.")),
        topology.parse(name, slices["replicas"]),
    )


TEXTS = [
    REPO / "README.md",
    *sorted((REPO / "docs").glob("*.md")),
    *sorted(path for path in (REPO / "launch").rglob("*") if path.suffix == ".sh"),
]
RUNS = [in_manifest(), *(run for file in TEXTS for run in in_text(file))]


def test_the_runs_are_found():
    assert {run.file for run in RUNS} >= {
        "launch/gke/jobset.yaml",
        "docs/launch.md",
        "docs/pods.md",
    }
    assert {run.machines.slices for run in RUNS} >= {1, 2}
    # A command that trains, yet names no machines, would not be looked at.
    written = (REPO / "docs" / "launch.md").read_text().count("--config configs/")
    assert sum(run.file == "docs/launch.md" for run in RUNS) == written


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_phase_of_a_documented_run_fits_its_machines(run):
    config = load_config(run.config, list(run.overrides))
    mesh = make_mesh(**config.mesh, devices=devices(run.machines))
    for phase in make_schedule(config):
        check_batch(phase, mesh)
