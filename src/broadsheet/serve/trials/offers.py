"""What may be tried from a browser: papers, with models and data from lists and options that are numbers or words.

Knows: papers, their options as a form has them (`page/options.json`, made by `docs/generate.py`). Does not know: HTTP,
processes. Nothing that a browser sends becomes a path or a command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from broadsheet.console import InputError
from broadsheet.options import FormField, flag
from broadsheet.page import papers

_ON = "yes"
_MOST = 1e12  # a number that a form takes


@dataclass(frozen=True)
class Offers:
    """What whoever started the server lets be tried.

    Attributes:
        models, data: by the names that a trial knows them by.
    """

    models: tuple[str, ...] = ("default",)
    data: tuple[str, ...] = ("pydocs:stdlib", "pydocs")

    def arguments(self, paper: str, form: Mapping[str, Sequence[str]]) -> list[str]:
        """What `broadsheet try` is given for a form's values; what is left empty is not given.

        Raises:
            InputError: there is no trial of that paper, or a value is none that the form offers.
        """
        identifier, _ = papers.get_trial(paper)
        known = {each.name: each for each in fields(identifier)}
        given = [identifier]
        for name in ("model", "data"):
            if value := _single(name, form):
                offered = getattr(self, f"{name}s" if name == "model" else name)
                if value not in offered:
                    raise InputError(f"got {name} {value!r}; expected one of {', '.join(offered)}")
                given += [flag(name), value]
        if _single("quick", form) == _ON:
            given.append("--quick")
        if seed := _single("seed", form):
            given += ["--seed", _number("seed", seed, FormField("seed", "whole", (), 0, None, "", "", ""))]
        for name in form:
            if name not in ("model", "data", "quick", "seed"):
                if name not in known:
                    raise InputError(f"{identifier} has no option {name!r} that a form offers")
                given += _option(known[name], form)
        return given


@cache
def _forms() -> dict[str, list[FormField]]:
    text = (Path(papers.__file__).parent / "options.json").read_text("utf-8")
    return {
        name: [FormField(**{**each, "choices": tuple(each["choices"])}) for each in rows]
        for name, rows in json.loads(text).items()
    }


def fields(paper: str) -> list[FormField]:
    """The options of a paper's trial that a form offers; of a reader's own package none."""
    return _forms().get(paper, [])


def _single(name: str, form: Mapping[str, Sequence[str]]) -> str:
    values = form.get(name, ())
    if len(values) > 1:
        raise InputError(f"got {name} {len(values)} times; expected it once")
    return values[0].strip() if values else ""


def _option(field: FormField, form: Mapping[str, Sequence[str]]) -> list[str]:
    """An option as the command has it; empty where the form leaves it as it is."""
    if field.kind == "choices":
        values = [value for value in form[field.name] if value]
        if wrong := [value for value in values if value not in field.choices]:
            raise InputError(f"got {field.name} {wrong[0]!r}; expected some of {', '.join(field.choices)}")
        return [flag(field.name), ",".join(dict.fromkeys(values))] if values else []
    value = _single(field.name, form)
    if not value:
        return []
    if field.kind == "switch":
        if value not in (_ON, "no"):
            raise InputError(f"got {field.name} {value!r}; expected yes or no")
        return [flag(field.name) if value == _ON else f"--no-{flag(field.name)[2:]}"]
    if field.kind == "choice":
        if value not in field.choices:
            raise InputError(f"got {field.name} {value!r}; expected one of {', '.join(field.choices)}")
        return [flag(field.name), value]
    return [flag(field.name), _number(field.name, value, field)]


def _number(name: str, value: str, field: FormField) -> str:
    """A number as text, within its bounds.

    Raises:
        InputError: it is none, or out of them.
    """
    try:
        number = int(value) if field.kind == "whole" else float(value)
    except ValueError:
        number = math.nan
    least = -_MOST if field.least is None else field.least
    most = _MOST if field.most is None else min(field.most, _MOST)
    if not (math.isfinite(number) and least <= number <= most):
        told = "a whole number" if field.kind == "whole" else "a number"
        told += f" from {least:g}" * (field.least is not None) + f" to {most:g}" * (field.most is not None)
        raise InputError(f"got {name} {value!r}; expected {told}")
    return str(number)
