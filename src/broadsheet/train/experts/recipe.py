"""`broadsheet apply moe_survey`: a model is made a mixture of experts, and trained further on texts.

Knows: documents, blocks, models, what is told before and after. Does not know: how experts are made or balanced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Source
from broadsheet.console import say
from broadsheet.options import option
from broadsheet.train.recipes import FurtherTraining

if TYPE_CHECKING:
    from broadsheet.models import Loaded
    from broadsheet.train.base import LossMethod
    from broadsheet.training.trainer import TrainOutput


@dataclass
class MoESurveyRecipe(FurtherTraining):
    """Make a mixture of experts of the model, and train all its weights on texts; experts are kept in use."""

    paper: ClassVar[str] = "moe_survey"

    tune: Literal["full"] = option("full", "All weights: with adapters alone experts stay alike.")
    learning_rate: float | None = option(None, "By default 1e-4: with a lower one experts stay alike.", least=0)
    experts: int = option(4, "Of each layer that has any.", least=2)
    top_k: int = option(2, "Experts of a token.", least=1)
    layers: int | None = option(None, "How many of the last layers get experts; all where not given.", least=1)
    router: str = option("mixtral", "How tokens choose.", choices=("mixtral", "switch", "sigmoid"))

    @cached_property
    def base(self) -> Loaded:
        from broadsheet.train.moe_survey import Upcycling

        given = {"experts": self.experts, "top_k": self.top_k, "layers": self.layers, "router": self.router}
        upcycling = self.configured(Upcycling, **given, seed=self.seed)
        dense = self.loaded()
        made = replace(dense, model=upcycling.model(dense.model))
        self._told = self._step_0(dense, made, upcycling.exact)
        return made

    def _step_0(self, dense: Loaded, made: Loaded, exact: bool) -> str:
        """What came out, and how near it is to the model that it came from."""
        import torch

        from broadsheet.train.experts.routers import active_weights

        active, total = active_weights(made.model)
        ids = torch.tensor([made.tokenizer("The experts are one and the same.")["input_ids"]], device=made.model.device)
        with torch.no_grad():
            apart = float((made.model(ids).logits - dense.model(ids).logits).abs().max())
        return (
            f"a {type(made.model).__name__} of {total:,} weights, {active:,} of them for a token; before training its "
            f"logits differ from the model's by {apart:.1e} at most"
            + ("" if exact else ", as noise or gates make them")
        )

    def loss_method(self, steps: int) -> LossMethod:
        from broadsheet.train.moe_survey import ExpertBalance

        self._balance = self.configured(ExpertBalance)
        return self._balance

    def told(self, rows: Any, steps: int) -> str:
        return self._told

    def rates(self, steps: int) -> dict[str, Any]:
        return {"learning_rate": 1e-4 if self.learning_rate is None else self.learning_rate}

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.train.moe_survey import expert_distances

        done = super().train(source, out, force)
        if done.finished and self._balance.load is not None:
            apart = expert_distances(self.base.model)
            pairs = apart.shape[1] * (apart.shape[1] - 1)
            say(
                f"the last step's load has {100 * self._balance.entropy:.1f} % of the entropy of an even one; experts "
                f"are {float(apart.sum((1, 2)).mean()) / pairs:.2g} of their norm apart"
            )
        return done
