"""Mutated inputs through the loader; `benchmarks/fuzz_loader.py` runs many more."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_loader
from benchmarks.fuzz_loader import Edit

BASES = fuzz_loader.bases()

edits = st.lists(
    st.builds(
        Edit,
        st.sampled_from(fuzz_loader.KINDS),
        st.floats(0, 1),
        st.integers(1, 1024),
        st.one_of(st.sampled_from(fuzz_loader.PIECES), st.binary(min_size=1, max_size=64)),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", BASES)
def test_sound_files_are_read_whole(name, tmp_path):
    found = fuzz_loader.load(name, BASES[name], tmp_path)
    assert set(found) == {"good"}


@settings(max_examples=200)
@given(st.sampled_from(sorted(BASES)), edits)
def test_mutated_files_give_examples_or_faults_and_never_crash(name, made):
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz_loader.load(name, fuzz_loader.mutate(BASES[name], made), Path(folder))
    assert all(count > 0 for count in found.values())
    assert not [reason for reason in found if reason.startswith("late")]
