"""What is checked, claimed and prepared before the first step."""

import json

import pytest

from lavit_jax.errors import UserError
from lavit_jax.training import run, storage
from lavit_jax.training.checks import check_config
from tiny import mini_config


def test_a_directory_belongs_to_the_config_that_claimed_it(tmp_path):
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path / "w"))
    stored = (tmp_path / "w" / "config.json").read_text()
    assert json.loads(stored)["name"] == "mini"
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path / "w"))
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["config.json"]
    assert (tmp_path / "w" / "config.json").read_text() == stored


def test_another_config_is_refused_once_there_is_a_checkpoint(tmp_path):
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path))
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"another config: data\.row_length: 128 -> 96 \("):
        run.claim_workdir(mini_config("--config.data.row_length=96"), storage.on_disk(tmp_path))
    assert (tmp_path / "config.json").read_text() == before


def test_what_changes_nothing_of_what_is_learned_may_change_between_launches(tmp_path):
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path))
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "text.model").write_text("mine")
    run.claim_workdir(
        mini_config(
            "--config.checkpoint.every=7",
            "--config.health.rewinds=1",
            "--config.data.threads=3",
            "--config.data.workers=2",
            "--config.data.max_bad_share=0.5",
            "--config.data.cache=/mnt/disk",
        ),
        storage.on_disk(tmp_path),
    )
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["checkpoint"]["every"], stored["health"]["rewinds"]) == (7, 1)
    assert (stored["data"]["threads"], stored["data"]["workers"]) == (3, 2)
    assert stored["data"].pop("cache") == "/mnt/disk"
    # A run from before there was the field goes on, too.
    (tmp_path / "config.json").write_text(json.dumps(stored))
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path))
    assert (tmp_path / "text.model").exists()


def test_a_second_launch_in_a_directory_is_refused_and_changes_nothing(tmp_path):
    place = storage.on_disk(tmp_path / "w")
    for _ in range(2):  # one after the other may
        with (
            run.held(place),
            pytest.raises(UserError, match="^another launch is training in .*w: let it end, or"),
        ):
            run.train(mini_config(), tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").iterdir()] == [run.LOCK]


def test_a_config_that_cannot_work_makes_no_directory(tmp_path):
    with pytest.raises(UserError, match="divide over 8 devices"):
        run.train(mini_config("--config.phases.unified.batch_size=12"), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_directory_that_cannot_be_made_is_named_before_training(tmp_path):
    (tmp_path / "file").touch()
    place = storage.on_disk(tmp_path / "file" / "w")
    with (
        pytest.raises(UserError, match="^cannot write to the work directory .*w: "),
        run.held(place),
    ):
        pytest.fail("went on")


def test_before_the_first_checkpoint_another_config_takes_its_place(tmp_path):
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path))
    (tmp_path / "text.model").write_text("of the config before")
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    run.claim_workdir(mini_config("--config.data.text_vocab_size=380"), storage.on_disk(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["data"]["text_vocab_size"] == 380
    assert not (tmp_path / "text.model").exists()


def test_a_text_tokenizer_of_the_same_config_stays(tmp_path):
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path))
    (tmp_path / "text.model").write_text("mine")
    run.claim_workdir(mini_config(), storage.on_disk(tmp_path))
    assert (tmp_path / "text.model").exists()


def test_a_damaged_stored_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "mi')
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        run.claim_workdir(mini_config(), storage.on_disk(tmp_path))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to the work directory"):
        run.claim_workdir(mini_config(), storage.on_disk(tmp_path / "file" / "w"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("schedule=encoder,nosuch", "'nosuch'; config.phases has"),
        ("phases.select.modules=selector,nosuch", r"phases\.select\.modules must be some of"),
        ("phases.select.steps=0", r"phases\.select\.steps must be a whole number of at least 1"),
        ("phases.unified.batch_size=0", r"phases\.unified\.batch_size"),
        ("phases.unified.batch_size=12", "divide over 8 devices"),
        ("phases.select.selection=best", r"phases\.select\.selection must be one of"),
        ("phases.select.share_over=best", r"phases\.select\.share_over must be one of"),
        ("evaluation.best_of=0", r"evaluation\.best_of must be a whole number of at least 1"),
        ("phases.select.selection=greedy", "a selector that learns needs selection='sample'"),
        ("phases.select.kept_share=1.5", r"phases\.select\.kept_share must be a number in"),
        ("phases.select.optimizer.b2=2.0", r"phases\.select\.optimizer\.b2"),
        ("phases.select.optimizer.warmup=-1", r"phases\.select\.optimizer\.warmup"),
        ("data.mixture.text=-0.5", r"data\.mixture\.text must be a share of 0 or more, got -0.5"),
        ("data.text_drop=1.5", r"data\.text_drop must be a number in 0\.\.1, got 1.5"),
        ("data.augment.shift=3.0", r"data\.augment\.shift"),
        ("data.dataset=coco", r"data\.dataset='coco': expected 'twemoji' or a folder"),
        ("data.cache=gs://b/x", r"data\.cache must be a folder of this machine, got 'gs://b/x'"),
        ("data.max_bad_share=1.5", r"data\.max_bad_share must be a number in 0\.\.1, got 1.5"),
        ("data.languages=xx", r"data\.languages"),
        ("data.variants=0", r"data\.variants"),
        ("data.row_length=512", r"data\.row_length=512 is longer than"),
        ("checkpoint.every=0", r"checkpoint\.every"),
        ("checkpoint.keep=0", r"checkpoint\.keep"),
        ("checkpoint.keep_every=-1", r"checkpoint\.keep_every"),
        ("health.max_skipped=1", r"health\.max_skipped must be a whole number of at least 2"),
        ("health.spike=-1.0", r"health\.spike"),
        ("health.rewinds=-1", r"health\.rewinds"),
        ("health.hang_seconds=-1.0", r"health\.hang_seconds"),
        ("log.sample_every=-1", r"log\.sample_every"),
        ("mesh.data=3", "mesh"),
        ("model.encoder.heads=5", r"config\.model\.encoder: .*heads must divide width"),
        ("model.llm.heads=0", r"config\.model\.llm: "),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(tmp_path, override, says):
    with pytest.raises(UserError, match=says):
        run.start(mini_config(f"--config.{override}"), storage.on_disk(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "field",
    [
        "log",
        "seed",
        "model.decoder",
        "checkpoint.every",
        "checkpoint.keep_best",
        "health.spike",
        "phases.select.steps",
        "phases.select.quantize",
    ],
)
def test_a_missing_field_is_named(field):
    config = mini_config()
    *groups, last = field.split(".")
    group = config
    for name in groups:
        group = group[name]
    del group[last]
    with pytest.raises(UserError, match=rf"config\.{field} is missing"):
        check_config(config)


def test_both_shipped_schedules_can_work():
    for config in ("mini.py", "mini.py:selector_first", "twemoji.py", "twemoji.py:full"):
        assert check_config(mini_config(config=f"configs/{config}"))
