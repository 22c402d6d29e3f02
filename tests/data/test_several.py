import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from lavit_jax.data import pipeline, prepared, several, stored_ids
from lavit_jax.data.pipeline import Readers
from lavit_jax.data.prepare import run
from lavit_jax.data.prepare.tasks import Job
from lavit_jax.data.sources import Options
from lavit_jax.data.stored_ids import Stamp, Tokens
from lavit_jax.errors import UserError
from shards import tars
from tiny import mini_config

STAMP = Stamp("w", "p", "s")


def write_ids(folder, keys, lost=(), **facts):
    """Ids of images of 16 patches, as `lavit tokenize-dataset` writes them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir()
    rng = np.random.default_rng(1)
    writer = ArrayRecordWriter(str(folder / "ids.array_record"), "group_size:1")
    for number, key in enumerate(keys):
        keep = (rng.random(16) < 0.4).astype(np.uint8)
        keep[number % 16] = 1
        tokens = Tokens(rng.integers(0, 64, keep.sum()).astype(np.uint16), keep)
        writer.write(b"lost" if number in lost else stored_ids.encode(key, tokens))
    writer.close()
    size = (folder / "ids.array_record").stat().st_size
    index = {
        "examples": len(keys),
        "patches": 16,
        "stamp": {"weights": "w", "preprocessing": "p", "selection": "s"},
        "shards": [{"name": "ids.array_record", "examples": len(keys), "bytes": size}],
        **facts,
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("sources")
    text = "\n".join(json.dumps({"text": f"text number {n} " * 20}) for n in range(60))
    (where / "text.jsonl").write_text(text)
    for source, name in (
        (tars(where / "src", 2, 50), "pairs"),
        (where / "text.jsonl", "text"),
    ):
        job = Job(str(source), str(where / name), Options(), 1_000_000)
        run.prepare(job, run.local_runner(1))
    write_ids(where / "ids", keys_of(where / "pairs"))
    return where


def keys_of(folder) -> list[str]:
    stored = prepared.Prepared(folder)
    return [stored[place].key for place in range(len(stored))]


@pytest.fixture
def mixed_config(config, folders) -> ConfigDict:
    config.data.variants = 1
    config.data.sources = {
        "pairs": {"path": str(folders / "pairs"), "visual_ids": str(folders / "ids")},
        "prose": {"path": str(folders / "text"), "weight": 0.5},
    }
    return config


@pytest.fixture
def open_batches(mixed_config, data_dir, tokenizer, cache):
    opened = []

    def open_with(config=mixed_config, **options):
        options = {"stamp": STAMP, "batch_size": 4, "seed": 0, **options}
        made = pipeline.unified_batches(config, data_dir, tokenizer, cache, **options)
        opened.append(made)
        return made

    yield open_with
    for batches in opened:
        batches.close()


def segments(batch) -> list[np.ndarray]:
    """The ids of each example of a batch."""
    found = []
    for ids, which in zip(batch["ids"], batch["segment_ids"]):
        found += [ids[which == n] for n in range(1, which.max() + 1)]
    return found


def kind(ids: np.ndarray, tokenizer) -> str:
    image = tokenizer.vocab_size
    if ids[0] == image and ids[1] == 0:
        return "image_text"
    return "text_image" if image in ids else "text"


def test_pairs_come_in_both_orders_and_text_in_its_share(open_batches, tokenizer):
    batches = open_batches()
    kinds = [kind(ids, tokenizer) for _ in range(30) for ids in segments(next(batches))]
    shares = {name: kinds.count(name) / len(kinds) for name in set(kinds)}
    assert abs(shares["text"] - 1 / 3) < 0.03
    assert abs(shares["image_text"] - shares["text_image"]) < 0.1


def test_long_texts_are_cut_to_rows_and_rows_are_full(open_batches, mixed_config):
    mixed_config.data.sources.prose.weight = 3.0
    batches = open_batches()
    shares = [(next(batches)["segment_ids"] > 0).mean() for _ in range(10)]
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize("weigh_by", ["examples", "tokens"])
def test_batches_depend_on_seed_and_step_only_and_go_on_from_a_state(
    open_batches, mixed_config, weigh_by
):
    mixed_config.data.weigh_by = weigh_by
    mixed_config.data.curriculum = ((2, {"prose": 4.0}), (4, {"pairs": 0.0}))
    whole = open_batches()
    states, expected = [], []
    for _ in range(7):
        states.append(json.loads(json.dumps(whole.get_state())))
        expected.append(next(whole))
    for done in (0, 3, 5):
        again = open_batches(readers=Readers(threads=done % 2))
        again.set_state(states[done])
        for batch in expected[done:]:
            for name, value in next(again).items():
                np.testing.assert_array_equal(value, batch[name])
    assert len(json.dumps(states[-1])) < 4000


def test_a_curriculum_changes_what_comes(open_batches, mixed_config, tokenizer):
    mixed_config.data.curriculum = ((8, {"pairs": 0.0}),)
    batches = open_batches()
    kinds = [{kind(ids, tokenizer) for ids in segments(next(batches))} for _ in range(40)]
    assert set().union(*kinds[:6]) == {"image_text", "text_image", "text"}
    assert set().union(*kinds[30:]) == {"text"}


def test_epochs_and_caps_end_a_source(open_batches, mixed_config, tokenizer):
    mixed_config.data.sources.pairs.epochs = 1.5
    mixed_config.data.sources.pairs.cap = 20
    batches = open_batches()
    kinds = [kind(ids, tokenizer) for _ in range(40) for ids in segments(next(batches))]
    assert 20 <= len([k for k in kinds if k != "text"]) <= 30
    mixed_config.data.sources.prose.epochs = 1.0
    with pytest.raises(UserError, match="all are used up after"):
        batches = open_batches()
        for _ in range(200):
            next(batches)


def test_the_number_of_threads_or_workers_does_not_matter(open_batches):
    alone = open_batches()
    others = [open_batches(readers=r) for r in (Readers(threads=3), Readers(workers=2))]
    for _ in range(2):
        one = next(alone)
        assert one["images"].any()
        for other in map(next, others):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
    assert all(other.get_state() == alone.get_state() for other in others)


def test_processes_share_one_global_batch(open_batches):
    whole = next(open_batches())
    halves = [next(open_batches(readers=Readers(p, 2))) for p in range(2)]
    together = sorted(row.tobytes() for half in halves for row in half["ids"])
    assert sorted(row.tobytes() for row in whole["ids"]) == together


def test_the_data_set_itself_can_be_a_source_among_others(open_batches, mixed_config, tokenizer):
    mixed_config.data.variants = 2  # those of the cache
    del mixed_config.data.sources["pairs"]
    mixed_config.data.sources.pictures = {"kinds": {"question": 1.0}}
    batch = next(open_batches())
    asked = [ids for ids in segments(batch) if kind(ids, tokenizer) == "image_text"]
    assert asked
    assert all("Question: " in tokenizer.decode(ids.tolist()) for ids in asked)
    assert batch["keep"].any(axis=-1).sum() == len(asked)


def test_condition_images_are_those_of_their_captions(open_batches, mixed_config, tokenizer):
    from lavit_jax.data import datasets, images

    records = datasets.load_prepared(mixed_config, mixed_config.data.sources.pairs.path, "train")
    captions = {
        images.resize(records[n]["image"], 32).tobytes(): records[n]["captions"][0]
        for n in range(len(records))
    }
    batch, checked = next(open_batches()), 0
    for row in range(4):
        slots = iter(batch["images"][row])
        which = batch["segment_ids"][row]
        for number in range(1, which.max() + 1):
            ids = batch["ids"][row][which == number]
            if kind(ids, tokenizer) != "image_text":
                continue
            loss = batch["loss"][row][which == number]
            said = tokenizer.decode(ids[loss > 0].tolist())
            assert captions[next(slots).tobytes()] == said
            checked += 1
    assert checked


def through(batches, steps: int) -> None:
    for _ in range(steps):
        next(batches)


def test_lost_ids_are_skipped_up_to_a_share(open_batches, mixed_config, folders, tmp_path, caplog):
    write_ids(tmp_path / "ids", keys_of(folders / "pairs"), lost=(3,))
    mixed_config.data.sources.pairs.visual_ids = str(tmp_path / "ids")
    mixed_config.data.max_bad_share = 0.1
    through(open_batches(), 20)
    assert "skipped visual ids 3: lost ids" in caplog.text
    mixed_config.data.max_bad_share = 0.001
    with pytest.raises(UserError, match=r"max_bad_share=0.001 allows: .* lost ids \(first: "):
        through(open_batches(), 60)


def test_ids_of_another_example_are_as_good_as_lost(open_batches, mixed_config, folders, tmp_path):
    keys = keys_of(folders / "pairs")
    write_ids(tmp_path / "ids", [*keys[1:], keys[0]])
    mixed_config.data.sources.pairs.visual_ids = str(tmp_path / "ids")
    with pytest.raises(UserError, match=r"lost ids \(first: |visual ids on end are lost"):
        through(open_batches(), 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -1.0}, r"sources\.pairs\.weight must be 0 or more"),
        ({"kinds": {"poem": 1.0}}, r"sources\.pairs\.kinds\.poem: expected only image_text"),
        ({"wieght": 1.0}, r"sources\.pairs\.wieght: expected only path, weight"),
        ({"visual_ids": ""}, r"has images: name its ids with .*pairs\.visual_ids"),
        ({"visual_ids": "nowhere"}, r"run `lavit tokenize-dataset DATA nowhere"),
        ({"path": "nowhere"}, "nowhere is not a prepared data set"),
        ({"epochs": 0.001}, "is no example"),
    ],
)
def test_mistakes_in_sources_are_named(open_batches, mixed_config, change, message):
    for name, value in change.items():
        mixed_config.data.sources.pairs[name] = value
    with pytest.raises(UserError, match=message):
        several.check(mixed_config)
        open_batches()


def test_a_mistake_in_sources_does_not_wait_for_stage_two(mixed_config, folders, tmp_path):
    mixed_config.data.variants = 2
    with pytest.raises(UserError, match=r"data\.variants must be 1, got 2"):
        several.check(mixed_config)
    some = tmp_path / "some"
    some.mkdir()
    index = json.loads((folders / "pairs" / "index.json").read_text())
    (some / "index.json").write_text(json.dumps({**index, "images": 99}))
    mixed_config.data.sources.pairs.path = str(some)
    with pytest.raises(UserError, match="pairs mixes images and text alone"):
        several.check(mixed_config)


def test_mistakes_in_weights_are_named(open_batches, mixed_config):
    mixed_config.data.weigh_by = "moons"
    with pytest.raises(UserError, match="weigh_by='moons'"):
        several.check(mixed_config)
    mixed_config.data.curriculum = ((5, {"prose": 1.0}), (5, {"prose": 2.0}))
    with pytest.raises(UserError, match="steps must ascend"):
        open_batches()
    mixed_config.data.curriculum = ((5, {"verse": 1.0}),)
    with pytest.raises(UserError, match=r"curriculum\[0\]\.verse"):
        open_batches()


@pytest.mark.parametrize(
    ("stamp", "says"),
    [
        (Stamp("other", "p", "s"), "weights: w there, other here"),
        (Stamp("w", "p", "t"), "selection: s there, t here"),
    ],
)
def test_ids_of_another_tokenizer_are_refused_with_what_differs(open_batches, stamp, says):
    with pytest.raises(UserError, match=says):
        open_batches(stamp=stamp)


def test_ids_of_another_data_set_are_refused(open_batches, mixed_config, tmp_path):
    keys = [str(number) for number in range(99)]
    mixed_config.data.sources.pairs.visual_ids = str(write_ids(tmp_path / "ids", keys))
    with pytest.raises(UserError, match="of 99 examples, the data set has 100"):
        open_batches()


def test_kinds_that_show_images_need_slots_for_them():
    alone = ("--config.data.images_per_row=0", "--config.data.mixture.image_text=0.0")
    with pytest.raises(UserError, match=r"no room for the images of .*mixture\.question=0\.1"):
        several.check(mini_config(*alone))
    several.check(mini_config(*alone, "--config.data.mixture.question=0.0"))
