"""What is served, by name: language models, embedders, rerankers, detectors, each with the engine that owns its model.

Knows: how each is loaded and asked. Does not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from broadsheet.console import InputError
from broadsheet.methods import call_of, names_of, parse_calls, plain, settings, signature
from broadsheet.page import papers
from broadsheet.serve.models.engine import Engine
from broadsheet.serve.models.served import Checker, Encoder, Queue, Ranker, Served
from broadsheet.serve.models.writer import LocalWriter, Writer

if TYPE_CHECKING:
    from broadsheet.decode.table_drafter import TableDrafter
    from broadsheet.detect.base import Detector

Kind = TypeVar("Kind", bound=Served)


class Models:
    """All that is served, by name: `default`, a hub id, or the last part of a path; a detector by its class.

    Args:
        models, embedders, rerankers, detectors: as the command names them.
        attend: a method of `broadsheet.attend`, under which language models read.
        draft: a drafter of `broadsheet.decode`, by which greedy answers that are written alone take fewer steps.
        about: what the list of models tells of each, by its name.
        device, dtype: of all models, as in `models.load`; detectors read in float32.

    Raises:
        InputError: one cannot be loaded, or two of a kind have one name.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        embedders: Sequence[str] = (),
        rerankers: Sequence[str] = (),
        detectors: Sequence[str] = (),
        *,
        attend: str | None = None,
        draft: str | None = None,
        about: Mapping[str, Mapping[str, Any]] | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self._load: dict[str, Any] = {"device": device, "dtype": dtype}
        self._served: dict[tuple[str, str], Served] = {}
        for each in models:
            self._add(self._writer(each, attend, draft))
        for each in embedders:
            self._add(self._encoder(each))
        for each in rerankers:
            self._add(self._ranker(each))
        for each in detectors:
            self._add(self._checker(each, models[0] if models else "default"))
        for name, told in (about or {}).items():
            for served in self:
                served.about |= told if served.name == name else {}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    @property
    def queues(self) -> list[Queue]:
        """Where requests wait, one a model."""
        return [each.engine for each in self]

    def get(self, name: str | None, kind: type[Kind]) -> Kind:
        """The model of that name, or the first of its kind.

        Raises:
            LookupError: there is none.
        """
        of_kind = [each for each in self if isinstance(each, kind)]
        fitting = [each for each in of_kind if name is None or each.name == name]
        if not fitting:
            raise LookupError(name)
        return fitting[0]

    def close(self, seconds: float | None = None) -> None:
        """Finish what was taken, and end the engines' threads."""
        for each in self:
            each.close(seconds)

    def _add(self, served: Served) -> None:
        if (served.kind, served.name) in self._served:
            raise InputError(
                f"two models of a kind are called {served.name}: a folder is, by the last part of its path"
            )
        self._served[served.kind, served.name] = served

    def _writer(self, spec: str, attend: str | None, draft: str | None) -> Writer:
        from broadsheet.teacher import local

        if spec.startswith(("endpoint:", "llamacpp:")):
            return self._remote(spec, attend or draft)
        if attend and draft:
            raise InputError("got --attend and --draft; a method's cache cannot drop rejected tokens: give one of them")
        made = local.load(spec, **self._load)
        about: dict[str, Any] = {}
        way: dict[str, Any] = {}
        if attend:
            from broadsheet.attend import Attention

            method: Attention = _called(attend, "--attend", "attend", Attention)
            method.install(made.model)
            about["attend"] = call_of(method)
            way["read_tokens"] = None  # it sees a prompt whole, as in its paper
        if draft:
            from broadsheet.serve.models.drafting import Drafting

            way["ahead"] = Drafting(made.reader, _drafter(draft, made.tokenizer))
            way["ahead"].warm_up()
            about["draft"] = draft
        name = _name(spec)
        return LocalWriter(name, "chat", Engine(name, made.reader, **way), about, made)

    def _remote(self, spec: str, way: str | None) -> Writer:
        """A model of another server, or of llama.cpp; tried once by those who ask, not again."""
        from broadsheet.serve.models.remote import LlamaWriter, RemoteWriter, Room
        from broadsheet.teacher.endpoint import Endpoint

        if way:
            raise InputError(f"got {way} for {spec}; --attend and --draft are for models in this process")
        kind, _, name = spec.partition(":")
        about = {"backend": kind}
        if kind == "endpoint":
            return RemoteWriter(name, "chat", Room(name), about, Endpoint(name, timeout=600, retries=0))
        from broadsheet.teacher.llamacpp import LlamaCpp

        name = _name(name)
        return LlamaWriter(name, "chat", Room(name), about, LlamaCpp(spec.partition(":")[2]))

    def _encoder(self, spec: str) -> Encoder:
        from broadsheet.embed.base import load

        name = _name(spec)
        return Encoder(name, "embed", Engine(name), {}, load(spec, **self._load))

    def _ranker(self, spec: str) -> Ranker:
        from broadsheet.rank.base import ListwiseReranker

        name = _name(spec)
        return Ranker(name, "rank", Engine(name), {}, ListwiseReranker.load(spec, **self._load))

    def _checker(self, spec: str, model: str) -> Checker:
        from broadsheet.detect.base import Detector

        made: Detector = _called(spec, "--detector", "detect", Detector, model=model, device=self._load["device"])
        made.reader  # noqa: B018 - loads the model now
        name = type(made).__name__.lower()
        [call] = parse_calls(spec, "--detector")
        given = ", ".join(f"{field}={value!r}" for field, value in call.options.items())
        return Checker(name, "detect", Engine(name), {"detector": f"{type(made).__name__}({given})"}, made)


def _name(spec: str) -> str:
    """What a model is called: a path by its last part, all else as it is given."""
    return Path(spec).name if Path(spec).expanduser().exists() else spec


def _drafter(spec: str, tokenizer: Any) -> TableDrafter:
    """The drafter that is named; its `table` is a file, as `apply aded` makes it.

    Raises:
        InputError: there is none of that name, or the table is none of this tokenizer's.
    """
    from broadsheet.decode import TrigramTable
    from broadsheet.decode.table_drafter import TableDrafter

    made: TableDrafter = _called(spec, "--draft", "decode", TableDrafter)
    if isinstance(made.table, str):
        made.table = TrigramTable.load(Path(made.table).expanduser(), tokenizer)
    return made


def _called(spec: str, option: str, stage: str, kind: Any, **fields: Any) -> Any:
    """The method of a stage that is named, with its fields.

    Raises:
        InputError: there is none, several are named, or a field does not exist.
    """
    calls = parse_calls(spec, option)
    known = [each for each in papers.stage_methods(stage).values() if issubclass(each, kind)]
    if stage == "detect":
        from broadsheet.detect.baselines import BASELINES

        known += BASELINES.values()
    if stage == "decode":
        from broadsheet.decode import NgramDrafter

        known.append(NgramDrafter)
    found = [each for each in known if len(calls) == 1 and plain(calls[0].name) in names_of(each)]
    if not found:
        raise InputError(f"got {option} {spec}; expected one of {', '.join(map(signature, known))}")
    return found[0](**settings(found[0], calls[0], **fields))
