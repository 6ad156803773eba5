"""What goes over the wire: requests as they are checked, answers as OpenAI, Cohere and Jina have them, errors.

Knows: JSON. Does not know: models, keys, HTTP.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from broadsheet.console import InputError

MOST_TEXTS, MOST_ANSWERS, MOST_STOPS = 2048, 16, 16
Truncate = Literal["error", "left", "right"]
Text = Annotated[str, Field(max_length=4_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1_000_000)]
# One text or several, as text or as token ids.
Texts = (
    Text
    | Tokens
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_TEXTS)]
)
# Fields of OpenAI's that nothing here does; with these values they ask for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": (), "tools": (), "functions": (),
    "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "echo": (), "suffix": (), "best_of": (1,),
    "modalities": (["text"],), "audio": (), "prediction": (),
}  # fmt: skip


class Request(BaseModel):
    """The fields that all requests have. Unknown ones are left alone, unless they ask for what is not done here."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)
    passes_on: ClassVar[bool] = False  # another server may do what nothing here does

    model: Name | None = None

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> Request:
        if not self.passes_on and (name := self.not_done):
            raise ValueError(f"{name} is not done here; leave it out")
        return self

    @property
    def not_done(self) -> str:
        """The first of its fields that asks for what is not done here; empty if there is none."""
        extra = (self.model_extra or {}).items()
        return next((name for name, value in extra if name in _NOTHING and value and value not in _NOTHING[name]), "")


class WritingRequest(Request):
    """What chat and completions share."""

    passes_on: ClassVar[bool] = True

    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    truncate: Literal["error", "left"] = "error"

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream is to end with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def passed_on(self) -> dict[str, Any]:
        """What another server is asked for: fields that were given, and those whose default elsewhere differs.

        Raises:
            InputError: it asks for a prompt to be cut, which only a server with the tokenizer can do.
        """
        if self.truncate != "error":
            raise InputError(f"truncate={self.truncate} is not done by this model's server; shorten the prompt")
        given = self.model_dump(exclude_unset=True, exclude={"model", "truncate", "stream", "stream_options"})
        return {**given, "temperature": self.temperature, "top_p": self.top_p}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Part(BaseModel):
    """A part of a message; text alone."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message. What is not text (images, calls of tools) is only passed on to other servers."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part | dict[str, Any]] | None = None

    def plain(self) -> dict[str, str]:
        """Its role and text, as a chat template reads them.

        Raises:
            InputError: it is not text alone.
        """
        parts = [self.content] if isinstance(self.content, str) else self.content or []
        texts = [part.text if isinstance(part, Part) else part for part in parts]
        if self.role == "tool" or not parts or not all(isinstance(text, str) for text in texts):
            raise InputError("messages of text alone are read here, by the system, the user or the assistant")
        return {"role": "system" if self.role == "developer" else self.role, "content": "".join(map(str, texts))}


class ChatRequest(WritingRequest):
    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(WritingRequest):
    prompt: Texts
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[Any]:
        """One text or list of token ids for each prompt."""
        return _listed(self.prompt)


class EmbeddingRequest(Request):
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    input_type: Literal["query", "document"] | None = None
    truncate: Truncate = "right"

    @property
    def inputs(self) -> list[Any]:
        """One text or list of token ids for each vector."""
        return _listed(self.input)


def _listed(given: Any) -> list[Any]:
    """Several texts or token lists, also where one was given by itself."""
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


class RankedDocument(BaseModel):
    """A document with further fields, which nobody reads."""

    model_config = ConfigDict(extra="allow")

    text: Text


class OrderRequest(Request):
    query: Annotated[Text, Field(min_length=1)]
    documents: list[Text | RankedDocument] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    max_tokens_per_doc: int | None = Field(None, ge=1)


class ContinuationsRequest(Request):
    prompt: Text | Annotated[list[Message], Field(min_length=1, max_length=4096)]
    continuations: list[Annotated[Text, Field(min_length=1)]] = Field(min_length=1, max_length=MOST_TEXTS)


class ClassifyRequest(Request):
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    labels: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(min_length=2, max_length=100)
    instruction: Text = ""


class DetectRequest(Request):
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]


class TokenizeRequest(Request):
    prompt: Text
    add_special_tokens: bool = True


class DetokenizeRequest(Request):
    tokens: Tokens


class Fault(BaseModel):
    """What is in an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(BaseModel):
    """An error as OpenAI has it."""

    error: Fault


def error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def vector(values: np.ndarray[Any, Any], encoding: str) -> list[float] | str:
    """An embedding as a list of numbers, or as the base64 of little-endian float32."""
    if encoding == "float":
        return [float(value) for value in values]
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def usage(prompt: int, completion: int | None = None, truncated: int = 0) -> dict[str, int]:
    """Tokens read and written, and those of prompts that were left out."""
    told = {"prompt_tokens": prompt, "total_tokens": prompt + (completion or 0)}
    if completion is not None:
        told["completion_tokens"] = completion
    return told | ({"truncated_tokens": truncated} if truncated else {})
