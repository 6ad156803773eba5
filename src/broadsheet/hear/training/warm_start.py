"""A warm start of the connector that is ours, not the paper's: audio tokens begin near the words they stand for.

Knows: audio tokens, the language model's embedding table. Does not know: prompts, the rest of the language model, which
is not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from broadsheet.console import InputError
from broadsheet.hear.data.rows import AudioRow
from broadsheet.seeds import seeded
from broadsheet.training.fit import TrainOutput, fit
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

SHARPNESS = 20.0  # logits are cosines times this


class TokenCTC(nn.Module):
    """Connectionist temporal classification of audio tokens as tokens of a language model.

    Each audio token is compared, by cosine, with the frozen embeddings of the vocabulary's tokens and with one trained
    vector for "nothing new". CTC sums over all ways in which the answer's tokens can come one after another among them.

    Args:
        embeddings: (vocabulary, width), frozen.

    Shapes:
        tokens (clips, tokens, width), counts (clips,), targets: per clip the indices of its answer in the vocabulary.
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", functional.normalize(embeddings.detach().float(), dim=-1))
        self.blank = nn.Parameter(functional.normalize(torch.randn(embeddings.shape[1]), dim=0))
        self.norm = float(embeddings.detach().float().norm(dim=-1).mean())

    def logits(self, tokens: Tensor) -> Tensor:
        """(…, width) → (…, 1 + vocabulary), the blank first."""
        table = torch.cat([functional.normalize(self.blank, dim=0)[None], self.table])  # type: ignore[list-item]
        return SHARPNESS * functional.normalize(tokens.float(), dim=-1) @ table.T

    def forward(self, tokens: Tensor, counts: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """The loss, per token of the answers; and a tenth of how far norms are from those of embeddings."""
        likelihoods = functional.log_softmax(self.logits(tokens), dim=-1).transpose(0, 1)
        lengths = torch.tensor([len(each) for each in targets])
        wanted = torch.cat(list(targets)).to(likelihoods.device) + 1
        loss = functional.ctc_loss(likelihoods, wanted, counts, lengths, zero_infinity=True)
        drift = (tokens.float().norm(dim=-1) / self.norm - 1).square().mean()
        return loss + 0.1 * drift

    def read(self, tokens: Tensor) -> list[int]:
        """The best path through one clip's tokens, (tokens, width), as indices in the vocabulary."""
        path = self.logits(tokens).argmax(-1).unique_consecutive()
        return [int(each) - 1 for each in path if each]


class _WarmStart(Objective):
    """Rows are indices of clips; the model is what is trained: norms, connector and the reader of their tokens."""

    def __init__(self, model: SalmonnForConditionalGeneration, reader: TokenCTC, clips: Sequence[Any], targets: Any):
        self.model, self.reader, self.clips, self.targets = model, reader, clips, targets

    def collate(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        from broadsheet.hear.audio_lm import stack

        chosen = [index for _, index in items]
        heard = self.model.audio_features.features_all([self.clips[index] for index in chosen])
        features, lengths = stack([pieces[0] for pieces in heard])
        return {"features": features, "lengths": lengths, "targets": [self.targets[index] for index in chosen]}

    def loss(self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        tokens, counts = self.model.connected(batch["features"], batch["lengths"])
        with torch.autocast(tokens.device.type, enabled=False):  # sums over alignments, in float32
            found: Tensor = self.reader(tokens, counts, [target.cpu() for target in batch["targets"]])
        return found


def warm_start(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    *,
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    autocast: str = "auto",
    seed: int = 0,
) -> TrainOutput:
    """Train norms and connector so that audio tokens lie near the embeddings of the answers' words, in order.

    The language model is not run, so a step costs a fraction of one of `fit`. Give rows whose answers are heard word
    by word: transcripts, names of sounds.

    Args:
        rows: with answers.
        steps, batch_size, learning_rate, autocast, seed: of `training.fit`, with a linear decay.

    Raises:
        InputError: no rows, or steps below 1.
        KeyboardInterrupt: Ctrl-C; nothing of a warm start is kept.
    """
    if not rows or steps < 1:
        raise InputError(f"got {len(rows)} rows and {steps} steps for the warm start; expected 1 or more of each")
    answers = [model.processor.example("-", [[1]], row.answer)[1][:-1] for row in rows]
    vocabulary = sorted({token for answer in answers for token in answer})
    place = {token: index for index, token in enumerate(vocabulary)}
    targets = [torch.tensor([place[token] for token in answer]) for answer in answers]
    with seeded(seed):
        reader = TokenCTC(model.get_input_embeddings().weight[vocabulary]).to(model.device)
    warmed = fit(
        nn.ModuleList([model.synchronised, model.connector, reader]),
        range(len(rows)),
        _WarmStart(model, reader, [row.audio[0] for row in rows], targets),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        method="given",
        warmup=min(0.5, 20 / steps),
        weight_decay=0.05,
        autocast=autocast,
        seed=seed,
    )
    if not warmed.finished:
        raise KeyboardInterrupt
    return warmed
