"""Files of tensors, whole and damaged; and files that would rather run code."""

import json
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lavit_jax.convert import read
from lavit_jax.errors import UserError

WRAPPED = "holds tensors in 'model' and in 'model_ema', expected one of them"
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def torch_file(path, tensors=TENSORS, **options):
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path, **options)
    return path


def safetensors_file(path, tensors=TENSORS):
    save_file(tensors, path)
    return path


def shards(folder, kind="safetensors"):
    """Two shards of one tensor each, and their index."""
    stem, suffix, save = {
        "safetensors": ("model", "safetensors", safetensors_file),
        "torch": ("pytorch_model", "bin", torch_file),
    }[kind]
    where = {}
    for number, (name, value) in enumerate(TENSORS.items(), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        save(folder / file, {name: value})
        where[name] = file
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index


def equal(tensors):
    found = dict(read.items(tensors))
    assert found.keys() == TENSORS.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, TENSORS[name], strict=True)
        assert tensors.infos[name][:2] == (value.shape, "float32")


def test_both_kinds_of_file_read_the_same(tmp_path):
    equal(read.open_file(safetensors_file(tmp_path / "x.safetensors")))
    equal(read.open_file(torch_file(tmp_path / "x.bin")))


def test_the_oldest_torch_format_reads_too(tmp_path):
    path = torch_file(tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    equal(read.open_file(path))


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_shards_read_as_one(kind, tmp_path):
    index = shards(tmp_path, kind)
    equal(read.open_folder(tmp_path))
    index.unlink()
    equal(read.open_folder(tmp_path))


def test_one_shard_is_open_at_a_time(tmp_path):
    shards(tmp_path)
    tensors = read.open_folder(tmp_path)
    opened = []
    for name in tensors.infos:
        tensors.read(name)
        opened.append(tensors._opened.path.name)
    assert opened == [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]


@pytest.mark.parametrize("save", [safetensors_file, torch_file])
def test_a_file_is_open_only_between_reading_and_closing(save, tmp_path):
    suffix = "safetensors" if save is safetensors_file else "bin"
    tensors = read.open_file(save(tmp_path / f"x.{suffix}"))
    for _ in range(2):
        assert tensors._opened is None
        equal(tensors)
        assert tensors._opened is not None
        tensors.close()


def test_the_last_shard_is_closed_too(tmp_path):
    shards(tmp_path)
    tensors = read.open_folder(tmp_path)
    equal(tensors)
    tensors.close()
    assert tensors._opened is None
    equal(tensors)


def test_bfloat16_is_read_as_such(tmp_path):
    value = np.array([1.5, -2.25], ml_dtypes.bfloat16)
    torch.save({"x": torch.tensor([1.5, -2.25], dtype=torch.bfloat16)}, tmp_path / "x.bin")
    save_file({"x": value}, tmp_path / "x.safetensors")
    for path in tmp_path.iterdir():
        tensors = read.open_file(path)
        assert tensors.infos["x"].dtype == "bfloat16"
        np.testing.assert_array_equal(tensors.read("x"), value, strict=True)


@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, 0.97])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch, oldest format"])
def test_a_truncated_file_is_named(kind, keep, tmp_path):
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.bin")
    if kind == "safetensors":
        safetensors_file(path)
    else:
        torch_file(path, _use_new_zipfile_serialization=kind == "torch")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=path.name) as raised:
        dict(read.items(read.open_file(path)))
    assert "\n" not in str(raised.value)


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(zipped, tmp_path):
    path, sprung = tmp_path / "x.bin", tmp_path / "sprung"
    torch.save({"a": Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="x.bin: refused, it may hold tensors only .*open"):
        read.open_file(path)
    assert not sprung.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_that_runs_code_is_refused(tmp_path):
    path, sprung = tmp_path / "x.bin", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError, match="x.bin: refused"):
        read.open_file(path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list, expected named tensors"),
        ({"model": {"a": torch.ones(2)}, "model_ema": {"a": torch.ones(2)}}, WRAPPED),
        ({"model": {"a": torch.ones(2)}, "steps": [{"model_ema": torch.ones(2)}]}, "in 'steps',"),
        ({"step": 3, "a": torch.ones(2)}, "'step' is a int, expected named tensors only"),
        (torch.ones(2), "holds a Tensor, expected named tensors"),
    ],
)
def test_a_torch_file_of_something_else_is_told(content, told, tmp_path):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match=told):
        read.open_file(tmp_path / "x.bin")


def test_a_wrapper_with_plain_values_beside_it_is_read(tmp_path):
    tensors = {name: torch.from_numpy(value) for name, value in TENSORS.items()}
    torch.save({"epoch": 3, "args": {"lr": [0.1]}, "state_dict": tensors}, tmp_path / "x.bin")
    equal(read.open_file(tmp_path / "x.bin"))


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = torch_file(tmp_path / "x.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"x.bin: .*pip install 'lavit_jax\[convert\]'"):
        read.open_file(path)
    equal(read.open_file(safetensors_file(tmp_path / "x.safetensors")))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "truncated or not JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "'a' is in 3, expected a file beside it"),
        ('{"weight_map": {"a": ["x.bin"]}}', r"'a' is in \['x.bin'\], expected a file"),
        ('{"weight_map": {"a": "../x.bin"}}', "'a' is in '../x.bin', expected a file beside it"),
        ('{"weight_map": {"a": "/x.bin"}}', "'a' is in '/x.bin', expected a file beside it"),
        ('{"weight_map": {"a": "sub/x.bin"}}', "'a' is in 'sub/x.bin', expected a file"),
        ('{"weight_map": {"a.weight": "gone.safetensors"}}', "gone.safetensors: no such file"),
        (
            '{"weight_map": {"c": "model-00001-of-00002.safetensors"}}',
            "says that model-00001-of-00002.safetensors holds 'c'",
        ),
    ],
)
def test_a_bad_index_is_told(content, told, tmp_path):
    shards(tmp_path).write_text(content)
    with pytest.raises((UserError, FileNotFoundError), match=told):
        read.open_folder(tmp_path)


def test_a_tensor_in_two_shards_is_told(tmp_path):
    for name in ("model-1.safetensors", "model-2.safetensors"):
        safetensors_file(tmp_path / name)
    with pytest.raises(UserError, match="is in model-1.safetensors already"):
        read.open_folder(tmp_path)


def test_missing_files_and_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.bin: no such file"):
        read.open_file(tmp_path / "x.bin")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read.open_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no .*.safetensors and no"):
        read.open_folder(tmp_path)
