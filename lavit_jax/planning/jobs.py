"""The jobs of a config: its phases, and generation for a model that can speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from lavit_jax.errors import UserError
from lavit_jax.inference import abstract as inference
from lavit_jax.models import lavit
from lavit_jax.models.config import LavitConfig, lavit_config
from lavit_jax.parallel.mesh import batch_parts, make_mesh
from lavit_jax.parallel.topology import Topology
from lavit_jax.planning import workload
from lavit_jax.planning.plan import Job
from lavit_jax.training import abstract as training
from lavit_jax.training.run import check_batch
from lavit_jax.training.schedule import Phase, make_schedule

PARTS = ("prefill", "decode")


def names(config: ConfigDict) -> tuple[str, ...]:
    """What there is to plan."""
    return (*config.schedule, *(PARTS if "generation" in config else ()))


def make_job(config: ConfigDict, name: str, topology: Topology, devices: Sequence[Any]) -> Job:
    """The job `name` of a config on a topology.

    Raises:
      UserError: no such job, a mesh or batch that does not divide, sizes that do not fit together.
    """
    if name not in names(config):
        raise UserError(f"--phase {name}: the config has {', '.join(names(config))}")
    if name in PARTS:
        return _generation(config, name, topology, devices)
    phase = next(phase for phase in make_schedule(config) if phase.name == name)
    return _phase(config, phase, topology, devices)


def _modules(config: ConfigDict) -> lavit.Modules:
    try:
        sizes = lavit_config(config.model.to_dict(), config.data.text_vocab_size)
    except KeyError as error:
        raise UserError(f"config.model.{error.args[0]} is missing") from error
    except ValueError as error:
        raise UserError(f"config.{error}") from error
    return lavit.build_modules(sizes)


def _phase(config: ConfigDict, phase: Phase, topology: Topology, devices: Sequence[Any]) -> Job:
    mesh = make_mesh(**{**config.mesh, "slice": topology.slices}, devices=devices)
    check_batch(phase, mesh)
    modules = _modules(config)
    sizes = modules.config
    rows, objective = phase.config["batch_size"], phase.config["objective"]
    settings = {
        "rows": rows,
        "rows_per_chip": rows / mesh.size,
        "accumulate": phase.config.get("accumulate", 1),
        "remat": _remat(objective, sizes),
    }
    if objective == "unified":
        settings["row_length"] = config.data.row_length
    return Job(
        phase.name,
        modules,
        training.STACKS[objective],
        lambda modules: training.phase_program(config, phase, modules, mesh),
        mesh,
        workload.of_phase(config, phase, modules),
        phase.steps,
        settings,
        _with_small_unet(sizes) if objective == "diffusion" else None,
        objective,
    )


def _with_small_unet(sizes: LavitConfig) -> LavitConfig:
    """The model with one level of a U-Net, and an autoencoder of few channels."""
    assert sizes.pixels is not None
    unet, autoencoder = sizes.pixels.unet, sizes.pixels.autoencoder
    level = {
        name: getattr(unet, name)[:1]
        for name in ("channels", "layers", "down_attention", "up_attention", "heads", "depths")
    }
    small = dataclasses.replace(unet, **level, middle="none")
    if autoencoder is not None:
        channels = (autoencoder.groups,) * len(autoencoder.channels)
        autoencoder = dataclasses.replace(autoencoder, channels=channels, layers=1)
    return dataclasses.replace(
        sizes, pixels=dataclasses.replace(sizes.pixels, unet=small, autoencoder=autoencoder)
    )


def _remat(objective: str, sizes: LavitConfig) -> str:
    """Of the modules that an objective spends most of its memory on."""
    if objective == "diffusion":
        assert sizes.pixels is not None
        return "full" if sizes.pixels.unet.remat else "none"
    if objective == "unified":
        return sizes.llm.remat
    return sizes.encoder.remat if objective == "contrastive" else sizes.merger.remat


def check_rows(rows: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises a `UserError` for rows of generation that do not divide over the mesh."""
    parts = batch_parts(mesh)
    if rows % parts:
        raise UserError(
            f"config.generation.rows={rows} does not divide over {parts} devices (slice x data x "
            f"fsdp): rows={max(parts, rows // parts * parts)} would fit"
        )


def _generation(config: ConfigDict, name: str, topology: Topology, devices: Sequence[Any]) -> Job:
    wanted = config.generation
    mesh = make_mesh(**{**wanted.mesh, "slice": topology.slices}, devices=devices)
    rows, prompt, new = wanted.rows, wanted.prompt, wanted.new_tokens
    check_rows(rows, mesh)
    modules = _modules(config)

    def make(modules: lavit.Modules) -> Any:
        if name == "prefill":
            return inference.prefill_program(modules, mesh, rows, prompt, new)
        return inference.decode_program(modules, mesh, rows, prompt + new)

    settings = {"rows": rows, "rows_per_chip": rows / mesh.size, "prompt": prompt, "new": new}
    work = workload.of_generation(modules, name, rows, prompt)
    return Job(name, modules, ("llm",), make, mesh, work, 0, settings, objective="generation")
