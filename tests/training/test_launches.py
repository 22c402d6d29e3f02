import json
import subprocess

from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training import launches
from lavit_jax.training.launches import Launch
from tiny import mini_config


def launch(workdir, resumed_from=0):
    return Launch(workdir, mini_config(), make_mesh(data=4, fsdp=2), resumed_from)


def test_every_launch_says_what_it_was(tmp_path):
    launch(tmp_path).update(5, {"steps": 2.0, "setup": 1.0})
    launch(tmp_path, 5).update(9, {"steps": 3.0, "restart": 1.0}, "finished")
    first, second = launches.read(tmp_path)
    assert (first["launch"], first["status"], first["step"]) == (1, "running", 5)
    assert (second["launch"], second["status"], second["resumed_from"]) == (2, "finished", 5)
    assert second["mesh"]["axes"] == {"slice": 1, "data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert second["mesh"]["devices"] == "8 x cpu"
    assert second["versions"]["jax"]
    assert {"command", "host", "git", "started", "updated"} <= set(second)
    stored = json.loads((tmp_path / "run.json").read_text())["config"]
    assert stored["name"] == "mini"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_seconds_of_all_launches_add_up(tmp_path):
    launch(tmp_path).update(5, {"steps": 2.0, "setup": 1.0})
    launch(tmp_path).update(9, {"steps": 3.0, "restart": 1.0})
    launch(tmp_path)  # killed before its first save
    assert launches.total_seconds(tmp_path) == {"steps": 5.0, "setup": 1.0, "restart": 1.0}


def test_a_damaged_or_missing_file_is_begun_anew(tmp_path):
    assert launches.total_seconds(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"launches": [{')
    launch(tmp_path)
    assert [each["launch"] for each in launches.read(tmp_path)] == [1]


def test_the_state_of_a_repository_is_its_commit_and_whether_files_differ(tmp_path):
    assert launches.git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    state = launches.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert not state["changed"]
    (tmp_path / "file").write_text("two")
    assert launches.git_state(tmp_path)["changed"]
