"""Documents of plain text."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit_jax.data.sources import json_lines, open_source, plain_text
from shards import everything

TEXTS = st.text(st.sampled_from("ab\n \r"), max_size=60) | st.lists(
    st.sampled_from(["a", "bc", "\n", "\n\n", " \n", "x" * 40]), max_size=40
).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 40), st.sampled_from([8, 1000]))
def test_every_document_is_in_exactly_one_part(text, size, longest):
    """The same as of one part, also where lines are too long to be read."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(json_lines, "MAX_LINE", longest)
        path = Path(folder) / "x.txt"
        path.write_bytes(text.encode())
        (whole,) = open_source(str(path)).parts()
        expected = list(open_source(str(path)).read(whole))
        patched.setattr(plain_text, "PART_BYTES", size)
        assert len(open_source(str(path)).parts()) == max(1, -(-len(text) // size))
        assert everything(path) == expected


def test_plain_text_documents_end_at_blank_lines(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\n\n\n  \nthree\n\nfour")
    found = everything(tmp_path)
    assert [raw.captions[0] for raw in found] == [b"one\ntwo", b"three", b"four"]
    assert len({raw.key for raw in found}) == 3
