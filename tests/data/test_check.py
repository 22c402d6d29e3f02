import io
import zlib

import numpy as np
import pytest
from PIL import Image

from lavit_jax.data import check
from lavit_jax.data.check import checked
from lavit_jax.data.sources import Broken, Raw
from shards import jpeg


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that claims 50,000 x 50,000 pixels."""
    data = bytearray(png(8, 8))
    data[16:24] = (50_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "zero bytes"),
        (b"<html>404</html>", "wrong type"),
        (b"%PDF-1.4 ...", "wrong type"),
        (jpeg(0)[:-100], "truncated"),
        (png(200, 200)[:200], "truncated"),
        (jpeg(0)[:20], "wrong type"),
        (png(64, 64)[:50] + bytes(20) + png(64, 64)[70:], "undecodable"),
        (b"DDS " + (124).to_bytes(4, "little") + bytes(120), "undecodable"),
        (bomb(), "too large"),
        (png(1, 1), "tiny image"),
        (png(1, 500), "tiny image"),
        (png(1000, 10), "extreme aspect"),
    ],
)
def test_unfit_images_are_told_apart(image, reason):
    (broken,) = checked(Raw("k", "x.tar:k", image, ("a thing",)))
    assert (broken.reason, broken.origin) == (reason, "x.tar:k")


@pytest.mark.parametrize("image", [jpeg(0), png(8, 8), png(160, 8), animation()])
def test_sound_images_pass_as_they_are(image):
    raw = Raw("k", "x", image, (" a thing ",))
    (example,) = checked(raw)
    assert (example.image, example.captions) == (image, ("a thing",))


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "empty caption"),
        (b" \n\t", "empty caption"),
        ("x" * 10_001, "huge caption"),
        (b"caf\xe9", "not UTF-8"),
        ("\ud800 alone", "not UTF-8"),
        ("a\0b", "NUL in caption"),
    ],
)
def test_unfit_captions_are_told_apart(caption, reason):
    (broken,) = checked(Raw("k", "x", jpeg(0), (caption,)))
    assert broken.reason == reason
    (example,) = checked(Raw("k", "x", jpeg(0), (caption, "good")))
    assert example.captions == ("good",)


def test_an_example_without_captions_is_broken():
    (broken,) = checked(Raw("k", "x", jpeg(0)))
    assert broken.reason == "empty caption"


def test_what_a_source_found_broken_stays_so():
    broken = Broken("corrupt shard", "x.tar")
    assert list(checked(broken)) == [broken]


def test_questions_stay_with_their_answers():
    raw = Raw("k", "x", jpeg(0), ("c",), ("q1", "", b"q3"), (b"a1", b"a2", "\0"))
    (example,) = checked(raw)
    assert (example.questions, example.answers) == (("q1",), ("a1",))


def test_long_documents_are_cut_at_white_space_and_nothing_is_lost():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), 7)) for _ in range(3000)]
    pieces = list(checked(Raw("doc", "x", None, (" ".join(words),))))
    assert len(pieces) > 5
    assert max(len(piece.captions[0]) for piece in pieces) <= check.TEXT_PIECE
    assert [word for piece in pieces for word in piece.captions[0].split()] == words
    assert [piece.key for piece in pieces[:2]] == ["doc#0", "doc#1"]


def test_a_document_without_white_space_is_cut_all_the_same():
    pieces = list(checked(Raw("doc", "x", None, ("x" * 9000,))))
    assert "".join(piece.captions[0] for piece in pieces) == "x" * 9000


def test_names_that_are_no_text_are_made_so():
    (example,) = checked(Raw("a\udcff", "x", None, ("text",)))
    example.key.encode()
