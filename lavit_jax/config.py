"""Loads experiment configs, applies command-line overrides, saves and compares them."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from lavit_jax.errors import UserError

_PACKAGE = "_lavit_experiment_configs"


def configs_dir() -> Path:
    """The folder of the shipped configs: inside an installed wheel, or beside the package."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "models.py").is_file():
            return folder
    raise FileNotFoundError(f"the shipped configs are missing: looked beside and in {package}")


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs `get_config(arg)` of a config file and applies overrides.

    Args:
      spec: "path/FILE.py" or "path/FILE.py:arg".
      overrides: "--config.a.b=value" strings; the field must exist, the value must have its type.

    Raises:
      UserError: no such file, no `get_config`, an unknown field or a value of another type.
    """
    filename, _, arg = spec.partition(":")
    path = _find(filename)
    get_config = getattr(_import(path), "get_config", None)
    if get_config is None:
        raise UserError(f"{path}: a config file defines get_config(arg); this one does not")
    try:
        config = get_config(arg) if arg else get_config()
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: get_config({arg!r}) failed: {error}") from error
    for override in overrides:
        _override(config, override)
    return config


def _find(filename: str) -> Path:
    path = Path(filename)
    if path.is_file():
        return path.resolve()
    shipped = configs_dir().parent / filename
    if not path.is_absolute() and shipped.is_file():
        return shipped.resolve()
    raise UserError(f"config file not found: {filename} (expected FILE.py or FILE.py:arg)")


def _import(path: Path) -> Any:
    """Imports a config file as part of a package of its folder, so `from . import models` works."""
    package = f"{_PACKAGE}.{path.parent.as_posix().replace('/', '_').replace('.', '_')}"
    if package not in sys.modules:
        for name, folders in ((_PACKAGE, []), (package, [str(path.parent)])):
            spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
            assert spec is not None
            spec.submodule_search_locations = folders
            sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file is not Python: {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
    return module


def _fields(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        names += _fields(value, f"{name}.") if isinstance(value, ConfigDict) else [name]
    return names


def _override(config: ConfigDict, override: str) -> None:
    name, equals, text = override.removeprefix("--").partition("=")
    if not name.startswith("config.") or not equals:
        raise UserError(f"unknown argument {override!r}; overrides look like --config.field=value")
    field = name.removeprefix("config.")
    try:
        old = config_path.get_value(field, config)
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        close = difflib.get_close_matches(field, _fields(config), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"unknown config field {field!r}{hint}") from error
    if isinstance(old, ConfigDict):
        raise UserError(f"config field {field!r} is a group: set one of {', '.join(old)}")
    config_path.set_value(field, config, _parse(field, text, old), accept_new_attributes=True)


def _parse(field: str, text: str, old: Any) -> Any:
    """Reads `text` as the type of the field's old value."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        value: Any = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        if value is None:
            raise UserError(f"config field {field!r} takes true or false, got {text!r}")
        return value
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple) and isinstance(value, str):
        value = tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if old is not None and type(value) is not type(old):
        raise UserError(
            f"config field {field!r} takes a {type(old).__name__} (now {old!r}), got {text!r}"
        )
    return value


def to_json(config: ConfigDict) -> str:
    """The config as stable, readable JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list) + "\n"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines "field: old -> new" for every leaf in which two JSON-like configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(set(old) | set(new)):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]
