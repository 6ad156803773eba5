"""The `Teacher`: checks what it is asked, answers from the cache what is there, and has a backend do the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from broadsheet.cache import home
from broadsheet.console import InputError, progress
from broadsheet.teacher.base import (
    Backend,
    Budget,
    BudgetExhausted,
    Completion,
    Conversation,
    Meter,
    Prompt,
    Sampling,
    ScoreJob,
    SpentError,
    TeacherJob,
    Usage,
)
from broadsheet.teacher.store import Store, digest

if TYPE_CHECKING:
    import numpy as np

_FORMAT = 1  # raised when an answer to the same request would come out differently


class Teacher:
    """One interface to a language model, wherever it runs.

    Results do not depend on the order or the grouping of prompts: each answer draws from a generator of its own, seeded
    by the seed, the request and the answer's index. So equal conversations in one call get equal answers (raise `n` for
    different ones), and answers 0 … n − 1 of a later call with a larger `n` are those already there.

    Example:
        teacher = Teacher.load("default")
        [[answer]] = teacher.chat(["Name three colours."], temperature=0, max_tokens=32)
        print(answer.text, teacher.usage)
    """

    def __init__(self, backend: Backend, cache: bool = True, budget: Budget | None = None) -> None:
        self.backend = backend
        self.cache = cache
        self.budget = budget
        self.usage = Usage()

    @classmethod
    def load(
        cls, spec: str | Path | None = None, *, cache: bool = True, budget: Budget | None = None, **options: Any
    ) -> Teacher:
        """Load a teacher.

        Args:
            spec: a local model for `models.load` ("default", a hub id, a folder, a .gguf file); "endpoint:MODEL" for an
                OpenAI-compatible endpoint; "llamacpp:default" or "llamacpp:file.gguf" for llama.cpp in this process.
                None reads `$BROADSHEET_TEACHER`, else takes "default".
            cache: keep answers under `home()/teacher` and answer from there.
            budget: a limit on requests or tokens; may be shared between teachers.
            options: of the backend:
                local: `device`, `dtype`, `batch_tokens`, `truncate` (`local.Local`);
                endpoint: `url`, `key`, `concurrency`, `timeout`, `retries`, `backoff`, `extra` (`endpoint.Endpoint`);
                llamacpp: `slots`, `context`, `threads` (`llamacpp.LlamaCpp`).

        Raises:
            InputError: no such model, no key, a package is missing, an option the backend does not have.
        """
        spec = str(spec or os.environ.get("BROADSHEET_TEACHER") or "default")
        kind, _, name = spec.partition(":")
        build: Callable[..., Backend]
        if kind == "endpoint":
            from broadsheet.teacher import endpoint

            build = endpoint.Endpoint
        elif kind == "llamacpp":
            from broadsheet.teacher import llamacpp

            build = llamacpp.LlamaCpp
        else:
            from broadsheet.teacher import local

            build, name = local.load, spec
        try:
            backend = build(name, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise InputError(f"teacher {spec!r}: {error}; see Teacher.load for the options of each backend") from None
        return cls(backend, cache=cache, budget=budget)

    def chat(
        self,
        conversations: Sequence[Conversation],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        logprobs: bool = False,
    ) -> list[list[Completion]]:
        """Answer each conversation `n` times.

        Args:
            conversations: each a list of `{"role", "content"}` that ends with the user's message, or a `str`.
            n: answers per conversation. At temperature 0 they are one and the same.
            temperature: logits are divided by it; 0 takes the most likely token.
            top_p: draw from the smallest set of most likely tokens that holds this share of the probability.
            max_tokens: the most tokens per answer.
            stop: strings that end an answer; it is cut before the first of them.
            seed: of all the answers' generators.
            logprobs: also return each token's log-probability under the model, before temperature and `top_p`.

        Returns:
            For each conversation its `n` answers.

        Raises:
            BudgetExhausted: with the answers that are ready in the cache.
            InputError: a conversation or setting that cannot be used; an endpoint that refuses or keeps failing.
        """
        prompts = [_conversation(item, i) for i, item in enumerate(_several(conversations))]
        return self._generate(prompts, n, temperature, top_p, max_tokens, stop, seed, logprobs)

    def complete(
        self,
        prompts: Sequence[str],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        logprobs: bool = False,
    ) -> list[list[Completion]]:
        """Continue each text as it stands, without a chat template; everything else as in `chat`."""
        texts: list[Prompt] = [_text(item, f"prompt {i}") for i, item in enumerate(_several(prompts))]
        return self._generate(texts, n, temperature, top_p, max_tokens, stop, seed, logprobs)

    def score(
        self,
        prompts: Sequence[Conversation],
        choices: Sequence[str] | Sequence[Sequence[str]],
        calibration: Literal["content_free", "batch_median"] | None = None,
        content_free_prompts: Sequence[Conversation] = (),
        per_token: bool = False,
        raw: bool = False,
    ) -> np.ndarray:
        """The log-probability of each given answer to each prompt: small models label well by it.

        Prompt and answer are tokenized apart and joined, so a token never spans the boundary. Without a chat template
        (`raw`), an answer usually has to begin with a space: " yes". An endpoint scores less; see `endpoint.Endpoint`.

        Args:
            prompts: conversations as in `chat`; with `raw`, texts.
            choices: the answers, the same for all prompts; or one equally long list per prompt.
            calibration: None returns log-probabilities. "content_free" and "batch_median" return shares of the choices,
                on a log scale, above what `content_free_prompts` or the batch's medians lead one to expect
                (see `calibrate`); then the largest in a row is the label.
            content_free_prompts: the caller's template filled with "N/A", "", "[MASK]", for "content_free".
            per_token: divide by the answer's number of tokens, for choices of unequal length.
            raw: score the choices as continuations of plain texts, without a chat template.

        Returns:
            (prompts, choices), float64.

        Raises:
            BudgetExhausted, InputError: as in `chat`.

        Example:
            scores = teacher.score([f"Review: {text}\\nIs it positive or negative?" for text in texts],
                                   ["positive", "negative"], calibration="batch_median")
            labels = scores.argmax(axis=1)
        """
        import numpy as np

        from broadsheet.teacher import calibrate

        conversations = list(_several(prompts))
        shared, answers = _choices(choices, len(conversations))
        if calibration not in (None, "content_free", "batch_median"):
            raise InputError(f"calibration={calibration!r}: expected None, 'content_free' or 'batch_median'")
        if calibration and not shared:
            raise InputError("calibration compares prompts, so all of them need the same choices; give one list")
        if calibration == "batch_median" and len(conversations) < 2:
            raise InputError(
                "calibration='batch_median' needs at least two prompts; use 'content_free' for single ones"
            )
        if (calibration == "content_free") != bool(content_free_prompts):
            raise InputError(
                "calibration='content_free' and content_free_prompts go together: "
                "give your template filled with 'N/A', '' and '[MASK]'"
            )

        baseline = list(content_free_prompts)
        answers += answers[:1] * len(baseline)
        asked = conversations + baseline
        read: list[Prompt]
        read = [_text(p, f"prompt {i}") if raw else _conversation(p, i) for i, p in enumerate(asked)]
        found = self._score(read, answers)
        logprobs = np.array([[s / tokens if per_token else s for s, tokens in row] for row in found], dtype=np.float64)
        logprobs = logprobs.reshape(len(asked), len(choices) if shared else len(choices[0]))
        scores = logprobs[: len(conversations)]
        if calibration == "batch_median":
            return calibrate.batch_median(scores)
        if calibration == "content_free":
            return calibrate.content_free(scores, logprobs[len(conversations) :])
        return scores

    def _generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        stop: str | Sequence[str],
        seed: int,
        logprobs: bool,
    ) -> list[list[Completion]]:
        if n < 1:
            raise InputError(f"n={n}: expected a whole number ≥ 1")
        greedy = temperature == 0
        sampling = Sampling(
            temperature=temperature,
            top_p=1.0 if greedy else top_p,
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=0 if greedy else seed,
            logprobs=logprobs,
        )
        identity = self.backend.identity()
        readings = self.backend.read(prompts, max_tokens)
        draws = [digest([reading, asdict(sampling)]) for reading in readings]
        requests = [digest([_FORMAT, "generate", identity, draw]) for draw in draws]
        samples = range(1 if greedy else n)

        def produce(missing: list[str], meter: Meter) -> Iterator[dict[str, Any]]:
            absent, jobs, asked = set(missing), [], []
            for request, (draw, reading) in dict(zip(requests, zip(draws, readings, strict=True), strict=True)).items():
                if indices := tuple(i for i in samples if f"{request}/{i}" in absent):
                    jobs.append(TeacherJob(draw, reading, indices))
                    asked.append(request)
            for batch in self.backend.generate(jobs, sampling, meter):
                yield {f"{asked[position]}/{i}": answer.to_json() for position, i, answer in batch}

        found = self._find([f"{request}/{i}" for request in requests for i in samples], produce, "answering")
        return [
            [Completion.from_json(found[f"{request}/{0 if greedy else i}"]) for i in range(n)] for request in requests
        ]

    def _score(self, prompts: Sequence[Prompt], choices: Sequence[tuple[str, ...]]) -> list[list[tuple[float, int]]]:
        identity = self.backend.identity()
        readings = self.backend.read(prompts, sorted({choice for row in choices for choice in row}))
        keys = [digest([_FORMAT, "score", identity, *pair]) for pair in zip(readings, choices, strict=True)]
        jobs_by_key = {key: ScoreJob(*pair) for key, *pair in zip(keys, readings, choices, strict=True)}

        def produce(missing: list[str], meter: Meter) -> Iterator[dict[str, Any]]:
            for batch in self.backend.score([jobs_by_key[key] for key in missing], meter):
                yield {missing[position]: scores for position, scores in batch}

        found = self._find(keys, produce, "scoring")
        return [found[key] for key in keys]

    def _find(
        self, keys: Sequence[str], produce: Callable[[list[str], Meter], Iterator[dict[str, Any]]], verb: str
    ) -> dict[str, Any]:
        """The values of `keys`: from the cache, and what is missing from `produce`, kept as it comes."""
        unique = list(dict.fromkeys(keys))
        with Store(home() / "teacher" / "cache.sqlite" if self.cache else None) as store:
            found = store.get(unique)
            self.usage.cache_hits += len(found)
            missing = [key for key in unique if key not in found]
            if not missing:
                return found
            meter = Meter(self.usage, self.budget)
            with progress(verb, total=len(missing)) as bar:
                try:
                    for values in produce(missing, meter):
                        store.put(values)
                        found.update(values)
                        bar.advance(bar.task_ids[0], len(values))
                except SpentError:
                    kept = (
                        "they are kept: run again with a larger one" if self.cache else "cache=False has dropped them"
                    )
                    raise BudgetExhausted(
                        f"the budget of {self.budget} is spent, {len(found)} of {len(unique)} answers ready; {kept}",
                        len(found),
                        len(unique),
                    ) from None
        return found


def _several(items: Sequence[Any]) -> Sequence[Any]:
    if isinstance(items, (str, Mapping)):
        raise InputError(f"got a single {type(items).__name__}, expected a list of prompts; wrap it: [prompt]")
    return items


def _text(item: Any, where: str) -> str:
    if not isinstance(item, str):
        raise InputError(f"{where}: got {type(item).__name__}, expected str")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start} is half of a surrogate pair; decode the text as UTF-8"
        ) from None
    return item


def _conversation(item: Any, number: int) -> Prompt:
    """`item` as a list of plain messages, checked."""
    where = f"conversation {number}"
    if isinstance(item, str):
        return [{"role": "user", "content": _text(item, where)}]
    if isinstance(item, Mapping):
        raise InputError(f"{where}: got a single message, expected a list of messages; wrap it: [message]")
    messages: list[dict[str, str]] = []
    for message in item:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InputError(f"{where}: a message is {{'role': …, 'content': …}}, got {message!r:.80}")
        if message["role"] not in ("system", "user", "assistant"):
            raise InputError(f"{where}: role {message['role']!r}: expected 'system', 'user' or 'assistant'")
        messages.append({"role": message["role"], "content": _text(message["content"], where)})
    if not messages or messages[-1]["role"] != "user":
        raise InputError(f"{where}: expected messages that end with the user's, so that there is something to answer")
    return messages


def _choices(choices: Sequence[Any], prompts: int) -> tuple[bool, list[tuple[str, ...]]]:
    """Whether all prompts share their choices, and the choices of each prompt."""
    _several(choices)
    shared = all(isinstance(choice, str) for choice in choices)
    rows = [tuple(choices)] * prompts if shared else [tuple(row) for row in choices]
    if len(rows) != prompts or len({len(row) for row in rows}) > 1:
        raise InputError(f"got choices for {len(rows)} prompts, expected one equally long list for each of {prompts}")
    for row in rows:
        if not row or len(set(row)) < len(row) or not all(_text(choice, "a choice") for choice in row):
            raise InputError(f"choices {list(row)!r:.80}: expected different texts, none of them empty")
    return shared, rows
