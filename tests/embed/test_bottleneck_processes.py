"""GEM and query likelihood over two processes: gathered, losses and gradients are those of one with all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from two_processes import both, leave

from broadsheet.embed.base import load
from broadsheet.embed.gem import GEM, gem_embedder
from broadsheet.embed.llm_ql import LLMQL, QueryLikelihood

TEXTS = [
    "Rain",
    "A list of numbers.",
    "The cat sat on the mat.",
    "Nothing else, or so",
    "It was there, and then it was not there any more, and nobody knew.",
    "On and on the sea went, and the sand on the shore went with it.",
    "What is in a name is a question that a poet asked, and nobody answered.",
    "A stone",
]
PAIRS = [{"query": text[:8], "positive": text} for text in TEXTS]
CASES: dict[str, dict[str, Any]] = {
    "gem": {"alpha_max": 0.5},
    "gem, contrastive alone": {"alpha_max": 1.0},
    "llm_ql": {},
}


class Step(nn.Module):
    """A few of the examples to a loss; processes have as many examples, but not as many targets or compressed rows."""

    def __init__(self, case: str, folder: Path, gather: bool) -> None:
        super().__init__()
        options = {**CASES[case], "gather_across_devices": gather, "seed": 2}
        self.embedder = load(folder / case.split(",")[0], dtype="float32")
        if case.startswith("gem"):
            self.objective: Any = GEM(self.embedder, ntp_rows=0, ramp_rows=0, raw_share=0.4, **options)
            self.items: list[Any] = list(enumerate(TEXTS))
        else:
            self.objective, self.items = QueryLikelihood(self.embedder, **options), list(enumerate(PAIRS))

    def forward(self, part: slice) -> torch.Tensor:
        loss: torch.Tensor = self.objective.loss(self.embedder, self.objective.collate(self.items[part]))["loss"]
        return loss

    def gradients(self) -> dict[str, torch.Tensor]:
        named = {name: weight.grad for name, weight in self.named_parameters()}
        return {name: torch.zeros(1) if grad is None else grad for name, grad in named.items()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for case in CASES:
        step = Step(case, folder, gather=True)
        parallel = nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
        loss = parallel(slice(4 * rank, 4 * rank + 4))
        loss.backward()
        found[case] = (loss.detach(), step.gradients())
    torch.save(found, folder / f"process-{rank}.pt")
    leave()


def test_two_processes_compute_what_one_does(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    gem_embedder((tiny_model(), tiny_tokenizer())).save(str(tmp_path / "gem"))
    LLMQL().embedder((tiny_model(), tiny_tokenizer())).save(str(tmp_path / "llm_ql"))
    both(work, tmp_path)
    results = [torch.load(tmp_path / f"process-{rank}.pt") for rank in (0, 1)]
    for case in CASES:
        step = Step(case, tmp_path, gather=False)
        parts = [step.objective.collate(step.items[part]) for part in (slice(0, 4), slice(4, 8))]
        targets = [int((part["labels"] != -100).sum()) for part in parts]
        assert targets[0] != targets[1]
        loss = step(slice(0, 8))
        loss.backward()
        mean = sum(result[case][0].item() for result in results) / 2
        assert mean == pytest.approx(loss.item(), abs=1e-5)
        for result in results:
            for name, whole in step.gradients().items():
                torch.testing.assert_close(result[case][1][name], whole, atol=2e-5, rtol=1e-4)
        alone = [Step(case, tmp_path, gather=False)(part).item() for part in (slice(0, 4), slice(4, 8))]
        assert abs(sum(alone) / 2 - loss.item()) > 1e-3  # the mean of the processes' own means is another
