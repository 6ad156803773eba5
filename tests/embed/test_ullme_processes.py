"""GRL over two processes: gathered, its loss and gradients are those of one process with all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from two_processes import both, leave

from broadsheet.embed.base import embedder
from broadsheet.embed.ullme import GRL
from broadsheet.models import adapters

ITEMS = [
    {"query": "sort", "positive": "list.sort orders items.", "negatives": ["A tree grows.", "Rain."]},
    {"query": "wind", "positive": "Moving air.", "negatives": ["A stone."]},
    {"query": "first", "positive": "The first letter.", "negatives": ["The second letter."]},
    {"query": "again", "positive": "Moving air.", "negatives": ["Still air."]},  # the second query's answer too
]


class Step(nn.Module):
    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__()
        self.embedder = embedder(str(folder), attention="bidirectional", device="cpu", dtype="float32")
        model = self.embedder.encoder.model
        adapters.add(model, 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(weight, std=0.2)
        self.objective = GRL(self.embedder, **settings)

    def forward(self, items: Any) -> torch.Tensor:
        return self.objective(self.embedder, self.objective.collate(items))["loss"]

    def gradients(self) -> list[torch.Tensor]:
        return [weight.grad for weight in self.parameters() if weight.requires_grad]


def work(rank: int, folder: Path, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    step = Step(folder, gather_across_devices=True, **settings)
    parallel = nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
    loss = parallel(ITEMS[2 * rank : 2 * rank + 2])
    loss.backward()
    torch.save([loss.detach(), step.gradients()], folder / f"process-{rank}.pt")
    leave()


@pytest.mark.parametrize(
    ("contrastive", "chunk_size"), [("ntxent-l2", 1), ("infonce", None)], ids=["NT-Xent in chunks", "InfoNCE"]
)
def test_two_processes_compute_what_one_does(tiny_folder, contrastive, chunk_size):
    settings = {"contrastive": contrastive, "chunk_size": chunk_size, "detach_generator": False}
    both(work, tiny_folder, settings)
    results = [torch.load(tiny_folder / f"process-{rank}.pt") for rank in (0, 1)]
    step = Step(tiny_folder, **settings)
    loss = step(ITEMS)
    loss.backward()
    assert sum(float(result[0]) for result in results) / 2 == pytest.approx(float(loss.detach()), abs=1e-5)
    for result in results:
        for ours, whole in zip(result[1], step.gradients(), strict=True):
            torch.testing.assert_close(ours, whole, atol=2e-5, rtol=1e-4)
    alone = Step(tiny_folder, **settings)(ITEMS[:2])  # what one process would compute of its own rows
    assert (alone - loss).abs() > 1e-3
