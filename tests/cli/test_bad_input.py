"""Bad input at the command line: one clear line and status 2, or it simply works."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lavit_jax
from lavit_jax.cli.main import main
from lavit_jax.config import load_config, to_json
from lavit_jax.inference.writing import Said

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAVIT_DEBUG", raising=False)


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A work directory whose only checkpoint is still being written."""
    workdir = tmp_path / "w"
    (workdir / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(load_config("configs/mini.py")))
    shutil.copy(GOLDENS / "language_model" / "tokenizer.model", workdir / "text.model")
    return workdir


def good(path: str) -> None:
    Image.fromarray(NOISE).save(path)


def truncated(path: str) -> None:
    good(path)
    Path(path).write_bytes(Path(path).read_bytes()[:1000])


def huge(path: str) -> None:
    """A PNG whose header says 20,000 x 20,000."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(chunk[4:])))


def empty(path: str) -> None:
    Path(path).touch()


def text(path: str) -> None:
    Path(path).write_text("no picture")


def missing(path: str) -> None:
    pass


@pytest.mark.parametrize("command", ["tokenize", "caption", "answer", "draw"])
@pytest.mark.parametrize("make", [missing, truncated, huge, empty, text])
def test_a_picture_that_cannot_be_read_is_one_line_and_status_2(make, command, capsys, monkeypatch):
    def load(workdir, mesh):
        raise AssertionError("a model was loaded for nothing")

    monkeypatch.setattr(lavit_jax, "load", load, raising=False)
    make("bad.png")
    argv = {
        "tokenize": ["bad.png"],
        "caption": ["bad.png"],
        "answer": ["bad.png", "what?"],
        "draw": ["a cat", "--image", "bad.png"],
    }
    Path("w").mkdir()
    Path("w/config.json").write_text("{}")
    assert main([command, *argv[command], "--workdir", "w"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "bad.png" in err


def animated(path: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def converted(mode: str, kind: str):
    def make(path: str) -> None:
        Image.fromarray(NOISE).convert(mode).save(path, format=kind)

    make.__name__ = mode
    return make


@pytest.mark.parametrize(
    "make",
    [
        animated,
        converted("L", "PNG"),
        converted("1", "PNG"),
        converted("P", "PNG"),
        converted("CMYK", "JPEG"),
        converted("RGBA", "PNG"),
        converted("LA", "PNG"),
    ],
)
def test_a_picture_of_any_kind_simply_works(make, capsys, monkeypatch):
    class Model:
        def complete(self, prompts, **options):
            return [[Said("x".join(map(str, image.shape)), None)] for image, _ in prompts]

    monkeypatch.setattr(lavit_jax, "load", lambda workdir, mesh: Model(), raising=False)
    make("picture")
    Path("w").mkdir()
    Path("w/config.json").write_text("{}")
    assert main(["caption", "picture", "--workdir", "w"]) == 0
    assert capsys.readouterr().out in ("40x30x3\n", "16x16x3\n")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda w: None, "no complete checkpoint yet"),
        (lambda w: shutil.rmtree(w / "checkpoints"), "no checkpoint yet"),
        (lambda w: (w / "text.model").write_text("?"), "not a sentencepiece model"),
        (lambda w: (w / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda w: (w / "checkpoints" / "20").mkdir(), "none of the checkpoints [20] can be read"),
    ],
)
def test_a_work_directory_without_a_whole_checkpoint_is_one_line_and_status_2(
    damage, says, workdir, capsys
):
    good("cat.png")
    damage(workdir)
    before = sorted(workdir.rglob("*"))
    assert main(["caption", "cat.png", "--workdir", str(workdir)]) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert says in line
    assert all(warning.startswith("warning: ") for warning in warnings)
    assert sorted(workdir.rglob("*")) == before
