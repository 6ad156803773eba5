"""The methods of `broadsheet.attend` by name and options, as a trial's command line gives them.

Knows: dataclasses, Python literals. Does not know: what a method does.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from broadsheet.console import InputError


def attend_methods() -> dict[str, type[Any]]:
    """The methods of `broadsheet.attend` by paper id: its dataclasses with `install`, each in the file of its paper."""
    from broadsheet import attend

    return {
        kind.__module__.rpartition(".")[2]: kind
        for kind in vars(attend).values()
        if isinstance(kind, type) and is_dataclass(kind) and hasattr(kind, "install")
    }


def describe_methods(known: Mapping[str, Any]) -> str:
    """Methods with their options and defaults, on one line.

    Example:
        "lm_infinite(n_global=10, n_local=4096), infllm(…)"
    """
    return ", ".join(
        f"{name}({', '.join(f'{key}={value!r}' for key, value in options_of(kind).items())})"
        for name, kind in known.items()
    )


def options_of(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass that its constructor takes, with their defaults."""
    return {field.name: field.default for field in fields(kind) if field.init}


def parse_methods(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """`"a,b(x=1)"` as `[("a", {}), ("b", {"x": 1})]`; values are Python literals.

    Raises:
        InputError: it is not such a list.
    """
    problem = InputError(
        f"got --methods {spec!r}; expected names with options, as in 'lm_infinite(n_local=1024),infllm'"
    )
    try:
        listed = ast.parse(f"[{spec}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise problem from None
    if not isinstance(listed, ast.List):
        raise problem
    found: list[tuple[str, dict[str, Any]]] = []
    for entry in listed.elts:
        match entry:
            case ast.Name(id=name):
                found.append((name, {}))
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
                try:
                    found.append((name, {str(each.arg): ast.literal_eval(each.value) for each in keywords}))
                except ValueError:
                    raise problem from None
            case _:
                raise problem
    return found
