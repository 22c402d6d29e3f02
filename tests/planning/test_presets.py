"""The large configs' presets with modules of a size for tests."""

import jax
import pytest
from jax.sharding import AbstractMesh

from configs import models, pods
from lavit_jax import config as configs
from lavit_jax.errors import UserError
from lavit_jax.parallel import topology as topologies
from lavit_jax.parallel.mesh import AXES, mesh_sizes
from lavit_jax.parallel.topology import CHIPS, Topology
from lavit_jax.planning import jobs, plan
from lavit_jax.training.run import check_batch
from lavit_jax.training.schedule import make_schedule

CHIP = CHIPS["v5p"]
LARGE = ("unified_7b", "tokenizer_vitg", "pixel_decoder")
MOST_COPIES = 2  # on eight chips, which leave at least two to share one
# Fields that decide how a program is laid out, which the small modules take from the large ones.
KEPT = ("remat", "dtype", "attention", "vocab_chunks")


def small(name: str, preset: str):
    """A large config with the sizes of `mini`: a layer of each stack, of stage two's stacks two."""
    config = configs.load_config(f"configs/{name}.py:{preset}")
    sizes = models.mini()
    if "pixels" in config.model:
        sizes.pixels = models.mini_pixels()
        sizes.pixels.update({"patch": 1, "autoencoder": {"channels": (8, 16), "groups": 4}})
        sizes.pixels.unet.update({"in_channels": 4, "out_channels": 4})
    for part, fields in sizes.items():
        if hasattr(fields, "items") and part in config.model:
            fields.update({k: config.model[part][k] for k in KEPT if k in config.model[part]})
            if "depth" in fields:
                fields.depth = 2 if name == "unified_7b" else 1
    config.model = sizes
    if config.mesh.fsdp == pods.FSDP_OF_SMALL:
        config.mesh.fsdp = 2  # of four chips a slice
    config.mesh.data = min(config.mesh.data, MOST_COPIES)
    config.data.update({"text_vocab_size": 64, "row_length": 32, "images_per_row": 2})
    for phase in config.phases.values():
        phase.batch_size = 16
    if "generation" in config:
        config.generation.update({"rows": 16, "prompt": 8, "new_tokens": 8})
        config.generation.mesh.tensor = 2
    return config


def real_mesh(axes, preset: str) -> AbstractMesh:
    """Of all chips that a preset is named after."""
    name, _, slices = preset.partition("x")
    place = topologies.parse(name, int(slices or 1))
    assert axes["slice"] in (place.slices, 1)
    sizes = mesh_sizes([{**axes, "slice": place.slices}[axis] for axis in AXES], place.chips)
    return AbstractMesh(sizes, AXES)


def check(config, preset: str) -> int:
    """Whether batches and rows divide over the chips that are meant; how many were looked at."""
    mesh = real_mesh(config.mesh, preset)
    assert config.mesh.slice == mesh.shape["slice"]
    schedule = make_schedule(config)
    for phase in schedule:
        check_batch(phase, mesh)
    if "generation" not in config:
        return len(schedule)
    jobs.check_rows(config.generation.rows, real_mesh(config.generation.mesh, preset))
    return len(schedule) + 1


@pytest.mark.parametrize("preset", pods.PRESETS)
@pytest.mark.parametrize(("name", "looked_at"), [*zip(LARGE, (2, 2, 1)), ("pixel_decoder,sdxl", 1)])
def test_every_preset_divides_over_its_chips(name, looked_at, preset):
    name, _, unet = name.partition(",")
    config = configs.load_config(f"configs/{name}.py:{preset}{',' if unet else ''}{unet}")
    assert check(config, preset) == looked_at


def test_a_preset_that_does_not_divide_is_noticed():
    config = configs.load_config("configs/unified_7b.py:v5e-256")
    config.generation.rows = 16  # 32 copies
    with pytest.raises(UserError, match="config.generation.rows=16 does not divide over 32"):
        check(config, "v5e-256")
    config = configs.load_config("configs/tokenizer_vitg.py:v6e-256")
    config.phases.select.batch_size = 128
    with pytest.raises(UserError, match="batch_size=128 does not divide over 256"):
        check(config, "v6e-256")


@pytest.mark.parametrize(
    ("name", "preset"),
    [("unified_7b", preset) for preset in pods.PRESETS]
    + [(name, "v5p-128x2") for name in LARGE[1:]],
)
def test_every_preset_lays_out_its_state(name, preset):
    config, (slices, data) = small(name, preset), pods.pod(preset)
    topology = Topology(preset, CHIP, (2, 2, 2 // slices), slices)
    for phase in config.schedule:
        job = jobs.make_job(config, phase, topology, jax.devices())
        assert job.mesh.shape["slice"] == slices
        if name == "unified_7b":
            assert job.mesh.shape["fsdp"] == 8 // slices // min(data, MOST_COPIES)
        state = job.make(job.modules).args[0]
        split = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
        assert sum(x.size for x in split) > 0.8 * sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", LARGE)
def test_large_configs_are_planned_at_a_layer_or_two(name):
    config = small(name, "v5p-128x2")
    topology = Topology("v5p-8", CHIP, (2, 2, 1), 2)
    found = plan.plan(jobs.make_job(config, config.schedule[-1], topology, jax.devices()), topology)
    assert found.fits
    assert found.cost.flops > 0
    assert 0 < found.mfu < 1
    assert any(c.between_slices for c in found.cost.sent)


@pytest.mark.parametrize("part", jobs.PARTS)
def test_generation_is_planned_at_two_layers(part):
    config = small("unified_7b", "v5p-128x2")
    topology = Topology("v5p-8", CHIP, (2, 2, 1), 2)
    found = plan.plan(jobs.make_job(config, part, topology, jax.devices()), topology)
    assert found.fits
    assert found.cost.flops > 0
    assert 0 < found.mfu < 1
    assert found.cost.sent
