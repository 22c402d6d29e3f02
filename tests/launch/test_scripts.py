"""The scripts a newcomer runs first."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = [
    *sorted(str(path.relative_to(REPO)) for path in (REPO / "launch").rglob("*.sh")),
    ".ci/run",
]


def bash(*args: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *args], capture_output=True, text=True, check=False, timeout=60, **kwargs
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_sound_shell(script):
    assert bash("-n", str(REPO / script)).stderr == ""


def test_shellcheck_finds_nothing():
    # Beside this Python, where `pip install -e '.[dev]'` puts it, or the system's.
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    assert shellcheck, "shellcheck is missing: pip install -e '.[dev]'"
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh"])
def test_help_says_how_to_call_it_from_any_directory(script, tmp_path):
    done = bash(str(REPO / script), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"bash {script}" in done.stdout
    assert not list(tmp_path.iterdir())


def fake_venv(folder: Path) -> Path:
    """An environment whose pip only writes down that it was called."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"-m pip"*) echo "$@" >>"{folder}/pip.log"; exit ${{FAIL:-0}};; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return folder


def ensure(repo: Path, venv: Path, extras: str, env: dict[str, str] | None = None):
    command = f'. "{REPO}/launch/venv.sh"; ensure_venv "{repo}" "{venv}" {extras!r}'
    return bash("-c", command, env={"PATH": "/usr/bin:/bin", **(env or {})})


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "a repo"  # with a space in its name
    (folder / "launch").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "launch/constraints.txt"):
        (folder / name).write_text("")
    return folder


def test_installing_again_is_quick_until_requirements_change(repo, tmp_path):
    venv = fake_venv(tmp_path / "a venv")
    log = venv / "pip.log"
    for _ in range(2):
        assert ensure(repo, venv, "test,dev").returncode == 0
    assert len(log.read_text().splitlines()) == 1
    assert "--editable" in log.read_text()
    (repo / "setup.py").write_text("changed")
    assert ensure(repo, venv, "test,dev").returncode == 0
    assert len(log.read_text().splitlines()) == 2


def test_an_install_that_failed_is_tried_again(repo, tmp_path):
    venv = fake_venv(tmp_path / "venv")
    assert ensure(repo, venv, "", env={"FAIL": "1"}).returncode != 0
    assert ensure(repo, venv, "").returncode == 0
    assert len((venv / "pip.log").read_text().splitlines()) == 2


def test_without_a_recent_python_there_is_one_clear_line(repo, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    command = f'. "{REPO}/launch/venv.sh"; ensure_venv "{repo}" "{tmp_path}/venv" ""'
    done = subprocess.run(
        [str(shutil.which("bash")), "-c", command],
        env={"PATH": str(empty)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
