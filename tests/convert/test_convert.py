"""There and back: the same tensors, bits and files; or an error and nothing at all."""

import dataclasses
import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import published_weights
from lavit_jax.cli import convert as command
from lavit_jax.cli.main import main
from lavit_jax.convert import convert as conversion
from lavit_jax.convert import plan, record, store
from lavit_jax.convert.convert import convert
from lavit_jax.convert.reverse import reverse
from lavit_jax.errors import UserError
from published_weights import GROUPED
from small_run import nearly_full_disk

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
LAYOUTS = ("safetensors", "safetensors-sharded", "torch", "torch-sharded")


@pytest.fixture(scope="module")
def states():
    return published_weights.weights(GROUPED)


@pytest.fixture
def folder(tmp_path, states):
    return published_weights.write(tmp_path / "src", GROUPED, states)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by other means than ours, as bytes with a dtype."""
    if path.suffix == ".safetensors":
        with safe_open(str(path), framework="pt") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        content = torch.load(path, weights_only=True)
        content = content if isinstance(content, dict) else {"": content}
    return {
        name: (str(t.dtype), tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy())
        for name, t in content.items()
    }


def same_checkpoint(one: Path, other: Path) -> None:
    """The same files; those of weights hold the same bits, all others the same bytes."""
    files = [sorted(p.relative_to(d) for p in d.rglob("*") if p.is_file()) for d in (one, other)]
    assert files[0] == files[1]
    for file in files[0]:
        if file.suffix not in (".bin", ".safetensors", ".pt"):
            assert (one / file).read_bytes() == (other / file).read_bytes(), file
            continue
        expected, found = tensors_of(one / file), tensors_of(other / file)
        assert found.keys() == expected.keys()
        for name, (dtype, shape, bits) in expected.items():
            assert found[name][:2] == (dtype, shape), name
            np.testing.assert_array_equal(found[name][2], bits, err_msg=name)


def arrays_of(converted: Path):
    places = {path: path for path in record.load(converted).arrays}
    return store.nested(store.open_leaves(converted / store.DIRECTORY, places))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_every_layout_is_the_same(layout, tmp_path, states):
    src = published_weights.write(tmp_path / "src", GROUPED, states, layout)
    convert(src, tmp_path / "ours")
    reverse(tmp_path / "ours", tmp_path / "back")
    same_checkpoint(src, tmp_path / "back")


def test_there_and_back_the_goldens_are_the_same(tmp_path):
    report = convert(GOLDENS, tmp_path / "ours")
    assert {row.name for row in report.components} >= {"lowres_unet", "highres_autoencoder"}
    assert not report.left and not report.unread
    assert "language_model/tokenizer.model" in report.carried
    reverse(tmp_path / "ours", tmp_path / "back")
    same_checkpoint(GOLDENS, tmp_path / "back")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_comes_back_in_half_precision(kind, folder, tmp_path, states):
    llm = folder / "language_model"
    (llm / "model.safetensors").unlink()
    half = {name: torch.from_numpy(value).to(kind) for name, value in states["llm"].items()}
    torch.save(half, llm / "pytorch_model.bin")
    convert(folder, tmp_path / "ours")
    reverse(tmp_path / "ours", tmp_path / "back")
    same_checkpoint(folder, tmp_path / "back")
    reverse(tmp_path / "ours", tmp_path / "wide", dtype="float32")
    wide = torch.load(tmp_path / "wide/language_model/pytorch_model.bin", weights_only=True)
    assert all(torch.equal(wide[name], value.float()) for name, value in half.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_component_is_open_at_a_time(layout, tmp_path, states, monkeypatch):
    sources, opened, write = {}, [], store.Writer.write

    def make_plan(*args, **options):
        made = plan.make_plan(*args, **options)
        sources.update(made.source.tensors)
        return made

    def watched(writer, piece):
        opened.append([name for name, tensors in sources.items() if tensors._opened is not None])
        write(writer, piece)

    monkeypatch.setattr(conversion, "make_plan", make_plan)
    monkeypatch.setattr(store.Writer, "write", watched)
    src = published_weights.write(tmp_path / "src", GROUPED, states, layout)
    convert(src, tmp_path / "ours")
    assert {len(names) for names in opened} == {1}
    assert {name for names in opened for name in names} == set(states)
    assert all(tensors._opened is None for tensors in sources.values())


def test_tensors_that_are_no_parameters_come_back_too(tmp_path, states):
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    llm = {name: np.ones(3, np.float32) / 7, **states["llm"]}
    src = published_weights.write(tmp_path / "src", GROUPED, states | {"llm": llm})
    report = convert(src, tmp_path / "ours")
    assert [left.rpartition(": ")[2] for left in report.left] == [name]
    reverse(tmp_path / "ours", tmp_path / "back")
    same_checkpoint(src, tmp_path / "back")


def test_weights_that_no_part_reads_are_told(folder, tmp_path):
    (folder / "language_model" / "pytorch_model.bin").write_bytes(b"the same again")
    report = convert(folder, tmp_path / "ours")
    assert report.unread == ["language_model/pytorch_model.bin"]


def test_weights_in_folders_that_were_not_chosen_are_told(folder, tmp_path):
    (folder / "language_model").rename(folder / "language_model_sft")
    (folder / "older" / "one").mkdir(parents=True)
    (folder / "older" / "one" / "x.pth").write_bytes(b"weights")
    (folder / "older" / "notes.txt").write_text("none")
    assert convert(folder, tmp_path / "ours").unread == [
        "language_model_sft/model.safetensors",
        "language_model_sft/visual_weight.bin",
        "older/one/x.pth",
    ]


def test_a_language_model_that_was_asked_for_has_to_be_there(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="src: no language_model_sft/ in it .--llm-dir"):
        convert(folder, tmp_path / "ours", llm_dir="language_model_sft")
    (folder / "language_model").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="src: no language_model/ in it .--llm-dir"):
        convert(folder, tmp_path / "ours", llm_dir="language_model")


def test_one_part_is_converted_alone(folder, tmp_path, states):
    report = convert(folder, tmp_path / "ours", "language_model")
    assert [row.name for row in report.components] == ["llm", "conditioner"]
    sizes = record.load(tmp_path / "ours").sizes
    assert sizes.config.llm.codes == GROUPED.codes  # from the visual tokenizer beside it
    reverse(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back" / "visual_tokenizer").exists()
    with pytest.raises(UserError, match="no visual_tokenizer in it .* only language_model"):
        reverse(tmp_path / "ours", tmp_path / "none", "visual_tokenizer")
    with pytest.raises(FileNotFoundError, match="no pixel_decoding/ in it"):
        convert(folder, tmp_path / "none", "pixel_decoding")


def test_the_instruction_tuned_language_model_is_another_folder(folder, tmp_path):
    (folder / "language_model").rename(folder / "language_model_sft")
    convert(folder, tmp_path / "ours", llm_dir="language_model_sft")
    reverse(tmp_path / "ours", tmp_path / "back")
    same_checkpoint(folder, tmp_path / "back")


def test_bfloat16_keeps_what_decides_in_float32(folder, tmp_path):
    convert(folder, tmp_path / "ours", dtype="bfloat16")
    stored = record.load(tmp_path / "ours")
    kinds = {path.partition("/")[0]: array.dtype for path, array in stored.arrays.items()}
    wide = {module for module, dtype in kinds.items() if dtype == "float32"}
    assert wide == {"selector", "quantizer", "codebook"}
    assert stored.sizes.config.llm.dtype == stored.sizes.config.encoder.dtype == "bfloat16"
    kernel = arrays_of(tmp_path / "ours")["llm"]["blocks"]["query"]["kernel"][1]
    convert(folder, tmp_path / "exact")
    exact = arrays_of(tmp_path / "exact")["llm"]["blocks"]["query"]["kernel"][1]
    np.testing.assert_array_equal(kernel, exact.astype(ml_dtypes.bfloat16))


class TestPlain:
    """Checkpoints that are not LaVIT's."""

    @pytest.fixture
    def clip(self, tmp_path, states):
        """A whole EVA-CLIP: the image tower under a prefix, a text tower, and a temperature."""
        state = {f"visual.{n}": torch.from_numpy(v) for n, v in states["encoder"].items()}
        state["logit_scale"] = torch.tensor(4.6)
        state["text.blocks.0.weight"] = torch.ones(3, 2, dtype=torch.float16)
        state["text.positions"] = torch.arange(7)
        path = tmp_path / "clip" / "eva_clip.pt"
        path.parent.mkdir()
        torch.save(state, path)
        (path.parent / "holiday.jpg").write_bytes(b"nothing of ours")
        return path

    @pytest.fixture
    def llama(self, tmp_path, states):
        """A Llama without any row for pictures."""
        state = dict(states["llm"])
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = state[name][: GROUPED.text_vocab]
        path = tmp_path / "llama"
        published_weights.write_llm(path, state, "safetensors-sharded")
        settings = published_weights.llm_settings(GROUPED, old=False)
        (path / "config.json").write_text(json.dumps(settings))
        return path

    def test_eva_clip_is_the_encoder(self, clip, tmp_path, states):
        report = convert(clip, tmp_path / "ours", heads=GROUPED.heads)
        assert [row.name for row in report.components] == ["encoder"]
        assert len(report.left) == 3
        assert report.carried == []
        pos_embed = np.asarray(arrays_of(tmp_path / "ours")["encoder"]["pos_embed"])
        np.testing.assert_array_equal(pos_embed, states["encoder"]["pos_embed"][0])
        reverse(tmp_path / "ours", tmp_path / "back")
        (clip.parent / "holiday.jpg").unlink()
        same_checkpoint(clip.parent, tmp_path / "back")

    def test_a_folder_of_one_torch_file_is_taken_too(self, clip, tmp_path):
        (clip.parent / "holiday.jpg").unlink()
        report = convert(clip.parent, tmp_path / "ours", heads=GROUPED.heads)
        assert [row.path for row in report.components] == ["eva_clip.pt"]
        reverse(tmp_path / "ours", tmp_path / "back")
        same_checkpoint(clip.parent, tmp_path / "back")
        clip.with_name("copy.pth").write_bytes(clip.read_bytes())
        with pytest.raises(UserError, match="clip: holds copy.pth, eva_clip.pt, expected one file"):
            convert(clip.parent, tmp_path / "twice", heads=GROUPED.heads)

    def test_a_llama_in_one_torch_file_is_taken_from_its_folder(self, tmp_path, states):
        src = published_weights.write(tmp_path / "src", GROUPED, states)
        llm = src / "language_model"
        (llm / "model.safetensors").unlink()
        published_weights.write_torch(llm / "weights.pth", states["llm"])
        (llm / "visual_weight.bin").unlink()
        report = convert(llm, tmp_path / "ours", heads=GROUPED.heads, codes=GROUPED.codes)
        assert [row.path for row in report.components] == ["weights.pth"]

    def test_an_encoder_without_the_prefix_is_one_too(self, tmp_path, states):
        published_weights.write_torch(tmp_path / "eva_vit_g.pth", states["encoder"])
        report = convert(tmp_path / "eva_vit_g.pth", tmp_path / "ours", heads=3)
        assert report.left == []

    def test_a_tensor_of_neither_tower_is_told_without_the_prefix(self, tmp_path, states):
        state = states["encoder"] | {"rope.freqs": np.ones(2, np.float32)}
        published_weights.write_torch(tmp_path / "eva.pth", state)
        with pytest.raises(UserError, match="eva.pth: 'rope.freqs' is not expected"):
            convert(tmp_path / "eva.pth", tmp_path / "ours", heads=3)

    def test_llama_gains_rows_like_its_own(self, llama, tmp_path, states):
        codes = 4000  # enough for statistics
        report = convert(llama, tmp_path / "ours", codes=codes)
        assert report.created == 2 + codes
        tree = arrays_of(tmp_path / "ours")["llm"]
        text = states["llm"]["model.embed_tokens.weight"][: GROUPED.text_vocab]
        embedding = np.asarray(tree["embedding"])
        head = np.asarray(tree["lm_head"]["kernel"])
        assert embedding.shape == head.T.shape == (GROUPED.text_vocab + 2 + codes, len(text[0]))
        np.testing.assert_array_equal(embedding[: len(text)], text)
        created = embedding[len(text) :]
        np.testing.assert_allclose(created.mean(axis=0), text.mean(axis=0), atol=0.1)
        np.testing.assert_allclose(created.std(axis=0), text.std(axis=0), rtol=0.1)
        assert np.abs(np.corrcoef(created[:, 0], head.T[len(text) :, 0])[0, 1]) < 0.1
        reverse(tmp_path / "ours", tmp_path / "back")
        same_checkpoint(llama, tmp_path / "back")

    def test_created_rows_are_the_same_every_time(self, llama, tmp_path):
        for name in ("one", "two"):
            convert(llama, tmp_path / name, codes=20)
        one, two = (np.asarray(arrays_of(tmp_path / n)["llm"]["embedding"]) for n in ("one", "two"))
        np.testing.assert_array_equal(one, two)

    def test_a_tied_llama_has_a_head_of_its_own_for_codes(self, llama, tmp_path, states):
        state = {n: v for n, v in states["llm"].items() if n != "lm_head.weight"}
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:53]
        for file in llama.glob("model*"):
            file.unlink()
        save_file(state, llama / "model.safetensors")
        settings = json.loads((llama / "config.json").read_text()) | {"tie_word_embeddings": True}
        (llama / "config.json").write_text(json.dumps(settings))
        convert(llama, tmp_path / "ours", codes=20)
        tree = arrays_of(tmp_path / "ours")["llm"]
        kernel = np.asarray(tree["lm_head"]["kernel"])
        np.testing.assert_array_equal(kernel.T, np.asarray(tree["embedding"]))
        reverse(tmp_path / "ours", tmp_path / "back")
        same_checkpoint(llama, tmp_path / "back")

    def test_the_text_tokenizer_tells_whether_there_are_visual_rows(self, tmp_path):
        """The goldens' tokenizer has 400 pieces: 400 rows are text alone, 530 are not."""
        for name, rows in (("plain", 400), ("whole", 530)):
            shapes = dataclasses.replace(GROUPED, text_vocab=rows - 2 - GROUPED.codes)
            src = published_weights.write(
                tmp_path / name, shapes, published_weights.weights(shapes)
            )
            model = (GOLDENS / "language_model" / "tokenizer.model").read_bytes()
            (src / "language_model" / "tokenizer.model").write_bytes(model)
        convert(tmp_path / "plain" / "language_model", tmp_path / "a", heads=3, codes=8)
        assert record.load(tmp_path / "a").sizes.config.llm.text_vocab == 400
        convert(tmp_path / "whole" / "language_model", tmp_path / "b", heads=3)
        assert record.load(tmp_path / "b").sizes.config.llm.codes == 128

    def test_the_number_of_codes_has_to_be_given(self, llama, tmp_path):
        with pytest.raises(UserError, match="give it with --codes"):
            convert(llama, tmp_path / "ours")

    def test_another_part_of_it_is_refused(self, llama, tmp_path):
        with pytest.raises(UserError, match="holds a language_model, no pixel_decoding"):
            convert(llama, tmp_path / "ours", "pixel_decoding", codes=20)

    def test_something_else_is_refused(self, tmp_path):
        torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
        with pytest.raises(UserError, match="resnet.pth: neither .* expected an EVA-CLIP, a Llama"):
            convert(tmp_path / "resnet.pth", tmp_path / "ours")


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def edited(file: str, change):
    """Changes the tensors of a torch file."""

    def edit(folder: Path) -> None:
        state = torch.load(folder / file, weights_only=True)
        change(state)
        torch.save(state, folder / file)

    return edit


def truncated(file: str):
    def edit(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) * 9 // 10])

    return edit


CONDITIONER = "language_model/visual_weight.bin"
ENCODER = "visual_tokenizer/eva_vitg_psz14.bin"
FAULTS = {
    "truncated torch file": (truncated(ENCODER), "eva_vitg_psz14.bin: truncated"),
    "truncated safetensors": (
        truncated("language_model/model.safetensors"),
        "model.safetensors: truncated or not a safetensors file",
    ),
    "wrong dtype": (
        edited(CONDITIONER, lambda s: s.update({"vit_proj.bias": s["vit_proj.bias"].int()})),
        "visual_weight.bin: 'vit_proj.bias' has dtype int32, expected float32 or",
    ),
    "renamed": (
        edited(CONDITIONER, lambda s: s.update({"vit_proj.beta": s.pop("vit_proj.bias")})),
        r"'vit_proj.bias' is missing, expected shape \(32,\).*'vit_proj.beta' is not expected",
    ),
    "missing": (
        edited(ENCODER, lambda s: s.pop("blocks.1.attn.q_bias")),
        r"'blocks.1.attn.q_bias' is missing, expected shape \(24,\)",
    ),
    "extra": (
        edited(ENCODER, lambda s: s.update({"blocks.1.gamma": torch.ones(24)})),
        "eva_vitg_psz14.bin: 'blocks.1.gamma' is not expected",
    ),
    "misshapen": (
        edited(CONDITIONER, lambda s: s.update({"vit_proj.weight": torch.ones(32, 23)})),
        r"'vit_proj.weight' has shape \(32, 23\), expected \(32, 24\)",
    ),
    "a pickle that runs code": (
        lambda folder: torch.save({"a": Trap(folder / "sprung")}, folder / ENCODER),
        "eva_vitg_psz14.bin: refused, it may hold tensors only",
    ),
    "a bare pickle that runs code": (
        lambda folder: (folder / ENCODER).write_bytes(pickle.dumps(Trap(folder / "sprung"))),
        "eva_vitg_psz14.bin: refused",
    ),
    "a number of codes that the codebook has not": (
        lambda folder: None,
        "the codebook has 20 codes, --codes says 21",
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_checkpoint_is_told_and_leaves_nothing(fault, folder, tmp_path):
    break_it, told = FAULTS[fault]
    break_it(folder)
    codes = 21 if "codes" in fault else None
    with pytest.raises(UserError, match=told) as raised:
        convert(folder, tmp_path / "ours", codes=codes)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
    assert not (folder / "sprung").exists()


def test_many_faults_are_cut_short(folder, tmp_path):
    edited(ENCODER, lambda s: s.update({f"x{i}": torch.ones(1) for i in range(50)}))(folder)
    with pytest.raises(UserError, match="and 30 more"):
        convert(folder, tmp_path / "ours")


OUTSIDE = ("../evil", "a/../../evil", "/tmp/evil", "", ".")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["carried", "sources"])
def test_a_record_cannot_name_files_outside_of_the_checkpoint(field, name, tmp_path, states):
    src = published_weights.write(tmp_path / "src", GROUPED, {"encoder": states["encoder"]})
    convert(src / ENCODER, tmp_path / "ours", heads=3)
    document = json.loads((tmp_path / "ours" / record.FILE).read_text())
    if field == "carried":
        document["carried"] = [name]
    else:
        document["sources"]["encoder"] = {name: {"x": [[1], "float32"]}}
    (tmp_path / "ours" / record.FILE).write_text(json.dumps(document))
    (tmp_path / "ours" / "evil").write_text("to be copied")
    with pytest.raises(UserError, match="(outside of the checkpoint|no file's name)"):
        reverse(tmp_path / "ours", tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"src", "ours"}


def test_a_record_cannot_name_a_language_model_outside_of_the_checkpoint(folder, tmp_path):
    convert(folder, tmp_path / "ours", "language_model")
    document = json.loads((tmp_path / "ours" / record.FILE).read_text()) | {"llm_dir": "../src"}
    (tmp_path / "ours" / record.FILE).write_text(json.dumps(document))
    with pytest.raises(UserError, match="'../src' is outside of the checkpoint"):
        record.load(tmp_path / "ours")


@pytest.mark.parametrize("size", [1000, 10_000])  # laying out the checkpoint, writing arrays
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(size, folder, tmp_path, capfd):
    with nearly_full_disk(size):
        assert main(["convert", str(folder), str(tmp_path / "ours")]) == 2
    told = f"lavit: error: cannot write {tmp_path / 'ours'}: File too large\n"
    assert capfd.readouterr().err == told
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
def test_a_full_disk_stops_writing_back_likewise(layout, tmp_path, states, capfd):
    src = published_weights.write(tmp_path / "src", GROUPED, states, layout)
    convert(src, tmp_path / "ours", "language_model")
    with nearly_full_disk(10_000):
        assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--reverse"]) == 2
    told = f"lavit: error: cannot write {tmp_path / 'back'}: File too large\n"
    assert capfd.readouterr().err == told
    assert {path.name for path in tmp_path.iterdir()} == {"src", "ours"}


def test_nothing_is_overwritten(folder, tmp_path):
    (tmp_path / "ours").mkdir()
    convert(folder, tmp_path / "ours")  # an empty folder is as good as none
    for again in (convert, reverse):
        with pytest.raises(UserError, match="ours: exists already"):
            again(tmp_path / "ours", tmp_path / "ours")


def test_the_command_reports_every_tensor(tmp_path, states, capsys):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    llm = states["llm"] | {name: np.ones(3, np.float32)}
    encoder = {n: v for n, v in states["encoder"].items() if not n.startswith("head.")}
    changed = states | {"llm": llm, "encoder": encoder}
    src = published_weights.write(tmp_path / "src", GROUPED, changed)
    argv = ["convert", str(src), str(tmp_path / "ours"), "--dtype", "bfloat16"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"{len(states['llm']):5} tensors" in out
    assert f"kept for --reverse: {src}/language_model/model.safetensors: {name}" in out
    assert f"not in this release: {src}/{ENCODER}: head.weight" in out
    assert out.endswith(f"wrote {tmp_path}/ours\n")
    back = ["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--reverse", "--json"]
    assert main(back) == 0
    rows = json.loads(capsys.readouterr().out)["components"]
    assert sum(row["tensors"] for row in rows) == sum(map(len, changed.values()))


def test_the_command_knows_every_part_and_dtype():
    assert (plan.ALL, *plan.ALL_PARTS) == command.PARTS
    assert command.DTYPES == conversion.DTYPES


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["src", "dst", "--part", "unet"], "invalid choice: 'unet'"),
        (["src", "dst", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["src", "dst", "--heads", "0"], "at least 1"),
        (["nowhere", "dst", "--reverse", "--heads", "2"], "--heads 2 with --reverse"),
        (["nowhere", "dst", "--reverse", "--codes", "2"], "--codes 2 with --reverse"),
        (
            ["nowhere", "dst", "--reverse", "--llm-dir", "language_model"],
            "--llm-dir language_model with --reverse",
        ),
        (["nowhere", "dst"], "nowhere: no such file or folder"),
        (["nowhere", "dst", "--reverse"], "expected a folder made by `lavit convert`"),
    ],
)
def test_mistakes_of_the_command_get_one_line(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["convert", *argv])
    except SystemExit as stopped:
        status = stopped.code
    err = capsys.readouterr().err
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert not Path("dst").exists()
