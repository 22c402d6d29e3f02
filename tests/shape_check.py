"""Checks at run time that arrays have the shapes and types their annotations say.

For jaxtyping's import hook, which binds the axis names of one call to each other. Other annotations
are mypy's business.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

from jaxtyping import AbstractArray

Function = typing.TypeVar("Function", bound=Callable[..., Any])


def check(function: Function) -> Function:
    """The function, with a TypeError for any array of another shape or type than annotated."""
    if function.__name__ == "__init__":  # trees of arrays also hold shardings and the like
        return function
    signature = inspect.signature(function)
    hints: dict[str, Any] | None = None

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal hints
        if hints is None:
            hints = _array_hints(function)
        if not hints:
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs).arguments
        for name, value in bound.items():
            if name in hints:
                _require(function, f"argument {name}", value, hints[name])
        result = function(*args, **kwargs)
        if "return" in hints:
            _require(function, "result", result, hints["return"])
        return result

    return typing.cast(Function, checked)


def _array_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Those annotations that are arrays or tuples with arrays."""
    names = vars(sys.modules[function.__module__])
    found = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        try:
            resolved = eval(hint, names) if isinstance(hint, str) else hint
        except NameError:  # imported for type checkers only
            continue
        if _mentions_array(resolved):
            found[name] = resolved
    return found


def _mentions_array(hint: Any) -> bool:
    return _is_array(hint) or any(map(_mentions_array, typing.get_args(hint)))


def _is_array(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


def _require(function: Callable[..., Any], what: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is tuple and isinstance(value, tuple):
        for index, (item, part) in enumerate(zip(value, typing.get_args(hint))):
            _require(function, f"{what}[{index}]", item, part)
    elif _is_array(hint) and not isinstance(value, hint):
        saw = f"{getattr(value, 'dtype', type(value).__name__)}{getattr(value, 'shape', '')}"
        raise TypeError(f"{function.__qualname__}: {what} is {saw}, annotated {hint}")
