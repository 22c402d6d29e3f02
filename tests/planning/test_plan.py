"""Plans of the small config, compiled for the CPU devices of the tests as if they were chips."""

import dataclasses
import functools
import json

import jax
import pytest

from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.parallel import compiled
from lavit_jax.parallel.compiled import Memory
from lavit_jax.parallel.topology import CHIPS, Topology
from lavit_jax.planning import advice, jobs, lengths, plan, search, table
from tiny import mini_config

EIGHT = Topology("v5p-16", CHIPS["v5p"], (2, 2, 2))
SMALL = Topology("v5e-8", CHIPS["v5e"], (2, 4))
GENERATION = {
    "rows": 8, "prompt": 8, "new_tokens": 8,
    "mesh": {"slice": 1, "data": -1, "fsdp": 1, "sequence": 1, "tensor": 2},
}  # fmt: skip


def config():
    made = mini_config("--config.mesh.fsdp=2", "--config.data.row_length=32")
    made.data.images_per_row = 2
    made.model.encoder.depth = 3
    made.generation = GENERATION
    return made


def job(name, settings=None):
    return jobs.make_job(settings or config(), name, EIGHT, jax.devices())


@functools.cache
def planned(name):
    return plan.plan(job(name), EIGHT)


def test_layers_that_were_not_compiled_cost_what_the_second_one_does():
    whole = job("encoder")
    straight = plan.straight(whole.modules.config, {"encoder": 3, "text_tower": 1})
    expected = compiled.cost(whole.make(lavit.build_modules(straight)), whole.mesh)
    assert planned("encoder").cost.flops == pytest.approx(expected.flops, rel=0.01)


def test_layers_are_added_one_by_one_beside_a_light_model(monkeypatch):
    compiled_ones = []

    def cost(modules, mesh, *, quick):
        c = modules.config
        compiled_ones.append((c.llm.width, c.encoder.depth, c.merger.depth))
        flops = 1000.0 * c.llm.width + 10 * c.encoder.depth + c.merger.depth
        return compiled.Cost(flops, 0, 0, 0, {})

    monkeypatch.setattr(compiled, "cost", cost)
    sizes = lavit.build_modules(job("unified").modules.config).config
    light = dataclasses.replace(sizes, llm=dataclasses.replace(sizes.llm, width=8, heads=2))
    whole = dataclasses.replace(
        job("unified"), stacks=("encoder", "merger"), make=lambda modules: modules, light=light
    )
    depths = sizes.encoder.depth, sizes.merger.depth
    found = plan.cost(whole)
    assert found.flops == 1000 * sizes.llm.width + 10 * depths[0] + depths[1]
    assert [width for width, *_ in compiled_ones].count(sizes.llm.width) == 1
    del compiled_ones[:]
    one = compiled.Cost(1000.0 * sizes.llm.width + 10 + 1, 0, 0, 0, {})
    assert plan.cost(whole, one) == found
    assert sizes.llm.width not in [width for width, *_ in compiled_ones]


@pytest.mark.parametrize("name", ["encoder", "prefill", "decode"])
def test_a_plan_says_what_a_chip_holds_and_does(name):
    found = planned(name)
    assert found.params > 0
    # Generation's programs do not take the weights that they never read.
    assert found.memory.peak >= (0.5 if name in jobs.PARTS else 1) * found.params
    assert found.cost.flops > 0
    assert found.seconds > 0
    assert found.fits
    assert (found.optimizer > 0) == (name not in jobs.PARTS)
    document = json.loads(json.dumps(plan.to_json(found)))
    assert document["mesh"]["slice"] == 1
    assert document["collectives"]
    assert ("MFU bound", f"{found.mfu:.1%}") in table.rows(found)


def test_parameters_are_split_over_fsdp():
    alone = config()
    alone.mesh = {**alone.mesh, "data": 8, "fsdp": 1}
    one = compiled.shard_bytes(job("unified", alone).make(job("unified").modules).args[0].params)
    two = compiled.shard_bytes(job("unified").make(job("unified").modules).args[0].params)
    assert two < 0.6 * one


def too_large(name, held, peak, params=1e9, **settings):
    """A plan on v5p that takes so many bytes."""
    found = planned(name)
    return dataclasses.replace(
        found,
        params=int(params),
        memory=Memory(int(held), int(peak - held), int(peak)),
        job=dataclasses.replace(found.job, settings={**found.job.settings, **settings}),
    )


def test_a_plan_that_does_not_fit_says_what_would():
    large = too_large("encoder", 20e9, 120e9, rows_per_chip=4)
    with pytest.raises(UserError, match=r"needs 120.0 GB of 95 GB .*: 2 rows a chip instead of 4"):
        advice.check_fits([planned("encoder"), large])
    held = too_large("encoder", 100e9, 120e9)
    with pytest.raises(UserError, match=r"3 times as many chips along config.mesh.fsdp would fit"):
        advice.check_fits([held])


@pytest.mark.parametrize(
    ("objective", "remat", "message"),
    [
        ("unified", "dots", r'one row a chip; config.model.llm.remat="full" takes less'),
        ("unified", "full", r"config.mesh.tensor twice .*, with config.phases.encoder.batch_size"),
        ("tokenizer", "dots", r'config.model.merger.remat and config.model.decoder.remat="full"'),
        ("contrastive", "none", r'config.model.encoder.remat and .*text_tower.remat="full"'),
        ("diffusion", "none", r"config.model.pixels.unet.remat=True takes less"),
        ("diffusion", "full", r"one row a chip; chips with more memory would fit"),
    ],
)
def test_of_rows_too_large_for_a_chip_the_modules_that_train_keep_less(objective, remat, message):
    found = too_large("encoder", 20e9, 220e9, rows_per_chip=1, remat=remat)
    found = dataclasses.replace(found, job=dataclasses.replace(found.job, objective=objective))
    with pytest.raises(UserError, match=message):
        advice.check_fits([found])


@pytest.mark.parametrize("name", jobs.PARTS)
def test_generation_that_does_not_fit_says_how_many_rows_would(name):
    # 8 rows over 4 copies; keys and values are arguments of decoding.
    cache = too_large(name, 100e9, 120e9, params=10e9)
    with pytest.raises(UserError, match=r": config.generation.rows=4 instead of 8 would fit$"):
        advice.check_fits([cache])
    held = too_large(name, 110e9, 120e9, params=100e9)
    with pytest.raises(UserError, match=r"100.0 GB of .*; config.generation.mesh.tensor 3 times"):
        advice.check_fits([held])
    row = too_large(name, 110e9, 220e9, params=1e9)
    with pytest.raises(UserError, match=r"config.generation.mesh.tensor 2 times as large"):
        advice.check_fits([row])


def test_settings_name_the_policy_of_what_a_phase_trains():
    settings = config()
    settings.model.encoder.remat, settings.model.merger.remat = "full", "dots"
    assert job("encoder", settings).settings["remat"] == "full"
    assert job("select", settings).settings["remat"] == "dots"


EXHAUSTED = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (17.21G) exceeds available HBM (15.75G). HLO module: jit_step."
)


def failing(says, monkeypatch):
    """A program, and a compiler that fails with it."""

    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError(says)

    whole = job("encoder")
    program = whole.make(whole.modules)
    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    return program, whole.mesh


def test_a_compiler_that_gives_up_for_want_of_memory_is_a_plan_that_does_not_fit(monkeypatch):
    program, mesh = failing(EXHAUSTED, monkeypatch)
    held, wanted = compiled.shard_bytes(program.args), int(17.21 * 2**30)
    found = compiled.memory(program, mesh)
    assert found == Memory(held, wanted, held + wanted)
    assert not plan.fits(found, SMALL)
    program, mesh = failing("RESOURCE_EXHAUSTED: Used 27.5G of 15.48G hbm. Exceeded", monkeypatch)
    assert compiled.memory(program, mesh).peak == int(27.5 * 2**30)


@pytest.mark.parametrize(
    ("says", "error"),
    [("RESOURCE_EXHAUSTED: no figure", UserError), ("INTERNAL: bug", jax.errors.JaxRuntimeError)],
)
def test_a_compiler_that_fails_otherwise_is_told(says, error, monkeypatch):
    with pytest.raises(error, match=says):
        compiled.memory(*failing(says, monkeypatch))


def searched(name, topology=EIGHT, **tried):
    settings, told = config(), []
    settings.model.encoder.depth = 1  # of one layer, loop and straight line are one program
    search_ = search.Search(settings, name, topology, jax.devices(), told.append)
    return functools.partial(search_.run, **tried), told


def test_a_search_passes_over_what_no_compiler_takes(monkeypatch):
    failing(EXHAUSTED, monkeypatch)
    run, told = searched("unified", SMALL, rows=(2, 1), remat=("full",))
    with pytest.raises(UserError, match="fits .* with none of the settings tried"):
        run()
    assert len(told) == 2 and all("GB do not fit" in line for line in told)
    run, told = searched("unified", EIGHT, rows=(1,), remat=("full",))
    with pytest.raises(UserError, match="none of the settings tried"):
        run()  # there would be room, but its cost cannot be told
    assert "a chip has too little memory" in told[0]


def test_a_search_passes_over_what_the_compiler_fails_on(monkeypatch):
    failing("INTERNAL: bug\nat some place", monkeypatch)
    run, told = searched("unified", EIGHT, rows=(2, 1), remat=("full",))
    with pytest.raises(UserError, match="none of the settings tried"):
        run()
    assert len(told) == 2 and all("the compiler fails (INTERNAL: bug)" in line for line in told)


def test_a_candidate_splits_parameters_over_what_copies_and_tensor_leave():
    wanted = config()
    wanted.mesh.update({"data": -1, "fsdp": 4})
    found = search.apply(wanted, "unified", search.Candidate(4, 2, "most", 2), EIGHT)
    assert (found.mesh.data, found.mesh.fsdp, found.mesh.tensor) == (2, -1, 2)
    assert found.phases.unified.batch_size == 32 and found.model.llm.remat == "most"


def test_a_batch_that_does_not_divide_the_mesh_says_what_would_fit():
    wrong = config()
    wrong.phases.unified.batch_size = 12
    with pytest.raises(UserError, match=r"batch_size=12 does not divide over 8 .*=16 would fit"):
        job("unified", wrong)


def test_rows_of_generation_that_do_not_divide_say_what_would_fit():
    wrong = config()
    wrong.generation.rows = 7
    with pytest.raises(UserError, match=r"rows=7 does not divide over 4 devices .*rows=4 would"):
        job("decode", wrong)


def test_an_unknown_phase_names_those_there_are():
    with pytest.raises(UserError, match="--phase drawing: the config has encoder, .*decode"):
        job("drawing")


def test_a_search_ranks_what_fits_by_what_it_does_in_a_second():
    run, told = searched("encoder", rows=(2,), remat=("full",), factor=2)
    found = run()
    rates = [made.job.workload.images / made.seconds for made in found]
    assert len(told) == len(found)
    assert rates == sorted(rates, reverse=True)
    assert {made.job.mesh.shape["data"] for made in found} >= {2, 4, 8}


def test_a_search_gives_each_policy_the_most_rows_that_fit(monkeypatch):
    room = {"full": 8, "context": 8, "most": 2, "none": 0}
    once = dataclasses.replace(planned("encoder"), seconds=1.0)

    def memory(job, *, quick):
        fits = job.settings["rows_per_chip"] <= room[job.settings["remat"]]
        return Memory(1, 1, 1 if fits else int(1e15))

    def plan_of(job, topology, *, memory, quick):
        shape = job.mesh.shape
        return dataclasses.replace(once, job=job, seconds=shape["tensor"] / shape["data"])

    monkeypatch.setattr(search, "memory_of", memory)
    monkeypatch.setattr(search, "plan", plan_of)
    run, told = searched("unified", remat=tuple(room), factor=2)
    ranked = [(m.job.mesh.shape, m.job.settings) for m in run()]
    found = [
        (s["data"], s["fsdp"], s["tensor"], of["rows_per_chip"], of["remat"]) for s, of in ranked
    ]
    assert found == [
        (8, 1, 1, 8, "full"),  # the best of the config's own mesh, with more copies
        (4, 2, 1, 8, "full"),
        (4, 2, 1, 8, "context"),
        (4, 1, 2, 8, "full"),
        (4, 2, 1, 2, "most"),
    ]
    # Besides those: 8 and 4 rows of "most", 2 and 1 of "none", and more copies than devices.
    assert len(told) == 5 + 5


def test_nine_tenths_of_packed_rows_are_useful_at_published_lengths():
    mixture = (("image_text", 0.45), ("text_image", 0.5), ("text", 0.05))
    useful, seen = lengths.useful_share(mixture, patches=256, tokens=2048, images=10)
    assert useful >= 0.9
    assert 0.5 < seen <= 1
