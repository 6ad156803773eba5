"""Options said once: a dataclass field's metadata gives parsing, help, checks and documentation.

Knows: dataclasses, their annotations, text. Does not know: any command, any method.

A class of options subclasses `Options` and declares its fields with `option(default, help, …)`. `None` means not given.
The same metadata serves `broadsheet try ID --help`, `broadsheet show ID`, the tables of the docs and every check.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from broadsheet.console import InputError

T = TypeVar("T")
MOST_SEED = 2**31 - 1  # what every library takes, a few more added for further runs
_METADATA = "option"
_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")
_KINDS = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}


@dataclass(frozen=True)
class Option:
    """What a field's metadata holds; see `option`."""

    default: Any
    help: str
    quick: Any = MISSING
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str = ""


def option(
    default: Any,
    help: str,
    *,
    quick: Any = MISSING,
    least: float | None = None,
    most: float | None = None,
    choices: Iterable[str] = (),
    metavar: str = "",
) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        default: the value where none is given; `None` where there is none.
        help: one or two short sentences, for users: what it is, its unit, the paper's value.
        quick: the default instead, where the class has `quick=True`.
        least, most: the smallest and the largest number that is allowed.
        choices: the words that are allowed; a `Literal` annotation gives them by itself.
        metavar: what stands for the value in help; by default from the annotation.

    Example:
        @dataclass
        class Sizes(Options):
            quick: bool = option(False, "Fewer items.")
            pairs: int = option(300, "Pairs of texts.", quick=30, least=2)
    """
    kept = Option(default, help, quick, least, most, tuple(choices), metavar)
    return field(default=None, metadata={_METADATA: kept})  # filled in by `Options.__post_init__`


def best_of(settings: Sequence[float]) -> str:
    """How a help text tells the settings of an open-ended scale, as `Trial.tuned` chooses from them.

    Example:
        >>> best_of((1e-4, 3e-4, 1e-3))
        'the best of 0.0001, 0.0003, 0.001 (of more, where an end is the best)'
    """
    return f"the best of {', '.join(f'{setting:g}' for setting in settings)} (of more, where an end is the best)"


@dataclass
class Options:
    """A dataclass of options: what was not given gets its default, and what is out of range is refused.

    Attributes:
        lacks: inherited options that a subclass does not have; they are refused, and not listed.

    Raises:
        InputError: a value is below `least`, above `most`, or none of `choices`; an option that it lacks was given.
    """

    lacks: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        quick = bool(getattr(self, "quick", False))
        for each in fields(self):
            said = each.metadata.get(_METADATA)
            if said is None:
                continue
            if each.name in self.lacks and getattr(self, each.name) is not None:
                raise InputError(f"got {flag(each.name)}; {type(self).__name__} has no such option")
            if getattr(self, each.name) is None:
                chosen = said.quick if quick and said.quick is not MISSING else said.default
                setattr(self, each.name, chosen)
            _check(each.name, getattr(self, each.name), said, choices_of(type(self), each.name))
        self.check()

    def check(self) -> None:
        """Refuse what single options cannot tell: two that exclude each other, an unknown name in a list.

        Raises:
            InputError: for such a combination.
        """

    def given(self) -> dict[str, Any]:
        """Every option's value as JSON, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if _METADATA in each.metadata}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _check(name: str, value: Any, said: Option, choices: Sequence[str]) -> None:
    each = value if isinstance(value, tuple | list) else (value,)
    if len(set(each)) < len(each):
        raise InputError(f"got {flag(name)} {_text(value)}; expected each value once")
    for one in each:
        if isinstance(one, int | float) and not isinstance(one, bool):
            if not math.isfinite(one):
                raise InputError(f"got {flag(name)} {one:g}; expected a finite number")
            if said.least is not None and not one >= said.least:
                raise InputError(f"got {flag(name)} {one:g}; expected {said.least:g} or more")
            if said.most is not None and not one <= said.most:
                raise InputError(f"got {flag(name)} {one:g}; expected {said.most:g} or less")
        if isinstance(one, str) and choices and one not in choices:
            raise InputError(f"got {flag(name)} {one!r}; expected one of {', '.join(choices)}")


# What a class offers


@dataclass(frozen=True)
class OptionRow:
    """One option as help and docs print it.

    Attributes:
        name: as on the command line, `--top-k`.
        value: what stands for its value; empty for a switch.
        default: in words, `"60; with --quick 20"`; empty where there is none.
        help: what it is.
    """

    name: str
    value: str
    default: str
    help: str


def describe(kind: type, skip: Iterable[str] = ()) -> list[OptionRow]:
    """The options of a class in the order of its fields, without those named in `skip`."""
    hints, rows = _hints(kind), []
    for each in fields(kind):
        said = each.metadata.get(_METADATA)
        if said is None or each.name in skip or each.name in getattr(kind, "lacks", ()):
            continue
        boolean = _inner(hints[each.name]) is bool
        name = flag(each.name) if not (boolean and said.default is True) else f"--no-{flag(each.name)[2:]}"
        value = "" if boolean else said.metavar or _metavar(hints[each.name], choices_of(kind, each.name))
        defaults = [] if boolean or said.default is None else [_text(said.default)]
        if said.quick is not MISSING and not boolean:
            defaults.append(f"with --quick {_text(said.quick)}")
        rows.append(OptionRow(name, value, "; ".join(defaults), said.help))
    return rows


@dataclass(frozen=True)
class FormField:
    """One option as a form offers it.

    Attributes:
        name: the field's.
        kind: `"switch"`, `"whole"` (a whole number), `"number"`, `"choice"` (one of the words), `"choices"` (some of
            them).
        choices: the words.
        least, most: the smallest and the largest number that is allowed.
        default, quick: as text, without and with `quick`; empty where there is none.
        help: what it is.
    """

    name: str
    kind: str
    choices: tuple[str, ...]
    least: float | None
    most: float | None
    default: str
    quick: str
    help: str


def form(kind: type, skip: Iterable[str] = ()) -> list[FormField]:
    """The options of a class that are numbers, switches or words of a list, in the order of its fields.

    What is free text is left out: names of files, models and programs are not typed into a form.
    """
    hints, found = _hints(kind), []
    for each in fields(kind):
        said: Option | None = each.metadata.get(_METADATA)
        if said is None or each.name in skip or each.name in getattr(kind, "lacks", ()):
            continue
        choices = choices_of(kind, each.name)
        of = _form_kind(hints[each.name], choices)
        if not of:
            continue
        shown = ["" if value is None or value is MISSING else _text(value) for value in (said.default, said.quick)]
        found.append(FormField(each.name, of, choices, said.least, said.most, shown[0], shown[1], said.help))
    return found


def _form_kind(hint: Any, choices: Sequence[str]) -> str:
    """What of `FormField.kind` an annotation is; empty for what a form does not offer."""
    members = _members(hint)
    if choices:
        return "choices" if any(get_origin(member) is tuple for member in members) else "choice"
    kinds = {bool: "switch", int: "whole", float: "number"}
    return next((kinds[member] for member in members if member in kinds), "")


def choices_of(kind: type, name: str) -> tuple[str, ...]:
    """The words that an option may be; empty where it is free."""
    said: Option = next(each.metadata[_METADATA] for each in fields(kind) if each.name == name)
    if said.choices:
        return said.choices
    hint = _inner(_hints(kind)[name])
    return tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def default_of(kind: type, name: str) -> Any:
    """The value of an option where none is given, without `quick`."""
    return next(each.metadata[_METADATA].default for each in fields(kind) if each.name == name)


def flag(name: str) -> str:
    """`"top_k"` as `"--top-k"`."""
    return f"--{name.replace('_', '-')}"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _members(hint: Any) -> list[Any]:
    """The members of a union, without None; else the hint alone."""
    if get_origin(hint) in (Union, types.UnionType):
        return [member for member in get_args(hint) if member is not type(None)]
    return [hint]


def _inner(hint: Any) -> Any:
    members = _members(hint)
    return members[0] if len(members) == 1 else hint


def _metavar(hint: Any, choices: Sequence[str]) -> str:
    if choices:
        return "|".join(choices)
    names = []
    for member in _members(hint):
        if get_origin(member) is tuple:
            inner = _metavar(get_args(member)[0], ())
            names.append(f"{inner},…")
        elif get_origin(member) is Literal:
            names += map(str, get_args(member))
        else:
            names.append({int: "N", float: "X", Path: "PATH"}.get(member, "TEXT"))
    return "|".join(names)


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# Parsing


def construct(kind: type[T], given: Mapping[str, Any]) -> T:
    """An instance of a class of options, its values converted from text by the annotations of its fields.

    Raises:
        InputError: an unknown option, or a value of the wrong type or out of range.
    """
    lacks = getattr(kind, "lacks", ())
    known = [each.name for each in fields(cast(Any, kind)) if _METADATA in each.metadata and each.name not in lacks]
    values: dict[str, Any] = {}
    for name, value in given.items():
        asked, sense = name, True
        if name not in known and name.startswith("no_") and name[3:] in known:
            asked, sense = name[3:], False
        if asked not in known:
            raise InputError(f"no option {flag(name)}; expected one of {', '.join(map(flag, known))}")
        hint = _hints(cast(Any, kind))[asked]
        if not sense:
            if _inner(hint) is not bool or value is not True:
                got = flag(name) if value is True else f"{flag(name)} {value}"
                raise InputError(f"got {got}; expected {flag(asked)} VALUE")
            values[asked] = False
        else:
            values[asked] = _convert(asked, value, hint, choices_of(kind, asked))
    return kind(**values)


def _convert(name: str, value: Any, hint: Any, choices: Sequence[str] = ()) -> Any:
    """`value`, from the command line, as the annotation `hint` wants it; what is no text passes as it is."""
    if not isinstance(value, str) and value is not True:
        return value
    members = _members(hint)
    expected = f"one of {', '.join(choices)}" if choices else " or ".join(map(_kind, members))
    if value is True:
        if bool in members:
            return True
        raise InputError(f"got {flag(name)} without a value; expected {expected}")
    for member in members:
        try:
            return _one(value, member)
        except ValueError:
            continue
    raise InputError(f"got {flag(name)} {value!r}; expected {expected}")


def _kind(member: Any) -> str:
    if get_origin(member) is tuple:
        return f"{_kind(get_args(member)[0]).removeprefix('a ')}s separated by commas".replace("texts", "names")
    if get_origin(member) is Literal:
        return ", ".join(map(str, get_args(member)))
    return _KINDS.get(member, "text")


def _one(value: str, member: Any) -> Any:
    """Raises ValueError where `value` is no `member`."""
    if get_origin(member) is tuple:
        return tuple(_one(part.strip(), get_args(member)[0]) for part in value.split(",") if part.strip())
    if get_origin(member) is Literal:
        if value not in get_args(member):
            raise ValueError(value)
        return value
    if member is bool:
        if value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
        raise ValueError(value)
    return member(value)


def pairs(extra: Sequence[str]) -> dict[str, str | bool]:
    """`--name value`, `--name=value`, `--switch` and `--no-switch` to a dictionary.

    Raises:
        InputError: something that is no option, or an option twice.
    """
    found: dict[str, str | bool] = {}
    rest = list(extra)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":
            raise InputError(f"got {token!r} where an option was expected; options are --name value")
        name, equals, value = token[2:].partition("=")
        key = name.replace("-", "_")
        if key in found:
            raise InputError(f"got {flag(key)} twice")
        follows = rest and not rest[0].startswith("--")
        found[key] = value if equals else rest.pop(0) if follows else True
    return found
