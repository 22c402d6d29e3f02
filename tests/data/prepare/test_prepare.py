import json
import random
import shutil
import subprocess
import sys

import fsspec
import pytest

from benchmarks import kill_prepare
from lavit_jax.data.prepare import run, tasks
from lavit_jax.data.prepare.store import Store
from lavit_jax.data.tally import TooManyBroken
from lavit_jax.errors import UserError
from preparing import ALONE, content, job, stored
from shards import jpeg, keys, pair, tars, write_tar
from small_run import nearly_full_disk


def test_every_example_is_prepared_once_and_in_order(tmp_path):
    index = run.prepare(job(tars(tmp_path / "src", 6, 20), tmp_path / "dst"), ALONE)
    found = stored(tmp_path / "dst")
    assert [example.key for example in found] == keys(120)
    assert [example.image for example in found] == [jpeg(n) for n in range(120)]
    assert (index["examples"], index["images"], index["rejected"]) == (120, 120, {})
    assert not (tmp_path / "dst" / ".work").exists()


def test_shards_are_about_as_large_as_asked(tmp_path):
    source = tars(tmp_path / "src", 2, 60, size=(320, 320))
    index = run.prepare(job(source, tmp_path / "dst", 300_000), ALONE)
    sizes = [shard["bytes"] for shard in index["shards"]]
    assert len(sizes) >= 4
    assert max(sizes) < 500_000
    assert min(sizes) > 150_000
    assert [example.key for example in stored(tmp_path / "dst")] == keys(120)


def test_the_number_of_workers_does_not_matter(tmp_path):
    source = tars(tmp_path / "src", 6, 10)
    for workers in (1, 2):
        run.prepare(job(source, tmp_path / str(workers)), run.local_runner(workers))
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_what_is_prepared_can_be_prepared_again(tmp_path):
    run.prepare(job(tars(tmp_path / "src", 3, 10), tmp_path / "one"), ALONE)
    run.prepare(job(tmp_path / "one", tmp_path / "two"), ALONE)
    first, second = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert first == second


def test_a_destination_may_be_anywhere_fsspec_reaches(tmp_path):
    source = tars(tmp_path / "src", 3, 10)
    run.prepare(job(source, "memory://prepared/set"), ALONE)
    run.prepare(job(source, tmp_path / "local"), ALONE)
    memory = fsspec.filesystem("memory")
    names = {path.rpartition("/")[2] for path in memory.find("/prepared/set")}
    assert names == set(content(tmp_path / "local"))
    for name, data in content(tmp_path / "local").items():
        assert memory.cat_file(f"/prepared/set/{name}") == data


def test_broken_examples_are_counted_listed_and_left_out(tmp_path):
    members = [member for n in range(200) for member in pair(n)]
    members += [("b.jpg", b"junk"), ("b.txt", b"x"), ("c.jpg", jpeg(0)), ("c.txt", b"\xff\xfe")]
    source = write_tar(tmp_path / "src" / "x.tar", members)
    index = run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.01)
    assert index["rejected"] == {"wrong type": 1, "not UTF-8": 1}
    assert [example.key for example in stored(tmp_path / "dst")] == keys(200)
    lines = (tmp_path / "dst" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"] for line in lines] == [f"{source}:b", f"{source}:c"]


def test_too_many_broken_examples_stop_it_with_a_report_and_more_can_be_allowed(tmp_path):
    members = [member for n in range(20) for member in pair(n)]
    source = write_tar(tmp_path / "x.tar", [*members, ("b.jpg", b""), ("b.txt", b"x")])
    with pytest.raises(TooManyBroken) as stopped:
        run.prepare(job(source, tmp_path / "dst"), ALONE)
    assert "1 of 21 examples are broken (4.8%), more than --max-bad-share=0.01" in str(
        stopped.value
    )
    assert f"1 zero bytes (first: {source}:b)" in str(stopped.value)
    assert not (tmp_path / "dst" / "index.json").exists()
    index = run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.1)
    assert index["examples"] == 20


def test_a_finished_preparation_is_not_done_again(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    first = run.prepare(job(source, tmp_path / "dst"), ALONE)
    shutil.rmtree(source)
    assert run.prepare(job(source, tmp_path / "dst"), ALONE) == first


@pytest.mark.parametrize("bucket", [False, True])
def test_a_source_that_has_grown_is_not_said_to_be_done(tmp_path, bucket):
    source, told = tars(tmp_path / "src", 2, 5), str(tmp_path / "src")
    memory = fsspec.filesystem("memory")
    if bucket:
        told = f"memory://grown/{tmp_path.name}"
        memory.put(f"{source}/", f"/grown/{tmp_path.name}/", recursive=True)
    begun = job(told, tmp_path / "dst")
    index = run.prepare(begun, ALONE)
    assert run.prepare(begun, ALONE) == index
    tars(tmp_path / "more", 3, 5)
    new = tmp_path / "more" / "00002.tar"
    if bucket:
        memory.put_file(str(new), f"/grown/{tmp_path.name}/00002.tar")
    else:
        shutil.copy(new, source)
    with pytest.raises(UserError, match=r"src|grown") as refused:
        run.prepare(begun, ALONE)
    assert str(refused.value) == (
        f"{told} changed since {tmp_path / 'dst'} was prepared from it (2 files then, 3 now): "
        f"prepare it to another folder, or delete {tmp_path / 'dst'} to prepare it anew"
    )


def test_a_source_of_other_files_is_not_said_to_be_done(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    run.prepare(job(source, tmp_path / "dst"), ALONE)
    write_tar(source / "00001.tar", pair(77))
    with pytest.raises(UserError, match="some files are others"):
        run.prepare(job(source, tmp_path / "dst"), ALONE)
    index = json.loads((tmp_path / "dst" / "index.json").read_text())
    del index["state"]  # as before there were any
    (tmp_path / "dst" / "index.json").write_text(json.dumps(index))
    assert run.prepare(job(source, tmp_path / "dst"), ALONE) == index


@pytest.mark.parametrize("bucket", [False, True])
def test_a_file_that_changes_between_plan_and_task_is_noticed(tmp_path, bucket):
    source = tars(tmp_path / "src", 2, 5)
    place, memory = str(source), fsspec.filesystem("memory")
    if bucket:
        place = f"memory://changing/{tmp_path.name}"
        memory.put(f"{source}/", f"/changing/{tmp_path.name}/", recursive=True)

    def changing(job, tasks):
        write_tar(source / "00001.tar", pair(77))
        if bucket:
            memory.put_file(str(source / "00001.tar"), f"/changing/{tmp_path.name}/00001.tar")
        yield from ALONE(job, tasks)

    with pytest.raises(UserError, match=r"00001.tar changed since .*dst was begun: delete .*dst"):
        run.prepare(job(place, tmp_path / "dst", 1), changing)
    assert len(list((tmp_path / "dst" / ".work").glob("task-*.json"))) == 1


def test_another_job_in_the_same_folder_is_refused(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    run.prepare(job(source, tmp_path / "dst"), ALONE)
    with pytest.raises(UserError, match="holds another data set"):
        run.prepare(job(source, tmp_path / "dst", shard_bytes=5), ALONE)


def test_a_source_that_changed_halfway_is_refused(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    begun = job(source, tmp_path / "dst")
    with Store(begun.destination).claimed():
        run._keep_plan(begun, Store(begun.destination), tasks.make_tasks(begun))
    tars(tmp_path / "src", 3, 5)
    with pytest.raises(UserError, match="changed since .* was begun"):
        run.prepare(begun, ALONE)


def test_two_preparations_of_one_folder_do_not_meet(tmp_path):
    source = tars(tmp_path / "src", 1, 1)
    with Store(str(tmp_path / "dst")).claimed(), pytest.raises(UserError, match="another process"):
        run.prepare(job(source, tmp_path / "dst"), ALONE)


def test_a_full_disk_is_told_in_one_line_and_it_goes_on_once_there_is_room(tmp_path):
    source = tars(tmp_path / "src", 2, 20)
    run.prepare(job(source, tmp_path / "whole"), ALONE)
    full = job(source, tmp_path / "dst")
    for size in (10, 10_000):  # the plan, a shard
        with nearly_full_disk(size), pytest.raises(UserError) as told:
            run.prepare(full, ALONE)
        assert str(told.value) == f"cannot write {tmp_path / 'dst'}: File too large"
        assert not list((tmp_path / "dst").rglob("tmp-*"))
    run.prepare(full, ALONE)
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.subprocess)])
def test_a_disk_that_fails_for_a_while_loses_nothing(tmp_path, monkeypatch, workers):
    source = tars(tmp_path / "src", 2, 20)
    begun = job(source, tmp_path / "dst")
    late = source / "00001.tar"
    late.rename(tmp_path / "away")

    def planned(_, plan=tasks.make_tasks):
        (tmp_path / "away").rename(late)
        found = plan(begun)
        late.rename(tmp_path / "away")
        return found

    with monkeypatch.context() as patched, pytest.raises(UserError, match=f"^cannot read {late}: "):
        patched.setattr(tasks, "make_tasks", planned)
        run.prepare(begun, run.local_runner(workers))
    assert not (tmp_path / "dst" / "index.json").exists()
    (tmp_path / "away").rename(late)
    index = run.prepare(begun, ALONE)
    assert (index["examples"], index["rejected"]) == (40, {})
    assert [example.key for example in stored(tmp_path / "dst")] == keys(40)


def test_a_shard_that_breaks_off_counts_against_the_share(tmp_path):
    source = tars(tmp_path / "src", 10, 20)
    cut = source / "00003.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(TooManyBroken, match=r"corrupt shard \(first: .*00003.tar\)"):
        run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.03)
    index = run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.1)
    assert 188 <= index["examples"] <= 192
    assert 7 <= index["rejected"]["corrupt shard"] <= 13


def test_nothing_to_prepare_is_said(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="has no examples"):
        run.prepare(job(tmp_path / "x.jsonl", tmp_path / "dst"), ALONE)


def test_what_another_finished_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    begun = job(tars(tmp_path / "src", 1, 1), tmp_path / "dst")
    plan = tasks.make_tasks

    def slow(asked):
        monkeypatch.setattr(tasks, "make_tasks", plan)
        run.prepare(begun, ALONE)
        return plan(asked)

    monkeypatch.setattr(tasks, "make_tasks", slow)
    index = run.prepare(begun, lambda *_: pytest.fail("done again"))
    assert index["examples"] == 1
    assert not (tmp_path / "dst" / ".work").exists()


@pytest.mark.parametrize("status", [1, 2])
def test_a_launch_that_fails_by_itself_was_neither_killed_nor_finished(tmp_path, status):
    program = [sys.executable, "-c", f"raise SystemExit({status})"]
    with pytest.raises(RuntimeError, match=f"ended with status {status}"):
        kill_prepare.killed(program, tmp_path, 0.5)


@pytest.mark.subprocess
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_loses_and_doubles_nothing(tmp_path, workers):
    """`benchmarks/kill_prepare.py` kills it many more times."""
    source = tars(tmp_path / "src", 30, 10)
    run.prepare(job(source, tmp_path / "whole"), ALONE)
    command = kill_prepare.command(source, tmp_path / "dst", workers)
    chance = random.Random(workers)
    # The first as soon as there is work: a fast machine may be done before any other moment.
    moments = [0.0, chance.uniform(0, 0.3), chance.uniform(0, 0.3)]
    killed = [kill_prepare.killed(command, tmp_path / "dst", moment) for moment in moments]
    assert any(killed)
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert content(tmp_path / "dst") == content(tmp_path / "whole")
    assert [example.key for example in stored(tmp_path / "dst")] == keys(300)
