"""Answers as they go to a client: pieces of text as they grow, or whole; given up when the client has gone.

Knows: answers of the engine, text that may be sent. Does not know: the form in which it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from broadsheet.serve.models.engine import AnswersAsked, Engine
from broadsheet.teacher.base import Completion
from broadsheet.teacher.live import GrowingAnswer, Row, TokenReader


@dataclass(frozen=True)
class Piece:
    """What is new of one answer.

    Attributes:
        index: of the answer.
        text: to be put behind what came before.
        tokens: their number since the last piece, and where they begin in the answer.
        completion: the whole answer, with its last piece.
    """

    index: int
    text: str
    begin: int
    tokens: int
    completion: Completion | None = None


class Growing:
    """The text of one answer as far as it may be sent: no half of a character, no beginning of a stop string."""

    def __init__(self, reader: TokenReader, row: Row) -> None:
        self._reader, self._row = reader, row
        self._sent = 0
        self.tokens = 0

    def more(self, answer: GrowingAnswer) -> str:
        """What is to be sent now."""
        if answer.completion:
            text = answer.completion.text
        else:
            text = self._reader.text(answer.tokens)
            text = text.removeprefix(" ") if self._row.transcript else text
            text = text.rstrip("\ufffd")
            held = max((_begun(text, stop) for stop in self._row.stop), default=0)
            text = text[: len(text) - held]
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Answers:
    """The answers of one request.

    Args:
        pieces: give them as they grow; else each when it has ended, whose text is then put together once.

    Example:
        async for piece in Answers(engine, reader, rows):
            print(piece.text, end="")
    """

    def __init__(self, engine: Engine, reader: TokenReader, rows: Sequence[Row], *, pieces: bool = True) -> None:
        self._in_pieces = pieces
        self._growing = [Growing(reader, row) for row in rows]
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[list[Piece] | BaseException] = asyncio.Queue()
        self._generation = AnswersAsked(rows, self._grown, self._failed)
        engine.generate(self._generation)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces as they come; whoever stops reading gives the answers up.

        Raises:
            Exception: what the model's thread raised.
        """
        left = len(self._growing)
        try:
            while left:
                pieces = await self._pieces.get()
                if isinstance(pieces, BaseException):
                    raise pieces
                for piece in pieces:
                    left -= piece.completion is not None
                    yield piece
        finally:
            self._generation.leave()

    async def whole(self) -> list[Completion]:
        """All answers when they have ended."""
        found: dict[int, Completion] = {}
        async for piece in self:
            if piece.completion:
                found[piece.index] = piece.completion
        return [found[i] for i in range(len(self._growing))]

    # In the engine's thread

    def _grown(self, grown: list[GrowingAnswer]) -> None:
        pieces = []
        for answer in grown:
            if not (self._in_pieces or answer.completion):
                continue
            index = self._generation.answers.index(answer)
            growing = self._growing[index]
            text, begin = growing.more(answer), growing.tokens
            if text or answer.completion:
                growing.tokens = len(answer.tokens)
                pieces.append(Piece(index, text, begin, growing.tokens - begin, answer.completion))
        if pieces:
            self._send(pieces)

    def _failed(self, error: BaseException) -> None:
        self._send(error)

    def _send(self, sent: list[Piece] | BaseException) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, sent)

    @property
    def generation(self) -> AnswersAsked:
        """What the engine was given."""
        return self._generation
