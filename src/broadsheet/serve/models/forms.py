"""The form of written answers: a chat's and a text's, whole or in pieces, as OpenAI has them.

Knows: answers and their tokens. Does not know: routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from broadsheet.serve.models.writing import Answers, Piece
from broadsheet.teacher.base import Completion


class Form:
    """The form of answers: what is the same in a chat's and a text's.

    Args:
        name: of this request's answers.
        model: the model's.
        logprobs: whether log-probabilities are told.
        text: of token ids.
    """

    kind = ""
    chunk = ""

    def __init__(self, name: str, model: str, logprobs: bool, text: Callable[[Sequence[int]], str]) -> None:
        self.name, self.model, self.logprobs, self.text = name, model, logprobs, text
        self.created = int(time.time())

    def body(self, *, streamed: bool = True, **more: Any) -> dict[str, Any]:
        kind = self.chunk if streamed else self.kind
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model, **more}

    def first(self, answers: int) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    def piece(self, answers: Answers, piece: Piece) -> dict[str, Any]:
        noted = self._noted(answers, piece.index, piece.begin, piece.begin + piece.tokens, piece.completion)
        done = piece.completion.finish_reason if piece.completion else None
        return self.body(choices=[self.choice(piece.index, piece.text, noted, done, streamed=True)])

    def whole(self, answers: Answers, done: Sequence[Completion], spent: dict[str, int]) -> dict[str, Any]:
        choices = [
            self.choice(i, each.text, self._noted(answers, i, 0, each.tokens or 0, each), each.finish_reason)
            for i, each in enumerate(done)
        ]
        return self.body(streamed=False, choices=choices, usage=spent)

    def choice(self, index: int, text: str, noted: Any, done: str | None, *, streamed: bool = False) -> dict[str, Any]:
        raise NotImplementedError

    def _noted(self, answers: Answers, index: int, begin: int, end: int, done: Completion | None) -> list[Any] | None:
        """(token's text, log-probability, alternatives) of the tokens of an answer from one place to another."""
        if not self.logprobs:
            return None
        answer = answers.generation.answers[index]
        if done is not None and done.logprobs is not None:
            end = min(end, len(done.logprobs))
        text = self.text
        top = answer.top or [[]] * end
        return [
            (text([answer.tokens[i]]), answer.logprobs[i], [(text([token]), value) for token, value in top[i]])
            for i in range(begin, end)
        ]


class ChatForm(Form):
    kind, chunk = "chat.completion", "chat.completion.chunk"

    def first(self, answers: int) -> list[dict[str, Any]]:
        def begun(i: int) -> dict[str, Any]:
            return {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}

        return [self.body(choices=[begun(i)]) for i in range(answers)]

    def choice(self, index: int, text: str, noted: Any, done: str | None, *, streamed: bool = False) -> dict[str, Any]:
        said = {"delta": {"content": text}} if streamed else {"message": {"role": "assistant", "content": text}}
        content = None if noted is None else {"content": [self._token(*each) for each in noted]}
        return {"index": index, **said, "logprobs": content, "finish_reason": done}

    def _token(self, token: str, logprob: float, top: Sequence[tuple[str, float]]) -> dict[str, Any]:
        def entry(word: str, value: float) -> dict[str, Any]:
            return {"token": word, "logprob": value, "bytes": list(word.encode("utf-8", "replace"))}

        return {**entry(token, logprob), "top_logprobs": [entry(*each) for each in top]}


class TextForm(Form):
    kind = chunk = "text_completion"

    def choice(self, index: int, text: str, noted: Any, done: str | None, *, streamed: bool = False) -> dict[str, Any]:
        told = None
        if noted is not None:
            told = {
                "tokens": [token for token, *_ in noted],
                "token_logprobs": [value for _, value, _ in noted],
                "top_logprobs": [dict(top) for *_, top in noted],
                "text_offset": np.cumsum([0, *(len(token) for token, *_ in noted)])[:-1].tolist(),
            }
        return {"index": index, "text": text, "logprobs": told, "finish_reason": done}
