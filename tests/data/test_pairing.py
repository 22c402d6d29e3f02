"""A text is never beside another example's image or visual ids, whatever cannot be read."""

import dataclasses

import numpy as np
import pytest

from lavit_jax.data import pipeline, prepared
from lavit_jax.data.check import checked
from lavit_jax.data.pipeline import Readers
from lavit_jax.data.prepare import run, tasks
from lavit_jax.data.prepare.tasks import Job
from lavit_jax.data.sources import Options
from lavit_jax.data.visual_ids import VisualIdCache
from shards import caption, pair, write_tar

COUNT, BROKEN = 40, 5


@pytest.fixture(params=["undecodable", "corrupt record"])
def broken_set(request, config, tmp_path, monkeypatch):
    """A data set that could be read whole, and one of which an example cannot be."""

    def damaged(raw):
        for item in checked(raw):
            last = f"{BROKEN:09d}" == item.key
            yield dataclasses.replace(item, image=b"junk") if last else item

    def made(name):
        members = [member for number in range(COUNT) for member in pair(number)]
        job = Job(
            str(write_tar(tmp_path / "x.tar", members)), str(tmp_path / name), Options(), 10**6
        )
        run.prepare(job, run.local_runner(1))
        config.data.dataset = job.destination
        return pipeline.variants(config, "", "train")

    config.data.max_bad_share = 0.2
    config.data.variants = 1
    config.data.held_out = 4
    whole = made("whole")
    if request.param == "undecodable":
        monkeypatch.setattr(tasks, "checked", damaged)
        return whole, made("broken")
    made("broken")
    (shard,) = (tmp_path / "broken").glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data[data.index(prepared.Prepared(tmp_path / "whole")[BROKEN].image[-60:-20])] ^= 0xFF
    shard.write_bytes(data)
    return whole, pipeline.variants(config, "", "train")


def ids_of(pictures) -> VisualIdCache:
    """Ids that name their picture: as many codes as patches, each the picture's number."""
    keys = [pictures.keyed(place)[0] for place in range(len(pictures))]
    codes = np.repeat(np.array([[int(key)] for key in keys]), 16, axis=1)
    return VisualIdCache(codes, np.ones_like(codes, np.uint8), "", tuple(keys))


@pytest.mark.parametrize("made_when", ["whole", "broken"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.subprocess)])
def test_no_text_is_paired_with_another_examples_image(
    config, tokenizer, broken_set, made_when, workers
):
    whole, broken = broken_set
    numbers = {whole[place].tobytes(): int(whole.keyed(place)[0]) for place in range(len(whole))}
    cache = ids_of(whole if made_when == "whole" else broken)
    config.data.mixture = {"image_text": 0.5, "text_image": 0.5}
    config.data.text_drop = 0.0
    batches = pipeline.unified_batches(
        config, "", tokenizer, cache, 4, 0, readers=Readers(threads=1, workers=workers)
    )
    seen = set()
    for _ in range(20):
        batch = next(batches)
        for row in range(4):
            slots = iter(range(config.data.images_per_row))
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                place = batch["segment_ids"][row] == segment
                ids, feature = batch["ids"][row][place], batch["feature"][row][place]
                codes = ids[ids >= tokenizer.vocab_size + 2] - tokenizer.vocab_size - 2
                text = tokenizer.decode([int(i) for i in ids if 2 < i < tokenizer.vocab_size])
                if (feature >= 0).any():
                    image = batch["images"][row][next(slots)]
                    if not batch["loss"][row][place].any():
                        assert not image.any()
                        continue
                    number = numbers[image.tobytes()]
                else:
                    (number,) = set(codes.tolist())
                assert text == caption(number)
                seen.add(number)
    batches.close()
    assert len(seen) > 20


def test_an_image_that_cannot_be_read_is_nobodys(broken_set, config):
    own = prepared.own_examples(config.data.dataset, 32, 0.5)
    assert own[BROKEN] is None
    assert [own[place]["key"] for place in (BROKEN - 1, BROKEN + 1)] == ["000000004", "000000006"]
    assert own.tally.bad == 1
    with pytest.raises(IndexError):
        own[COUNT]
