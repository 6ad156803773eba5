"""The listwise prompt: passages with bracketed identifiers, built and answered in token ids.

Knows: how texts are cleaned, and shortened until they fit. Does not know: models, windows, losses; chat templates and
tokenizers are handled by `pieces`.

A prompt is a concatenation of pieces that are tokenized once each: head (template and system sentence), introduction
with the query, one piece per passage, closing instruction, tail (template). So an identifier has the same tokens in
the passages, in the answer and in the loss, whatever a tokenizer would merge over a border, and a passage is tokenized
once for all of its windows. Text of users never becomes a control token: `<|im_end|>` in a passage is read as plain
characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from broadsheet.console import InputError
from broadsheet.models.tokens import token_id
from broadsheet.rank.order import Identifiers, label_text
from broadsheet.rank.prompts.pieces import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Document = str | Mapping[str, Any]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IN_BRACKETS = {
    "alpha": re.compile(r"\[\s*([A-Za-z]+)\s*\]"),
    "numeric": re.compile(r"\[\s*([0-9]+)\s*\]"),
}
# A word is a run without spaces. Scripts without spaces count by character, and a longer run counts once per 60.
_WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]|[^\s\u2e80-\u9fff\uf900-\ufaff]{1,60}")
_CACHED_PASSAGES = 50_000


@dataclass(frozen=True)
class Prompt:
    """The wording, in four templates. Give a trained model the wording it was trained with.

    `repeat` writes each identifier again after its passage, `[A] text [A]` (ours; off as in the papers): only there has
    a causal model read the passage, so it can keep its verdict at the identifier that it has to answer with.

    `{num}` is the number of passages, `{kind}` "alphabetical" or "numerical", `{query}` the query, `{example}` a
    ranking such as `[B] > [A]`. Identifiers and passages go between `intro` and `outro`, one per line.

    Source: the parts and their order are arXiv:2406.15657's and arXiv:2412.14574's (RankZephyr's single turn).
    """

    system: str = "You are RankLLM, an assistant that ranks passages by how relevant they are to a query."
    intro: str = (
        "Here are {num} passages, each marked with {kind} identifier in square brackets. "
        "Rank them by relevance to the search query: {query}\n\n"
    )
    outro: str = (
        "\nSearch query: {query}\n"
        "Rank the {num} passages above by relevance to this query. Name every passage once and list the identifiers "
        "in descending order of relevance, in the form [] > [], e.g. {example}. Answer with the ranking only."
    )
    # Between prompt and answer where a tokenizer has no chat template.
    plain_tail: str = "\n\nRanking:\n"
    repeat: bool = False

    def fill(self, template: str, query: str, n: int, identifiers: Identifiers) -> str:
        """A template with its fields filled in; the query last, as it may hold braces itself."""
        kind = "an alphabetical" if identifiers == "alpha" else "a numerical"
        filled = template.replace("{num}", str(n)).replace("{kind}", kind)
        return filled.replace("{example}", label_text([1, 0], identifiers)).replace("{query}", query)

    def to_dict(self) -> dict[str, str | bool]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prompt:
        """Raises InputError for a field that is unknown, or of another type."""
        known = {one.name: type(one.default) for one in fields(cls)}
        for name, value in values.items():
            if name not in known or not isinstance(value, known[name]):
                kinds = ", ".join(f"{field} ({kind.__name__})" for field, kind in sorted(known.items()))
                raise InputError(f"prompt has {name}={value!r}; expected {kinds}")
        return cls(**values)


#: Few words around the passages, for small models and short passages, where instructions would be most of the prompt.
BRIEF = Prompt(
    system="You rank passages.",
    intro="Query: {query}\n\n",
    outro="\nQuery: {query}\nRank the {num} passages by relevance, as in {example}.",
    repeat=True,
)


@dataclass(frozen=True)
class Built:
    """A prompt up to where the answer begins.

    Attributes:
        ids: token ids, without the bracket that opens the answer.
        n: passages in it.
        cut: passages that were shortened.
        shortened_words: total of the words left out of them.
    """

    ids: list[int]
    n: int
    cut: int = 0
    shortened_words: int = 0


@dataclass(frozen=True)
class TargetOrder:
    """A ranking as token ids, and the part of it that each token belongs to.

    Attributes:
        ids: `[C] > [A] > …`, from the bracket that opens the answer, with or without the end of text.
        ranks: for each token, the 1-based rank of the `[k]` it belongs to, brackets included; 0 for separators and the
            end of text.
        identifier: for each token, whether it is (part of) the letter or number itself.
    """

    ids: list[int]
    ranks: list[int]
    identifier: list[bool]


class TokenWeights(Protocol):
    """Weighs the tokens of a written ranking."""

    def token_weights(self, target: TargetOrder) -> list[float]:
        """One weight per token of `target`."""


class Prompter:
    """Builds prompts and targets for one tokenizer.

    Args:
        tokenizer: with a chat template, or without: then system sentence, user's text and "Ranking:" follow each other
            as plain text. For a template without a system role its sentence goes in front of the user's text.
        identifiers: "alpha", the letters A to Z, or "numeric", numbers from 1.
        prompt: the wording.
        max_words: of a passage, title included; the rest is left out, and counted.
        max_length: tokens of prompt and answer together, the model's context; None for no limit. If passages do not
            fit, all are shortened by max(1, overflow // (4 n)) words until they do.
        truncate: "shorten", or "error" to refuse instead.
        passages: refuse a tokenizer in which one of the first `passages` identifiers is not one token
            (`identifier_ids`).

    Raises:
        InputError: see above; or the chat template does not show the user's text.

    Example:
        prompter = Prompter(tokenizer, max_length=8192)
        built = prompter.build("what is a list?", ["an ordered collection", "a kind of tree"])
        target = prompter.target([1, 0])
        ids = built.ids + target.ids  # for training; to score, append `prompter.opening` alone

    Source: arXiv:2406.15657 (words per passage, shortening: RankGPT's, as its authors' code has them).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        identifiers: Identifiers = "alpha",
        *,
        prompt: Prompt | None = None,
        max_words: int = 300,
        max_length: int | None = None,
        truncate: str = "shorten",
        passages: int = 0,
    ) -> None:
        if identifiers not in _IN_BRACKETS:
            raise InputError(f"identifiers is {identifiers!r}; expected 'alpha' or 'numeric'")
        if truncate not in ("shorten", "error"):
            raise InputError(f"truncate is {truncate!r}; expected 'shorten' or 'error'")
        if max_words < 1:
            raise InputError(f"max_words is {max_words}; expected at least 1 word per passage")
        self.tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self.identifiers: Identifiers = identifiers
        self.prompt = prompt or Prompt()
        self.max_words = max_words
        self.max_length = max_length
        self.truncate = truncate
        piece = self._pieces.piece
        head, tail = self._pieces.frame(self.prompt.system, self.prompt.plain_tail)
        self._head = self._pieces.encode(head, control=True)
        self._tail = piece(tail, control=True)
        self._bracket, self._next_bracket, self._close = piece("["), piece(" ["), piece("]")
        self._separator, self._newline = piece(" >"), piece("\n")
        opened = piece(f"{tail}[", control=True)
        joins = opened[: len(self._tail)] != self._tail or len(opened) == len(self._tail)
        #: The bracket that opens the answer; the logits at its last token give the ranking.
        self.opening: list[int] = self._bracket if joins else opened[len(self._tail) :]
        self._identifiers: dict[int, list[int]] = {}
        self._cleaned: dict[str, tuple[str, int]] = {}
        self._passages: dict[str, list[int]] = {}
        self._frames: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        self.identifier_ids(passages)

    def build(self, query: str, documents: Sequence[Document], reserve: int | None = None) -> Built:
        """The prompt for one window.

        Args:
            query: a text that is not empty; cleaned like passages, never shortened.
            documents: texts, or mappings with `text` and perhaps `title`, in their present order.
            reserve: tokens kept for the answer; by default those of a written ranking.

        Raises:
            InputError: an empty query, no documents, more documents than identifiers; or the prompt does not fit even
                with one word per passage, or only shortened while `truncate` is "error".
        """
        n = len(documents)
        query = self.clean(query)
        if not query:
            raise InputError("the query is empty; give it some text to rank by")
        if not n:
            raise InputError("there are no documents to rank; give at least one")
        names = [self._identifier(position) for position in range(n)]
        if not all(names):
            self.identifier_ids(n)
        intro, outro = self._intro_outro(query, n)
        again = [[*self._next_bracket, *name, *self._close] if self.prompt.repeat else [] for name in names]
        marks = len(self._bracket) + len(self._close) + len(self._newline)
        fixed = len(self._head) + len(intro) + len(outro) + len(self._tail) + n * marks
        fixed += sum(map(len, names)) + sum(map(len, again))
        room = None
        if self.max_length is not None:
            room = self.max_length - (self.answer_length(n) if reserve is None else reserve)
        contents = [self._content(document) for document in documents]
        pieces, limit = self._fit(contents, fixed, room)
        lost = [max(0, words - limit) for _, words in contents]
        if self.truncate == "error" and any(lost):
            first = next(position for position, words in enumerate(lost) if words)
            raise InputError(
                f"document {first + 1} of {n} has {contents[first][1]} words and {limit} fit; shorten it, or use"
                " truncate='shorten'"
            )
        ids = [*self._head, *intro]
        for name, piece, end in zip(names, pieces, again, strict=True):
            ids += [*self._bracket, *name, *self._close, *piece, *end, *self._newline]
        ids += [*outro, *self._tail]
        return Built(ids, n, sum(map(bool, lost)), sum(lost))

    def _fit(self, contents: Sequence[tuple[str, int]], fixed: int, room: int | None) -> tuple[list[list[int]], int]:
        """Token ids of the passages, shortened to fit `room` tokens beside `fixed` others; and the words kept of each.

        Raises:
            InputError: they do not fit even with one word each.
        """
        n, limit = len(contents), self.max_words
        while True:
            pieces = self._passage_ids([_first_words(text, limit) for text, _ in contents])
            overflow = 0 if room is None else fixed + sum(map(len, pieces)) - room
            if overflow <= 0:
                return pieces, limit
            longest = min(limit, max(words for _, words in contents))
            if longest <= 1:
                raise InputError(
                    f"{n} passages do not fit into {self.max_length} tokens even with a word each: instructions and"
                    f" query take {fixed}; use a smaller window, a shorter query, or a model with a longer context"
                )
            limit = max(1, longest - max(1, overflow // (4 * n)))  # RankGPT's shortening, as FIRST's authors have it

    def target(self, order: Sequence[int], eos: bool = True) -> TargetOrder:
        """The answer that ranks 0-based positions in `order`, best first.

        Args:
            eos: end it with the tokenizer's end of text, so that a trained model knows when to stop.

        Raises:
            InputError: `order` is empty, or the tokenizer has no end of text.
        """
        if not len(order):
            raise InputError("the ranking is empty; expected at least one position")
        ids: list[int] = []
        ranks: list[int] = []
        identifier: list[bool] = []

        def write(piece: Sequence[int], rank: int, named: bool = False) -> None:
            ids.extend(piece)
            ranks.extend([rank] * len(piece))
            identifier.extend([named] * len(piece))

        for rank, position in enumerate(order, start=1):
            if rank > 1:
                write(self._separator, 0)
            write(self._next_bracket if rank > 1 else self.opening, rank)
            write(self._identifier(position), rank, named=True)
            write(self._close, rank)
        if eos:
            if self.tokenizer.eos_token_id is None:
                raise InputError("the tokenizer has no end-of-text token; set tokenizer.eos_token, or use eos=False")
            write([self.tokenizer.eos_token_id], 0)
        return TargetOrder(ids, ranks, identifier)

    def answer_length(self, n: int) -> int:
        """Tokens of a ranking of `n` passages with the end of text."""
        return len(self.target(range(n), eos=False).ids) + 1

    def identifier_ids(self, n: int) -> list[int]:
        """The token of each of the first `n` identifiers after "[", whose logits first-token decoding reads.

        Raises:
            InputError: one of them is not one token, or there are fewer than `n` letters.
        """
        found = [self._identifier(position) for position in range(n)]
        bad = [self.name(position) for position, ids in enumerate(found) if len(ids) != 1]
        if bad:
            shown = ", ".join(bad[:26])
            remedy = (
                "a window of at most 9" if self.identifiers == "numeric" else "another model, or permutation decoding"
            )
            raise InputError(
                f'this tokenizer does not write {shown} as one token after "["; first-token decoding needs one each:'
                f" use {remedy}"
            )
        ids = [one[0] for one in found]
        if len(set(ids)) < n:
            twice = [self.name(position) for position in range(n) if ids.count(ids[position]) > 1]
            raise InputError(
                f"this tokenizer writes {', '.join(twice)} as the same token; use another model, whose letters differ"
            )
        return ids

    def name(self, position: int) -> str:
        """A to Z, or a number from 1. Raises InputError beyond Z."""
        if self.identifiers == "numeric":
            return str(position + 1)
        if position >= len(LETTERS):
            raise InputError(
                f"got {position + 1} passages or more in one call; letters name at most {len(LETTERS)}: use a window of"
                " 20, or identifiers='numeric' with decode='permutation'"
            )
        return LETTERS[position]

    def clean(self, text: str) -> str:
        """NFC, one line, without control characters; bracketed identifiers are rewritten, `[12]` → `(12)`.

        Raises:
            InputError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise InputError(f"got {type(text).__name__} {str(text)[:40]!r} where a text was expected")
        text = "".join(" " if unicodedata.category(one) in ("Cc", "Cs") else one for one in text)
        text = " ".join(unicodedata.normalize("NFC", text).split())
        return _IN_BRACKETS[self.identifiers].sub(r"(\1)", text)

    def _identifier(self, position: int) -> list[int]:
        if position not in self._identifiers:
            name = self.name(position)
            whole = self._pieces.piece(f"[{name}")
            if whole[: len(self._bracket)] == self._bracket and len(whole) > len(self._bracket):
                ids = whole[len(self._bracket) :]
            else:  # the tokenizer has "[A" as one token; in ids, "[" and "A" are still two
                known = token_id(self.tokenizer, name)
                ids = self._pieces.piece(name) if known is None else [known]
            self._identifiers[position] = [] if self.tokenizer.unk_token_id in ids else ids
        return self._identifiers[position]

    def _content(self, document: Document) -> tuple[str, int]:
        """The cleaned text and its number of words."""
        text = document_text(document)
        if text not in self._cleaned:
            if len(self._cleaned) >= _CACHED_PASSAGES:
                self._cleaned.clear()
            cleaned = self.clean(text)
            self._cleaned[text] = (cleaned, sum(1 for _ in _WORD.finditer(cleaned)))
        return self._cleaned[text]

    def _passage_ids(self, texts: Sequence[str]) -> list[list[int]]:
        new = [text for text in dict.fromkeys(texts) if text not in self._passages]
        if len(self._passages) + len(new) > _CACHED_PASSAGES:
            self._passages.clear()
            new = list(dict.fromkeys(texts))
        self._passages.update(zip(new, self._pieces.pieces([f" {text}" if text else "" for text in new]), strict=True))
        return [self._passages[text] for text in texts]

    def _intro_outro(self, query: str, n: int) -> tuple[list[int], list[int]]:
        if (query, n) not in self._frames:
            if len(self._frames) >= _CACHED_PASSAGES:
                self._frames.clear()
            intro, outro = (
                self._pieces.piece(self.prompt.fill(template, query, n, self.identifiers))
                for template in (self.prompt.intro, self.prompt.outro)
            )
            self._frames[query, n] = intro, outro
        return self._frames[query, n]


def document_text(document: Document) -> str:
    """A document's text, with its title in front where it has one: `Title: … Content: …`.

    Raises:
        InputError: it is neither a text nor a mapping with a text.
    """
    if isinstance(document, str):
        return document
    text = document.get("text") if isinstance(document, Mapping) else None
    if not isinstance(text, str):
        raise InputError(f"a document is {repr(document)[:60]}; expected a text, or a mapping with 'text' ('title')")
    title = document.get("title") if isinstance(document, Mapping) else None
    return f"Title: {title} Content: {text}" if title else text


def _first_words(text: str, limit: int) -> str:
    if len(text) <= limit:  # no text has more words than characters
        return text
    end = 0
    for count, word in enumerate(_WORD.finditer(text), start=1):
        end = word.end()
        if count == limit:
            return text[:end]
    return text
