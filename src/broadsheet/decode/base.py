"""The base of the stage: a `Drafter`, which `model.generate(custom_generate=…)` calls to write greedy output faster.

Knows: the contract of transformers' `generate`, greedy verification. Does not know: how drafts are made.

Each step reads the last certain token and a draft in one forward pass, walks down the draft as far as it agrees with
greedy decoding, and adds the token after that: at least one token. Logits processors and stopping criteria are called
as in plain greedy decoding, once for each token in its turn, on the prefix it has there.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.decode.draft import Draft

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

    from broadsheet.decode.target import TargetModel

_INPUTS = {"attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep", "inputs_embeds"}


@dataclass
class DecodeStats:
    """What one call of `generate` did.

    Attributes:
        tokens: written.
        forwards: passes of the target, the one over the prompt included.
        drafted, accepted: draft tokens verified, and those among them that were written.
        sizes: steps by the number of draft tokens they verified.
        draft_seconds: spent on drafting and learning from what was written, the prompt aside.
        unknown: steps at whose start the method knew no continuation at all.
        accepted_from: accepted tokens by what proposed them, where the draft tells it (`Draft.sources`).
    """

    tokens: int = 0
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    draft_seconds: float = 0.0
    unknown: int = 0
    accepted_from: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_forward(self) -> float:
        """1 for plain greedy decoding."""
        return self.tokens / max(1, self.forwards)

    @property
    def steps(self) -> int:
        """Forward passes after the one over the prompt."""
        return sum(self.sizes.values())


class Drafter(ABC):
    """Drafts continuations, and learns what was written. Pass an instance as `generate(custom_generate=…)`.

    A subclass holds its hyperparameters and the methods below; after a call, `stats_` reports on it. One
    instance serves one `generate` at a time.

    Attributes:
        chain: whether drafts are single paths, which need no tree mask.
    """

    chain: bool = False
    stats_: DecodeStats

    @abstractmethod
    def begin(self, prompt: Sequence[int]) -> None:
        """A new sequence starts with `prompt`."""

    @abstractmethod
    def prepare(self, target: TargetModel, room: int) -> None:
        """Called before each draft: the place to check and time the target, which must be left as it was."""

    @abstractmethod
    def draft(self, room: int) -> Draft:
        """A tree below the last token written, at most `room` deep; empty for a plain step."""

    @abstractmethod
    def wrote(self, tokens: Sequence[int], accepted: int) -> None:
        """The target wrote `tokens`, of which the first `accepted` were drafted."""

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: Any = None,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Called by `generate`. Returns what greedy `generate` returns, of the same content.

        In float32 the output is greedy decoding's token for token. In half precision the logits of a token read among
        others differ from those read alone by a rounding error, and two tokens that nearly tie can change places.
        transformers hands a callable no tokenizer: instead of `stop_strings`, pass `StopStringCriteria` among the
        stopping criteria.

        Raises:
            InputError: the request is not greedy decoding of one sequence, or the model or its cache
                cannot verify drafts.
        """
        from broadsheet.decode.target import TargetModel, check_cache, check_model

        check_model(model, tree=not self.chain)
        _check_request(type(self).__name__, generation_config, input_ids, synced_gpus, model_kwargs)
        check_cache(model_kwargs.get("cache"))
        writer = GreedyWriter(
            input_ids, logits_processor, stopping_criteria, generation_config, streamer or _streamer_of_caller()
        )
        self.stats_ = stats = DecodeStats()
        # The prompt is read exactly as plain greedy decoding reads it: chunks, continued caches, padding, embeddings.
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        cache = outputs.cache
        check_cache(cache)  # a cache made without the config grows its layers here
        stats.forwards = 1
        positions = model_kwargs.get("position_ids")
        position = None if positions is None else int(positions[0, -1]) + 1
        target = TargetModel(model, cache, model_kwargs.get("attention_mask"), position, tree=not self.chain)
        writer.write(outputs.logits[0, -1:], Draft())
        del outputs  # the logits of a long prompt are large
        if not writer.done:
            self.begin(input_ids[0].tolist())
            self.wrote(writer.tokens, 0)
        while not writer.done:
            self.prepare(target, writer.room - 1)
            start = time.perf_counter()
            draft = self.draft(writer.room - 1)
            stats.draft_seconds += time.perf_counter() - start
            logits = target.read(writer.tokens[-1], draft)  # (1 + nodes, vocabulary)
            accepted = writer.write(logits, draft)
            target.keep(accepted, len(draft))
            new = writer.tokens[-1 - len(accepted) :]
            start = time.perf_counter()
            self.wrote(new, len(accepted))
            stats.draft_seconds += time.perf_counter() - start
            stats.forwards += 1
            stats.drafted += len(draft)
            stats.accepted += len(accepted)
            stats.sizes[len(draft)] = stats.sizes.get(len(draft), 0) + 1
            for source in (draft.sources[node] for node in accepted):
                stats.accepted_from[source] = stats.accepted_from.get(source, 0) + 1
        stats.tokens = len(writer.tokens)
        return writer.result(cache)


def _check_request(
    name: str, config: GenerationConfig, input_ids: Tensor, synced_gpus: bool, model_kwargs: dict[str, Any]
) -> None:
    """Refuse what is not greedy decoding of one sequence."""
    from transformers.generation.configuration_utils import GenerationMode

    mode = config.get_generation_mode()
    if mode != GenerationMode.GREEDY_SEARCH:
        raise InputError(
            f"{name} writes what greedy decoding writes; got settings for {mode.value.replace('_', ' ')}: set "
            "do_sample=False, num_beams=1 and leave other decoding methods out"
        )
    if input_ids.shape[0] != 1:
        raise InputError(f"{name} writes one sequence at a time; got {input_ids.shape[0]}: call generate for each")
    if input_ids.shape[1] == 0 and model_kwargs.get("inputs_embeds") is None:
        raise InputError("got an empty prompt; expected one token at least, such as the model's bos_token_id")
    if synced_gpus:
        raise InputError(f"{name} cannot keep several GPUs in step (synced_gpus); use one process for a sequence")
    if config.output_attentions or config.output_hidden_states:
        raise InputError(f"{name} returns no attentions and hidden states: they would hold rejected tokens")
    if unknown := sorted(key for key in set(model_kwargs) - _INPUTS if model_kwargs[key] is not None):
        raise InputError(f"{name} reads text alone; got the model inputs {', '.join(unknown)}")
    positions = model_kwargs.get("position_ids")
    if positions is not None and positions.dim() != 2:
        raise InputError(f"{name} needs positions that are one number a token; got {tuple(positions.shape)}")


def _streamer_of_caller() -> Any:
    """The streamer that `generate` was given.

    transformers 5 shows it the prompt and then hands it to its own decoding methods alone, so that a callable cannot
    see it; without this, text would silently not be streamed.
    """
    frame = sys._getframe(2)
    return frame.f_locals.get("streamer") if frame.f_code.co_name == "generate" else None


class GreedyWriter:
    """The sequence as it grows: what greedy decoding chooses, and when it ends."""

    def __init__(
        self,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: Any,
    ) -> None:
        from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

        self.tokens: list[int] = []
        self.done = False
        self._prompt = input_ids
        self._ids = input_ids
        self._processors = processors
        self._streamer = streamer
        self._dict = bool(config.return_dict_in_generate)
        self._scores: list[Tensor] | None = [] if self._dict and config.output_scores else None
        self._logits: list[Tensor] | None = [] if self._dict and config.output_logits else None
        # The two criteria that every call has are read once; whatever else there is is asked after each token.
        self._criteria = [one for one in criteria if type(one) not in (MaxLengthCriteria, EosTokenCriteria)]
        self._ends = {int(t) for one in criteria if type(one) is EosTokenCriteria for t in one.eos_token_id}
        lengths = [one.max_length for one in criteria if type(one) is MaxLengthCriteria]
        self.room = max(1, min(lengths, default=sys.maxsize) - input_ids.shape[1])
        self._plain = not (processors or self._criteria or self._dict)

    def write(self, logits: Tensor, draft: Draft) -> list[int]:
        """Accept the draft as far as it agrees with greedy decoding, and write one token more, unless it ends before.

        Args:
            logits: (n + 1, vocabulary) after the root and after each node.

        Returns:
            The accepted nodes: those whose successor was written too.
        """
        choose = self._choose_plain(logits) if self._plain else self._choose(logits)
        node = -1
        accepted: list[int] = []
        while True:
            token = choose(node)
            self.tokens.append(token)
            self.room -= 1
            if self._streamer is not None:
                self._streamer.put(self._prompt.new_tensor([token]).cpu())
            self.done = self.room <= 0 or token in self._ends or self._stopped(token)
            child = None if self.done else draft.child(node, token)
            if child is None:
                return accepted
            accepted.append(child)
            node = child

    def result(self, cache: Any) -> Any:
        """What `generate` returns."""
        import torch
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        if self._streamer is not None:
            self._streamer.end()
        sequences = torch.cat([self._prompt, self._prompt.new_tensor([self.tokens])], 1)
        if not self._dict:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences,
            scores=None if self._scores is None else tuple(self._scores),
            logits=None if self._logits is None else tuple(self._logits),
            cache=cache,
        )

    def _choose_plain(self, logits: Tensor) -> Callable[[int], int]:
        choices = logits.argmax(-1).tolist()
        return lambda node: choices[node + 1]

    def _choose(self, logits: Tensor) -> Callable[[int], int]:
        """Greedy decoding's choice after a node, with all that plain `generate` does on the way."""
        import torch

        def choose(node: int) -> int:
            raw = logits[None, node + 1].to(copy=True, dtype=torch.float32, device=self._ids.device)
            scores = self._processors(self._ids, raw)
            if self._logits is not None:
                self._logits.append(raw)
            if self._scores is not None:
                self._scores.append(scores)
            return int(scores.argmax(-1))

        return choose

    def _stopped(self, token: int) -> bool:
        import torch

        if self._plain:
            return False
        self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], 1)
        scores = None if self._scores is None else tuple(self._scores)
        # Every criterion is asked, as in plain decoding: some count how often they are.
        verdicts = [bool(one(self._ids, scores).all()) for one in self._criteria]
        return any(verdicts)
