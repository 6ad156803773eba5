"""Methods by name and fields, `lm_infinite(n_local=1024)`, and whose they are: the paper that a trial or recipe is for.

Knows: dataclasses, Python literals, the class attribute `paper`. Does not know: what a method does.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

from broadsheet.console import InputError
from broadsheet.options import Options

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A method by name with options, as `parse_calls` reads it."""

    name: str
    options: dict[str, Any]


def parse_calls(spec: str, where: str = "--method") -> list[Call]:
    """`"a,b(x=1)"` as its calls; values are Python literals, a bare word is text.

    Raises:
        InputError: it is no such list.

    Example:
        >>> parse_calls("lm_infinite(n_local=1024),infllm")
        [Call(name='lm_infinite', options={'n_local': 1024}), Call(name='infllm', options={})]
    """
    problem = InputError(f"got {where} {spec!r}; expected names with options, as in 'lm_infinite(n_local=1024),infllm'")
    try:
        listed = ast.parse(f"[{spec}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise problem from None
    if not isinstance(listed, ast.List):
        raise problem
    found = []
    for entry in listed.elts:
        match entry:
            case ast.Name(id=name):
                found.append(Call(name, {}))
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(each.arg for each in keywords):
                try:
                    found.append(Call(name, {str(each.arg): _literal(each.value) for each in keywords}))
                except ValueError:
                    raise problem from None
            case _:
                raise problem
    return found


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def hyperparameters(kind: Any) -> dict[str, Any]:
    """What a class's constructor takes by name, with its defaults; `MISSING` where one is required.

    What has no default and no name to a reader, such as the model that a loss is built around, is left out.
    """
    if is_dataclass(kind):
        return {each.name: each.default for each in fields(kind) if each.init}
    parameters = list(inspect.signature(kind).parameters.values())
    named = [each for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return {each.name: each.default for each in named if each.default is not each.empty}


def settings(kind: Any, call: Call | None, **defaults: Any) -> dict[str, Any]:
    """`defaults`, and what `call` gives instead.

    Raises:
        InputError: `call` names a field that `kind` does not have; its fields are named.
    """
    given = call.options if call else {}
    known = hyperparameters(kind)
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"{kind.__name__} has no field {unknown[0]!r}; expected {signature(kind)}")
    return {**defaults, **given}


def signature(kind: Any) -> str:
    """A class with its fields and defaults on one line: `"LMInfinite(n_global=10, n_local=4096)"`."""
    shown = [
        name if default is MISSING else f"{name}={default!r}"
        for name, default in hyperparameters(kind).items()
        if not name.startswith("_")
    ]
    return f"{kind.__name__}({', '.join(shown)})"


def call_of(method: Any) -> str:
    """A dataclass instance as one would write it: its fields where they differ from their defaults."""
    changed = [
        f"{each.name}={value!r}"
        for each in fields(method)
        if each.init and each.repr and not _same(value := getattr(method, each.name), _default(each))
    ]
    return f"{type(method).__name__}({', '.join(changed)})"


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


@dataclass
class ForPaper(Options):
    """Options of something that is for one paper, or for a stage and then for each paper of it.

    Attributes:
        paper: the id of its paper; empty for a stage's.
        stage: the id of its stage, where it serves all of them.
        method: what `--method` gave; declared by subclasses.
    """

    paper: ClassVar[str] = ""
    stage: ClassVar[str] = ""

    @property
    def tried(self) -> str:
        """The id of the paper it is used for; that of the stage where it is used for all of them."""
        return getattr(self, "_tried", "") or self.paper or self.stage

    def for_paper(self, paper: str) -> Self:
        """The same, used for that paper (or stage)."""
        self._tried = paper
        return self

    def of_tried_paper(self, kind: Any) -> bool:
        """Whether a method is of the paper it is used for; for a stage, of any."""
        paper = getattr(kind, "paper", "")
        return bool(paper) and (self.tried == self.stage or paper == self.tried)

    def fields(self, kind: type, **defaults: Any) -> dict[str, Any]:
        """The fields that a method is made with: `defaults`, and what `--method` gives instead.

        Raises:
            InputError: `--method` names a field that it does not have.
        """
        self._offered.append(kind)
        names = names_of(kind)
        return settings(kind, next((call for call in self.calls if plain(call.name) in names), None), **defaults)

    def configured(self, kind: type[T], **defaults: Any) -> T:
        """The method with those fields."""
        return kind(**self.fields(kind, **defaults))

    @cached_property
    def calls(self) -> list[Call]:
        """What `--method` names."""
        given = getattr(self, "method", None)
        return parse_calls(given) if given else []

    @cached_property
    def _offered(self) -> list[type]:
        return []

    def check_calls(self, offered: Iterable[type] = ()) -> None:
        """See that `--method` named nothing but what `fields` was asked for, or is among `offered`.

        Raises:
            InputError: it did; what it may name is listed.
        """
        kinds = dict.fromkeys([*self._offered, *offered])
        known = set().union(*map(names_of, kinds))
        if unknown := [call.name for call in self.calls if plain(call.name) not in known]:
            raise InputError(f"got --method {unknown[0]}; expected {'; '.join(map(signature, kinds)) or 'none'}")


def names_of(kind: Any) -> set[str]:
    """What `--method` may call a class, in small letters without underscores: its name; its paper's id where it is the
    first class of the paper in its file, and no other is called so.

    Example:
        >>> from broadsheet.attend import LMInfinite
        >>> names_of(LMInfinite)
        {'lminfinite'}
    """
    paper = getattr(kind, "paper", "")
    known = {plain(kind.__name__)}
    beside = [
        each
        for each in vars(sys.modules[kind.__module__]).values()
        if isinstance(each, type) and each.__module__ == kind.__module__ and getattr(each, "paper", "") == paper
    ]
    if paper and beside[0] is kind and plain(paper) not in {plain(each.__name__) for each in beside}:
        known.add(plain(paper))
    return known


def plain(name: str) -> str:
    """A name as `--method` compares it: `"lm_infinite"` and `"LMInfinite"` are one."""
    return name.replace("_", "").lower()
