"""Detectors that read variants of a text: DetectGPT and NPR perturb it, DNA-GPT writes its second half again.

Knows: a reader, token scores, a fill model or a generator. The published methods fill gaps with T5-3B; without such a
model the causal model's own predictions fill them, which is reported once per detector.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from broadsheet.console import say
from broadsheet.detect.base import Detector, Scores, standard_score
from broadsheet.detect.fill import SpanFill, fill_spans
from broadsheet.detect.reading import Need, Reader, TokenScores, seed_of

_WORD = re.compile(r"\S+")


def mask_spans(
    text: str, generator: random.Random, *, fraction: float = 0.3, span_words: int = 2, buffer_words: int = 1
) -> list[tuple[int, int]]:
    """Character spans to be replaced: int(fraction · words / (span + 2 · buffer)), none within a buffer of another.

    With the published values (0.3, 2, 1) about 15 % of the words are covered. Words are runs of non-space characters.

    Source: arXiv:2301.11305, Sec. 4.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    wanted = int(fraction * len(words) / (span_words + 2 * buffer_words))
    starts = list(range(len(words) - span_words + 1))
    generator.shuffle(starts)
    taken = np.zeros(len(words), dtype=bool)
    chosen: list[tuple[int, int]] = []
    for start in starts:
        if len(chosen) == wanted:
            break
        if not taken[max(0, start - buffer_words) : start + span_words + buffer_words].any():
            taken[start : start + span_words] = True
            chosen.append((words[start][0], words[start + span_words - 1][1]))
    return sorted(chosen)


@dataclass
class _Perturbing(Detector):
    """What DetectGPT and NPR share: K perturbed copies of each text, read by the same model.

    Args:
        n_perturbations: K (the paper: 100).
        fraction, span_words, buffer_words: see `mask_spans`.
        fill_model: a T5-type model (hub id or folder), or a function `(masked texts, seed) -> filled texts` over
            `<extra_id_k>` gaps. By default each token in a gap is drawn from the causal model's own prediction
            given the true text before it; this needs no second model and no generation.
    """

    n_perturbations: int = 100
    fraction: float = 0.3
    span_words: int = 2
    buffer_words: int = 1
    fill_model: str | SpanFill | None = None

    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})

    @property
    def n_samples(self) -> int:
        return 0 if self.fill_model else self.n_perturbations

    @abstractmethod
    def contrast(self, reading: TokenScores, perturbed: Sequence[TokenScores]) -> float:
        """The score from the token scores of the text and of its perturbed copies."""

    def score_readings(self, texts: Sequence[str], readings: Sequence[TokenScores], reader: Reader) -> Scores:
        if self.fill_model is None and not getattr(self, "_said", False):
            self._said = True
            say(f"{type(self).__name__}: no fill model given, gaps are filled by the causal model's own predictions")
        scores = np.full(len(texts), np.nan)
        for i, (text, reading) in enumerate(zip(texts, readings, strict=True)):
            generator = random.Random(seed_of(self.seed, text))
            copies = range(self.n_perturbations)
            spans = [
                mask_spans(
                    text, generator, fraction=self.fraction, span_words=self.span_words, buffer_words=self.buffer_words
                )
                for _ in copies
            ]
            if not spans or not spans[0]:
                continue  # too few words for a single gap
            variants: Sequence[str | list[int]]
            if self.fill_model is None:
                variants = self._resample(text, spans, reading, reader)
            else:
                variants = fill_spans(text, spans, self.fill, seed=seed_of(self.seed, text))
            scores[i] = self.contrast(reading, reader.read(variants, self.needs - {"samples"}))
        return scores

    @property
    def fill(self) -> SpanFill:
        """The fill model as a function, loaded on first use."""
        if callable(self.fill_model):
            return self.fill_model
        if getattr(self, "_fill", None) is None:
            from broadsheet.detect.fill import T5Fill

            self._fill = T5Fill(str(self.fill_model), device=self.device)
        return self._fill

    def _resample(
        self, text: str, spans: list[list[tuple[int, int]]], reading: TokenScores, reader: Reader
    ) -> list[list[int]]:
        """Token ids of each copy: those inside its gaps replaced by draws from q(· | true prefix)."""
        assert reading.sampled is not None
        encoded = reader.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = torch.tensor(encoded.input_ids)
        begin, end = torch.tensor(encoded.offset_mapping).T
        sampled = reading.sampled.cpu().long()
        variants = []
        for k, gaps in enumerate(spans):
            inside = torch.zeros(len(ids), dtype=torch.bool)
            for low, high in gaps:
                inside |= (begin < high) & (end > low) & (begin < end)
            inside[0] = False  # nothing predicts the first token
            copy = ids.clone()
            copy[inside] = sampled[inside[1:], k]
            variants.append(copy.tolist())
        return variants


@dataclass
class DetectGPT(_Perturbing):
    """How far the text's log-likelihood lies above that of slightly perturbed copies, in their standard deviations.

    z = (LL(x) − mean_i LL(x̃_i)) / std_i LL(x̃_i), population standard deviation, 1 where it is 0.

    Use when comparing with older work: K more forward passes a text. Prefer `FastDetectGPT`, the same idea in one pass.
    Inputs: texts of at least 14 words (one gap); shorter ones score NaN.
    Source: arXiv:2301.11305, Eq. 1 and Sec. 4; as compared in arXiv:2410.06072.
    """

    def contrast(self, reading: TokenScores, perturbed: Sequence[TokenScores]) -> float:
        copies = torch.stack([copy.log_likelihood.mean() for copy in perturbed])
        return standard_score(float(reading.log_likelihood.mean()), copies, unbiased=False)


@dataclass
class NPR(_Perturbing):
    """How much worse the tokens rank after perturbation: mean log-rank of perturbed copies over that of the text.

    Use when comparing with older work: K more forward passes a text, as `DetectGPT`. +inf where every token ranks
    first.
    Inputs: texts of at least 14 words (one gap); shorter ones score NaN.
    Source: arXiv:2306.05540, Eq. 2.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"samples", "rank"})

    def contrast(self, reading: TokenScores, perturbed: Sequence[TokenScores]) -> float:
        def log_rank(one: TokenScores) -> float:
            assert one.rank is not None
            return float(one.rank.log().mean())

        original = log_rank(reading)
        return float(np.mean([log_rank(copy) for copy in perturbed])) / original if original else float("inf")


@dataclass
class DNAGPT(Detector):
    """How much likelier the text is than versions whose second half the model rewrote.

    LL(x) − mean_i LL(prefix + continuation_i), white-box form: the first half of the words is kept, `n_regenerations`
    continuations are sampled from it, and each full text is trimmed to the word count of the original.

    Use when the suspected model itself can be run: generation makes this the slowest detector here by far.
    Inputs: texts of at least two words; shorter ones score NaN.

    Args:
        n_regenerations: continuations a text (as compared: 10).
        keep: share of the words that is kept (0.5).
        max_new_tokens: of one continuation (200).

    Source: arXiv:2305.17359; as compared in arXiv:2410.06072, Sec. 4.
    """

    n_regenerations: int = 10
    keep: float = 0.5
    max_new_tokens: int = 200

    def score_readings(self, texts: Sequence[str], readings: Sequence[TokenScores], reader: Reader) -> Scores:
        from broadsheet.teacher import Teacher
        from broadsheet.teacher.local import Local

        cuts = [_keep_words(text, int(self.keep * len(_WORD.findall(text)))) for text in texts]
        usable = [i for i, cut in enumerate(cuts) if cut]
        scores = np.full(len(texts), np.nan)
        teacher = Teacher(Local(reader.model, reader.tokenizer, truncate="left"))
        continuations = teacher.complete(
            [cuts[i] for i in usable], n=self.n_regenerations, max_tokens=self.max_new_tokens, seed=self.seed
        )
        for i, made in zip(usable, continuations, strict=True):
            words = len(_WORD.findall(texts[i]))
            rewritten = reader.read([_keep_words(cuts[i] + one.text, words) for one in made])
            scores[i] = self.contrast(readings[i], rewritten)
        return scores

    def contrast(self, reading: TokenScores, rewritten: Sequence[TokenScores]) -> float:
        """The score from the token scores of the text and of its rewritten versions."""
        return float(reading.log_likelihood.mean()) - float(np.mean([one.log_likelihood.mean() for one in rewritten]))


def _keep_words(text: str, n: int) -> str:
    """The text up to the end of its n-th word."""
    ends = [match.end() for match in _WORD.finditer(text)]
    return text[: ends[n - 1]] if 0 < n <= len(ends) else ("" if n <= 0 else text)
