"""What all sources share."""

import subprocess
import sys

import pytest

from lavit_jax.data.sources import Options, Part, open_source
from lavit_jax.data.sources.tar import TarSource
from lavit_jax.errors import UserError
from shards import tars


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nosuch.package:Builder", "no TFDS builder"),
        ("./nowhere", "no such file or folder"),
        ("gopher://x/y", "gopher"),
        ("no_such_dataset", "no_such_dataset"),
        ("coco_captions", "`pip install tensorflow` to prepare it"),
    ],
)
def test_what_cannot_be_read_is_named(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec).parts()


def test_a_folder_of_nothing_known_says_what_is_known(tmp_path):
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(UserError, match=r"\.tar.*\.parquet.*\.jsonl"):
        open_source(str(tmp_path))


def test_a_changed_file_changes_its_fingerprint(tmp_path):
    tars(tmp_path, shards=1, each=1)
    (before,) = TarSource(str(tmp_path), Options()).parts()
    tars(tmp_path, shards=1, each=2)
    (after,) = TarSource(str(tmp_path), Options()).parts()
    assert before.fingerprint != after.fingerprint
    assert before == Part(before.place, size=before.size, fingerprint=before.fingerprint)


@pytest.mark.subprocess
def test_preparing_needs_neither_jax_nor_tensorflow_datasets():
    program = """
import sys, lavit_jax.data.prepare.run
sys.exit(str([m for m in ("jax", "tensorflow_datasets", "grain") if m in sys.modules] or ""))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
