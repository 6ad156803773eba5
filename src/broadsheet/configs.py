"""Options from a file and from the environment, for those that are not on the command line.

Knows: TOML, YAML, JSON, names of variables. Does not know: any command. What the command line gives comes first, then
what `--config FILE` gives, then the environment, then the defaults.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from broadsheet.console import InputError
from broadsheet.options import flag, pairs

# `BROADSHEET_DATA` is the folder of data that ships in no package, so the corpus has a variable of its own.
VARIABLES = {"model": "BROADSHEET_MODEL", "data": "BROADSHEET_CORPUS", "device": "BROADSHEET_DEVICE"}


def read_config(path: Path) -> dict[str, Any]:
    """The options of a file, by name: `top_k = 5` (or `top-k = 5`) is `--top-k 5`. Lists are values joined by commas.

    Args:
        path: `.toml`, `.yaml`, `.yml` or `.json`. A report that `broadsheet try` wrote as JSON stands for its options.

    Raises:
        InputError: it cannot be read, is of another kind, or holds something else than options.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".json": json.loads,
        ".yaml": _yaml,
        ".yml": _yaml,
    }
    if path.suffix not in readers:
        raise InputError(f"got --config {path}; expected a file ending in {', '.join(readers)}")
    try:
        content = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from None
    except ValueError as error:  # what each of them raises for what it cannot parse
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from None
    if isinstance(content, Mapping) and {"paper", "options", "provenance"} <= content.keys():
        content = content["options"]
    if not isinstance(content, Mapping):
        raise InputError(f'--config {path}: expected options, such as model = "default"')
    return _named(content)


def _named(content: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).replace("-", "_"): value for name, value in content.items() if value is not None}


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def given(
    arguments: list[str], known: Iterable[str], table: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The options of a command line with those of its `--config` and of the environment.

    Args:
        arguments: `--name value`, as `options.pairs` reads them; `--config FILE` among them, perhaps.
        known: options that the command has: variables of others are left alone.
        table: the command's own part of `broadsheet --config FILE`; what the command's `--config` says comes first.

    Returns:
        Values by name, and those that the command line does not hold as the arguments that would give them.

    Raises:
        InputError: the arguments, the file, or a value of it cannot be used.
    """
    values: dict[str, Any] = dict(pairs(arguments))
    file = values.pop("config", None)
    if file is True:
        raise InputError("got --config without a value; expected a file")
    read = {**_named(table or {}), **(read_config(Path(str(file))) if file is not None else {})}
    more = {name: _text(name, value) for name, value in read.items()}
    for name, variable in VARIABLES.items():
        if name in known and os.environ.get(variable):
            more.setdefault(name, os.environ[variable])
    more = {name: value for name, value in more.items() if name not in values and f"no_{name}" not in values}
    spelled = [part for name, value in more.items() for part in _spelled(name, value)]
    return {**more, **values}, spelled


def _text(name: str, value: Any) -> str | bool:
    """A value of a file as the command line would give it."""
    if isinstance(value, bool):
        return value if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(str(_text(name, each)) for each in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise InputError(
        f"got {flag(name)} {value!r} in --config; expected text, a number, true, false, or a list of these"
    )


def _spelled(name: str, value: str | bool) -> list[str]:
    return [flag(name)] if value is True else [f"{flag(name)}={value}"]
