"""The command line, with the model behind it replaced by one that answers at once."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import lavit_jax
from lavit_jax.cli import common
from lavit_jax.cli.main import main
from lavit_jax.errors import UserError

COMMANDS = [
    "quickstart",
    "train",
    "checkpoints",
    "replay",
    "tokenize",
    "reconstruct",
    "caption",
    "answer",
    "score",
    "draw",
    "data",
    "tokenize-dataset",
    "convert",
    "parity",
    "plan",
]


@dataclasses.dataclass
class Tokens:
    ids: np.ndarray
    keep: np.ndarray
    kept: int


class Said(NamedTuple):
    text: str
    score: float


class Score(NamedTuple):
    text_given_image: float
    image_given_text: float
    text_tokens: int
    image_tokens: int


class FakeLavit:
    """Has the Python API's methods and remembers how they were called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []

    def tokenize(self, images, **options):
        self.calls.append(("tokenize", {"images": images, **options}))
        keep = np.arange(16) < 2
        return [Tokens(np.array([7, 5], np.int32), keep, 2) for _ in images]

    def reconstruct(self, images, **options):
        self.calls.append(("reconstruct", {"images": images, **options}))
        return [np.zeros((8, 8, 3), np.uint8) for _ in images]

    def complete(self, prompts, n_best=1, **options):
        self.calls.append(("complete", {"prompts": prompts, "n_best": n_best, **options}))
        return [
            [Said(f"caption {index} é", -0.5 - place) for place in range(n_best)]
            for index in range(len(prompts))
        ]

    def answer(self, images, questions, **options):
        self.calls.append(("answer", {"images": images, "questions": questions, **options}))
        return [f"answer to {question}" for question in questions]

    def score(self, images, texts, **options):
        self.calls.append(("score", {"images": images, "texts": texts, **options}))
        return [Score(-3.0, -8.0, 2, 4) for _ in texts]

    def draw(self, prompts, **options):
        self.calls.append(("draw", {"prompts": prompts, **options}))
        return [[np.zeros((8, 8, 3), np.uint8)] * options["n"] for _ in prompts]


@pytest.fixture
def model(monkeypatch) -> FakeLavit:
    fake = FakeLavit()
    monkeypatch.setattr(lavit_jax, "load", lambda workdir, mesh: fake, raising=False)
    return fake


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A directory with two pictures and a work directory, current for the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAVIT_WORKDIR", raising=False)
    monkeypatch.delenv("LAVIT_DEBUG", raising=False)
    for name, size in (("cat.png", (8, 8)), ("other/cat.png", (12, 6))):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, "red").save(path)
    workdir = tmp_path / "workdir" / "quickstart"
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text("{}")
    return tmp_path


def mistake(capsys, *argv: str) -> str:
    """Runs a command that must fail as a user's mistake, and returns its one line."""
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


def document(capsys) -> dict:
    """The one JSON document on stdout."""
    out, _ = capsys.readouterr()
    return json.loads(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"lavit {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_without_a_command_there_is_help_and_status_2(capsys):
    assert main([]) == 2
    assert "usage: lavit" in capsys.readouterr().err


def test_tokenize_prints_ids_and_writes_overlays(model, capsys):
    assert main(["tokenize", "cat.png", "other/cat.png", "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert "cat.png: kept 2 of 16 patches\n  ids 7 5\n" in out
    for name in ("cat.kept.png", "cat-2.kept.png"):
        assert min(Image.open(f"o/{name}").size) >= 448


def test_tokenize_json_has_ids_counts_and_overlay(model, capsys):
    assert main(["tokenize", "cat.png", "--json"]) == 0
    (image,) = document(capsys)["images"]
    assert image["ids"] == [7, 5]
    assert image["kept"] == sum(image["keep"]) == 2
    assert Path(image["overlay"]).is_file()


def test_caption_of_one_picture_is_the_caption_alone(model, capsys):
    assert main(["caption", "cat.png"]) == 0
    assert capsys.readouterr().out == "caption 0 é\n"


def test_captions_of_several_name_their_picture(model, capsys):
    assert main(["caption", "cat.png", "other/cat.png", "--beams", "1", "--prompt", "a "]) == 0
    assert capsys.readouterr().out == "cat.png: caption 0 é\nother/cat.png: caption 1 é\n"
    name, call = model.calls[0]
    assert (name, call["beams"], call["preset"]) == ("complete", 1, None)
    assert "max_new" not in call
    assert [(image.shape, words) for image, words in call["prompts"]] == [
        ((8, 8, 3), "a"),
        ((6, 12, 3), "a"),
    ]


def test_caption_json(model, capsys):
    assert main(["caption", "cat.png", "--json"]) == 0
    assert document(capsys) == {"captions": [{"image": "cat.png", "caption": "caption 0 é"}]}


def test_the_n_best_captions_have_scores(model, capsys):
    assert main(["caption", "cat.png", "--n-best", "2", "--select", "top=3"]) == 0
    assert capsys.readouterr().out == "1 (-0.50) caption 0 é\n2 (-1.50) caption 0 é\n"
    assert model.calls[0][1]["select"] == "top=3"
    assert main(["caption", "cat.png", "--n-best", "2", "--json"]) == 0
    (entry,) = document(capsys)["captions"]
    assert entry["n_best"][1] == {"caption": "caption 0 é", "score": -1.5}


def test_score_tells_both_directions(model, capsys):
    assert main(["score", "cat.png", "a cat", " a dog "]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a cat: log p(text|image) -3.00, -1.500 for each of 2 tokens"
    assert lines[3] == "a dog: log p(image|text) -8.00, -2.000 for each of 4 tokens"
    assert main(["score", "cat.png", "a cat", "--json"]) == 0
    assert document(capsys)["scores"] == [
        {
            "text": "a cat",
            "text_given_image": -3.0,
            "image_given_text": -8.0,
            "text_tokens": 2,
            "image_tokens": 4,
        }
    ]


def test_reconstruct_writes_pictures(model, capsys):
    assert main(["reconstruct", "cat.png", "other/cat.png", "--out", "r"]) == 0
    names = ["cat.again.png", "cat-2.again.png"]
    assert capsys.readouterr().out.split() == [str(Path("r", name)) for name in names]
    assert all(Path("r", name).is_file() for name in names)
    assert model.calls[0][1].keys() == {"images", "select", "seed"}
    assert main(["reconstruct", "cat.png", "--decoder", "lowres", "--json"]) == 0
    assert document(capsys)["images"] == [{"image": "cat.png", "reconstruction": "cat.again.png"}]
    assert model.calls[1][1]["decoder"] == "lowres"


@pytest.mark.parametrize("argv", [["reconstruct", "cat.png"], ["draw", "x"]])
def test_size_solver_and_tiles_of_a_decoder_are_passed_on(argv, model, capsys):
    how = ["--decoder", "highres", "--size", "768x1344", "--solver", "dpm++", "--tiled"]
    assert main([*argv, *how, "--json"]) == 0
    document(capsys)
    call = model.calls[0][1]
    assert (call["decoder_size"], call["decoder_solver"]) == ((768, 1344), "dpm++")
    assert call["decoder_tile"] is True


def test_answer_takes_several_questions_about_one_picture(model, capsys):
    assert main(["answer", "cat.png", "what?", " who? ", "--json"]) == 0
    assert document(capsys)["answers"] == [
        {"question": "what?", "answer": "answer to what?"},
        {"question": "who?", "answer": "answer to who?"},
    ]
    assert len(model.calls[0][1]["images"]) == 2
    assert "plain_question" not in model.calls[0][1]
    assert main(["answer", "cat.png", "what?", "--no-plain-question"]) == 0
    assert model.calls[1][1]["plain_question"] is False


def test_draw_writes_pictures_and_a_sheet(model, capsys):
    assert main(["draw", "A red/apple!", "--n", "2", "--out", "d", "--seed", "3"]) == 0
    names = ["a-red-apple-1.png", "a-red-apple-2.png", "a-red-apple-sheet.png"]
    assert capsys.readouterr().out.split() == [str(Path("d", name)) for name in names]
    assert sorted(path.name for path in Path("d").iterdir()) == names
    call = model.calls[0][1]
    assert (call["n"], call["seed"], call["images"], call["preset"]) == (2, 3, None, None)
    assert not {"temperature", "guidance", "best_of"} & call.keys()


def test_draw_passes_pictures_and_sampling_on(model, capsys):
    argv = ["draw", "x", "--image", "cat.png", "--temperature", "0.7", "--top-k", "5", "--n", "1"]
    assert main([*argv, "--best-of", "3", "--preset", "fid", "--json"]) == 0
    found = document(capsys)
    (drawing,) = found["drawings"]
    assert "sheet" not in drawing
    assert found["settings"] == {"temperature": 0.7, "top_k": 5, "best_of": 3}
    call = model.calls[0][1]
    assert (call["temperature"], call["top_k"], len(call["images"])) == (0.7, 5, 1)
    assert (call["best_of"], call["preset"]) == (3, "fid")


def test_prompts_that_look_alike_get_files_of_their_own(model, capsys):
    assert main(["draw", "a b", "a-b", "--n", "1", "--json"]) == 0
    first, second = document(capsys)["drawings"]
    assert first["images"] != second["images"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["draw", " "], "prompt is empty"),
        (["draw", ""], "prompt is empty"),
        (["answer", "cat.png", " "], "question is empty"),
        (["caption", "missing.png"], "missing.png"),
        (["caption", "workdir/quickstart/config.json"], "config.json"),
        (["caption"], "IMG"),
        (["caption", "cat.png", "--workdir", "nowhere"], "nowhere has no trained model"),
        (["draw", "x", "--n", "0"], "at least 1, got '0'"),
        (["draw", "x", "--n", "many"], "a whole number of at least 1, got 'many'"),
        (["draw", "x", "--guidance", "nan"], "got 'nan'"),
        (["draw", "x", "--out", "cat.png"], "cat.png"),
        (["draw", "x", "--preset", "mine"], "invalid choice: 'mine'"),
        (["reconstruct", "cat.png", "--decoder", "best"], "invalid choice: 'best'"),
        (["reconstruct", "cat.png", "--solver", "euler"], "invalid choice: 'euler'"),
        (["draw", "x", "--size", "768"], "takes HxW such as 768x1344, got '768'"),
        (["draw", "x", "--size", "0x64"], "takes HxW such as 768x1344, got '0x64'"),
        (["score", "cat.png", " "], "the text is empty"),
        (["draw", "x", "--mesh", "tensor:4"], "takes AXIS=N,... such as tensor=4, got 'tensor:4'"),
        (["draw", "x", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["sing"], "'sing'"),
        (["convert", "gs://b/LaVIT", "o"], "a place on this machine, got gs://b/LaVIT: copy it"),
        (["parity", "gs://b/LaVIT"], "a place on this machine, got gs://b/LaVIT: copy it"),
        (["train", "--workdir", "w"], "--config"),
        (["train", "--config", "configs/mini.py"], "--workdir"),
        (["train", "--config", "nosuch.py", "--workdir", "w"], "nosuch.py"),
        (
            ["train", "--config", "configs/mini.py", "--workdir", "w", "--config.sed=1"],
            "unknown config field 'sed'; did you mean seed",
        ),
        (
            ["train", "--config", "configs/mini.py", "--workdir", "w", "--config.seed", "1"],
            "overrides look like --config.field=value",
        ),
        (["train", "--config", "configs/mini.py", "--workdir", "w", "--wrkdir=1"], "--wrkdir"),
    ],
)
def test_mistakes_get_one_line_and_status_2(argv, says, model, capsys):
    assert says in mistake(capsys, *argv)
    assert not Path("w").exists()


def test_nothing_is_loaded_before_the_pictures_are_known_to_be_good(monkeypatch, capsys):
    def load(workdir, mesh):
        raise AssertionError("loaded")

    monkeypatch.setattr(lavit_jax, "load", load, raising=False)
    mistake(capsys, "tokenize", "missing.png", "--out", "o")
    assert not Path("o").exists()


@pytest.fixture
def trained(monkeypatch) -> list:
    """Stands in for training; holds what it was called with."""
    from lavit_jax.training import run

    calls: list = []
    monkeypatch.setattr(
        run, "train", lambda config, workdir, started: calls.append((config, workdir))
    )
    return calls


def test_train_loads_the_config_with_overrides(trained, monkeypatch):
    monkeypatch.setenv("LAVIT_WORKDIR", "from/env")
    assert main(["train", "--config", "configs/mini.py", "--config.seed=5"]) == 0
    ((config, workdir),) = trained
    assert (config.seed, workdir) == (5, Path("from/env"))


def raising(error: BaseException):
    def run(*args, **kwargs):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("what\nis wrong"), "lavit: error: what is wrong"),
        (FileNotFoundError(2, "No such file or directory", "a.b"), "a.b: No such file"),
        (PermissionError("nobody may"), "nobody may"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("rank 3"), "rank 3 (LAVIT_DEBUG=1 shows where)"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n#"),
            "a device has too little memory: commands that use a model split it over several by "
            "--mesh tensor=4 (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)",
        ),
    ],
)
def test_errors_of_a_run_are_one_line(error, line, model, monkeypatch, capsys):
    monkeypatch.setattr(model, "complete", raising(error))
    assert line in mistake(capsys, "caption", "cat.png")


def test_other_errors_of_devices_are_not_taken_for_want_of_memory(model, monkeypatch):
    error = jax.errors.JaxRuntimeError("INTERNAL: out of memory, it seems")
    monkeypatch.setattr(model, "complete", raising(error))
    with pytest.raises(jax.errors.JaxRuntimeError):
        main(["caption", "cat.png"])


def test_debugging_shows_the_traceback(model, monkeypatch):
    monkeypatch.setenv("LAVIT_DEBUG", "1")
    monkeypatch.setattr(model, "complete", raising(UserError("x")))
    with pytest.raises(UserError):
        main(["caption", "cat.png"])


def test_interrupted_training_says_that_it_can_go_on(monkeypatch, capsys):
    from lavit_jax.training import run

    monkeypatch.setattr(run, "train", raising(KeyboardInterrupt()))
    assert main(["train", "--config", "configs/mini.py", "--workdir", "w"]) == 130
    assert capsys.readouterr().err.strip() == "lavit: stopped; run the same command again to go on"


@pytest.fixture
def completed(monkeypatch, tmp_path) -> Path:
    """The file that says that a command did all of its work."""
    file = tmp_path / "completed"
    monkeypatch.setenv("LAVIT_COMPLETED", str(file))
    return file


def test_training_that_is_done_says_so_in_a_file(trained, completed):
    assert main(["train", "--config", "configs/mini.py", "--workdir", "w"]) == 0
    assert completed.read_text()


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), UserError("x")])
def test_training_that_was_stopped_or_failed_does_not(error, completed, monkeypatch):
    from lavit_jax.training import run

    monkeypatch.setattr(run, "train", raising(error))
    with contextlib.suppress(SystemExit):
        main(["train", "--config", "configs/mini.py", "--workdir", "w"])
    assert not completed.exists()


@pytest.mark.parametrize(("argv", "status"), [(["train", "--help"], 0), (["train", "--x"], 2)])
def test_help_is_complete_and_a_mistake_is_not(argv, status, completed):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert (ended.value.code, completed.exists()) == (status, status == 0)


def fake_module(monkeypatch, name: str, **content) -> None:
    module = types.ModuleType(name)
    for key, value in content.items():
        setattr(module, key, value)
    parent, _, child = name.rpartition(".")
    monkeypatch.setitem(sys.modules, name, module)
    if parent not in sys.modules:
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


def test_quickstart_ends_with_its_report(here, monkeypatch, capsys):
    calls = []

    def run(workdir, spec, overrides):
        calls.append((workdir, spec, overrides))
        report = here / "report" / "index.html"
        report.parent.mkdir(exist_ok=True)
        report.with_name("metrics.json").write_text('{"minutes": 1.5}')
        return report

    fake_module(monkeypatch, "lavit_jax.quickstart", run=run)
    assert main(["quickstart", "--config.seed=1"]) == 0
    assert capsys.readouterr().out == f"{here}/report/index.html\n"
    assert calls == [(Path("workdir/quickstart"), "configs/twemoji.py", ["--config.seed=1"])]
    assert main(["quickstart", "--json"]) == 0
    assert document(capsys)["metrics"] == {"minutes": 1.5}


def row(name: str, difference: float, ok: bool = True, status: str = "checked"):
    return types.SimpleNamespace(
        name=name, shape=(2, 9), max_abs_diff=difference, tolerance=2e-5, ok=ok, status=status
    )


@pytest.mark.parametrize("status", ["input", "not checked"])
def test_parity_does_not_agree_to_what_it_could_not_compare(status, monkeypatch, capsys):
    rows = [row("tok_ids", 0.0), row("unet", float("nan"), ok=False, status="not checked")]
    if status == "input":
        rows = [row("image", float("nan"), status="input")]
    fake_module(monkeypatch, "lavit_jax.convert.parity", run=lambda directory: rows)
    assert main(["parity", "goldens"]) == 1
    assert ("not compared: unet\n" in capsys.readouterr().out) is (status == "not checked")
    assert main(["parity", "goldens", "--json"]) == 1
    assert document(capsys)["ok"] is False


@pytest.mark.parametrize("ok", [True, False])
def test_parity_tells_agreement_by_its_status(ok, monkeypatch, capsys):
    rows = [
        row("tok_ids", 0.0),
        row("lm_logits", 1e-6 if ok else 0.5, ok=ok),
        row("image", float("nan"), status="input"),
    ]
    fake_module(monkeypatch, "lavit_jax.convert.parity", run=lambda directory: rows)
    assert main(["parity", "goldens"]) == (0 if ok else 1)
    out = capsys.readouterr().out
    assert f"{2 if ok else 1} of 2 arrays agree\n" in out
    assert ("DIFFERS" in out) is not ok
    assert main(["parity", "goldens", "--json"]) == (0 if ok else 1)
    found = document(capsys)
    assert found["ok"] is ok
    assert found["arrays"][2] == {
        "name": "image",
        "shape": [2, 9],
        "max_abs_diff": None,
        "tolerance": 2e-5,
        "ok": True,
        "status": "input",
    }


def test_json_is_strict_about_what_is_not_finite(capsys):
    common.print_json({"a": [float("nan"), 1.5], "b": float("inf")})
    assert document(capsys) == {"a": [None, 1.5], "b": None}


def test_file_names_are_safe_and_distinct():
    assert common.slug("../Über den Wolken?! " + "x" * 99).startswith("über-den-wolken-xxx")
    assert len(common.slug("y" * 99)) <= 60
    assert common.slug("///") == "picture"
    assert common.distinct(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]


def lavit(*argv: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lavit_jax", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(lavit_jax.__file__).parents[1])},
        **kwargs,
    )


@pytest.mark.subprocess
def test_the_program_itself_fails_with_one_line_and_status_2():
    done = lavit("caption", "missing.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lavit: error: image not found: missing.png\n"


@pytest.mark.subprocess
def test_help_loads_neither_jax_nor_numpy():
    code = (
        "import sys\nfrom lavit_jax.cli.main import main\n"
        "try:\n    main(['draw', '--help'])\nexcept SystemExit:\n    pass\n"
        "print({'jax', 'numpy', 'PIL', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(lavit_jax.__file__).parents[1])},
    )
    assert done.stderr.strip() == "set()"


@pytest.mark.subprocess
def test_version_is_told(capsys):
    done = lavit("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("lavit ")


def test_a_reader_that_goes_away_is_no_error(model, monkeypatch):
    with open(os.devnull, "w") as sink:
        stream = io.TextIOWrapper(os.fdopen(os.dup(sink.fileno()), "wb"))
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(stream, "write", raising(BrokenPipeError()), raising=False)
        assert main(["caption", "cat.png"]) == 1
