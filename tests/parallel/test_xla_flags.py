"""The one place with XLA flags."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lavit_jax.parallel import xla_flags

REPO = Path(__file__).resolve().parents[2]


def test_each_flag_is_well_formed_comes_once_and_has_a_reason():
    names = [flag.name for flag in xla_flags.FLAGS]
    assert len(set(names)) == len(names)
    for flag in xla_flags.FLAGS:
        assert re.fullmatch(r"xla_[a-z0-9_]+", flag.name)
        assert re.fullmatch(r"[A-Za-z0-9]+", flag.value)
        assert len(flag.why.split()) >= 5


def test_latency_hiding_and_async_collectives_are_on():
    line = xla_flags.line().split()
    assert "--xla_tpu_enable_latency_hiding_scheduler=true" in line
    assert "--xla_enable_async_all_gather=true" in line


def test_the_line_is_printed_without_loading_jax():
    code = (
        "import sys; from lavit_jax.parallel import xla_flags; xla_flags.main([]);"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, xla_flags.line() + "\n"), done.stderr


def test_every_reason_is_printed_on_request(capsys):
    xla_flags.main(["--why"])
    printed = capsys.readouterr().out
    assert all(f"{flag}\n    {flag.why}\n" in printed for flag in xla_flags.FLAGS)


def test_no_other_file_names_a_flag():
    files = [path for top in ("lavit_jax", "launch", "configs") for path in (REPO / top).rglob("*")]
    named = [path.name for path in files if path.is_file() and b"--xla_" in path.read_bytes()]
    assert named == []


@pytest.mark.parametrize(
    ("mine", "used"), [(None, xla_flags.line()), ("--mine", "--mine"), ("", "")]
)
def test_plans_compile_with_them_unless_the_user_has_others(mine, used, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", mine or "")
    if mine is None:
        monkeypatch.delenv("LIBTPU_INIT_ARGS")
    xla_flags.use()
    assert os.environ["LIBTPU_INIT_ARGS"] == used
