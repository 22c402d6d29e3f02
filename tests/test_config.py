import pytest

from lavit_jax import config as configs
from lavit_jax.errors import UserError


def test_every_shipped_experiment_loads():
    for path in configs.configs_dir().glob("*.py"):
        if path.stem not in ("__init__", "models", "common", "pods"):
            assert configs.load_config(str(path)).schedule


def test_shipped_configs_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load_config("configs/mini.py").name == "mini"


def test_argument_chooses_a_preset():
    quick, full = (configs.load_config(f"configs/twemoji.py:{arg}") for arg in ("quick", "full"))
    assert full.phases.unified.steps > quick.phases.unified.steps


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("--config.seed=3", "seed", 3),
        ("--config.phases.encoder.optimizer.clip=2", "phases.encoder.optimizer.clip", 2.0),
        ("--config.schedule=encoder,select", "schedule", ("encoder", "select")),
        ("--config.data.languages=('en','de')", "data.languages", ("en", "de")),
        ("--config.phases.quantize.quantize=false", "phases.quantize.quantize", False),
        ("--config.name=7", "name", "7"),
    ],
)
def test_overrides_take_the_type_of_the_field(override, path, value):
    config = configs.load_config("configs/mini.py", [override])
    for part in path.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--config.phases.encoder.step=3", "did you mean phases.encoder.steps"),
        ("--config.nothing=3", "unknown config field 'nothing'"),
        ("--config.seed=three", "takes a int"),
        ("--config.seed=1.5", "takes a int"),
        ("--config.phases.quantize.quantize=maybe", "true or false"),
        ("--config.phases=3", "is a group"),
        ("--config.seed", "look like"),
    ],
)
def test_wrong_overrides_name_field_value_and_expectation(override, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        configs.load_config("configs/mini.py", [override])


def test_missing_and_broken_config_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="not found"):
        configs.load_config("nosuch.py")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(UserError, match="broken.py:1"):
        configs.load_config(str(broken))
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(UserError, match="get_config"):
        configs.load_config(str(empty))
    with pytest.raises(UserError, match="'quick' or 'full'"):
        configs.load_config("configs/twemoji.py:huge")


def test_a_users_own_config_may_import_its_neighbours(tmp_path):
    (tmp_path / "sizes.py").write_text("WIDTH = 7\n")
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\nfrom . import sizes\n"
        "def get_config(arg=''):\n    return ConfigDict({'width': sizes.WIDTH})\n"
    )
    assert configs.load_config(str(tmp_path / "mine.py")).width == 7


def test_differences_name_the_fields():
    assert configs.differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 -> 3"]
