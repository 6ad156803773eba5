"""A teacher through llama.cpp, in this process: a GGUF file as it is, quantized, with continuous batching.

Knows: the server that the package xllamacpp runs inside this process. It listens on loopback and is spoken to over HTTP
like any endpoint, with a key made up for this process. Does not know: transformers.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai

from broadsheet.cache import sha256_file
from broadsheet.console import InputError
from broadsheet.teacher.base import Meter, Score, ScoreJob
from broadsheet.teacher.endpoint import Endpoint


class LlamaCpp(Endpoint):
    """A backend over a GGUF file and llama.cpp.

    On a CPU it is often faster than `Local` at few answers at once, with a quarter of the memory. Answers are drawn by
    llama.cpp's own generators, with `top_k` and `min_p` off: other answers than `Local` draws, from the quantized
    model's distribution. Slots share batches, which can change the last digits of the logits: the same seed may now and
    then draw another token.

    Scores are exact, whole choices, with or without the chat template; each token of a choice is one request.

    Parameters:
        name: "default" (the GGUF of the default model) or the path of a .gguf file.
        slots: answers generated at once.
        context: the most tokens of a prompt with its answer; at most what the model was trained for.
        threads: of the CPU; None leaves it to llama.cpp.

    Raises:
        InputError: xllamacpp is not installed; no such file, or one that llama.cpp cannot load.
    """

    def __init__(self, name: str, slots: int = 8, context: int = 4096, threads: int | None = None) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise InputError("llama.cpp needs the package xllamacpp: pip install -e '.[llamacpp]'") from None
        self._path = _gguf(name)
        self.context = context
        key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_parallel = slots
        params.n_ctx = context * slots  # shared out evenly
        params.verbosity = -1
        params.warmup = False
        params.api_keys = [key]
        if threads:
            params.cpuparams.n_threads = threads
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise InputError(
                f"llama.cpp cannot load {self._path}: {error}; give a whole GGUF file of a text model"
            ) from None
        super().__init__(
            self._path.stem,
            url=f"{self._server.listening_address}/v1",
            key=key,
            concurrency=slots,
            timeout=3600,
            retries=0,
            extra={"top_k": 0, "min_p": 0.0},
        )
        self._many = False  # the slots are the batch
        self._sha256 = sha256_file(self._path)

    def identity(self) -> dict[str, Any]:
        """The file's SHA-256."""
        return {"llamacpp": self._sha256}

    def score(self, jobs: Sequence[ScoreJob], meter: Meter) -> Iterator[list[tuple[int, list[Score]]]]:
        """Yield each prompt's scores as they are ready."""

        def work(position: int) -> list[Score]:
            job = jobs[position]
            text = job.reading
            if not isinstance(text, str):
                text = self._native("/apply-template", messages=text)["prompt"]
            prompt = self.tokenize(text, special=True)
            return [self._choice(prompt, choice, meter) for choice in job.choices]

        for position, scores in self._run(work, deque(range(len(jobs))), meter):
            yield [(position, scores)]

    def tokenize(self, text: str, *, special: bool, parse: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            special: begin with the tokens that begin every text.
            parse: read the names of special tokens in the text as these tokens.
        """
        ids: list[int] = self._native("/tokenize", content=text, add_special=special, parse_special=parse)["tokens"]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self._native("/detokenize", tokens=list(ids))["content"]
        return text

    def _choice(self, prompt: list[int], choice: str, meter: Meter) -> Score:
        ids = self.tokenize(choice, special=False, parse=False)
        total = 0.0
        for i, token in enumerate(ids):
            # The bias makes the sampler take this token; the log-probability that comes back is the model's own.
            meter.start()
            answer = self._native(
                "/completion", prompt=prompt + ids[:i], n_predict=1, n_probs=1, temperature=0, logit_bias=[[token, 1e6]]
            )
            [drawn] = answer["completion_probabilities"]
            if drawn["id"] != token:
                raise RuntimeError(f"llama.cpp drew token {drawn['id']} where {token} was forced")
            total += drawn["logprob"]
            meter.spend(answer["timings"]["prompt_n"], 1)
        return total, len(ids)

    def _native(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer of one of llama.cpp's own routes, which lie beside /v1."""
        try:
            text = self._client.post(self.url.removesuffix("/v1") + path, cast_to=str, body=body)
        except openai.APIStatusError as error:
            raise InputError(f"llama.cpp, {self._path.name}: {self.clean(error.message)}; mend the request") from None
        answer: dict[str, Any] = json.loads(text)
        return answer


def _gguf(name: str) -> Path:
    if name == "default":
        from broadsheet import models

        return Path(models.default_gguf())
    path = Path(name).expanduser()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise InputError(
            f"no such file: {path}; expected 'llamacpp:default' or 'llamacpp:' and the path of a .gguf file"
        )
    return path
