"""Train: a language model from text, by parts for the `Trainer` that one has.

Every method is a `LossMethod`, or a sampler, schedule or callback: it goes into HF's `Trainer` or TRL's `SFTTrainer` as
it stands, and into `broadsheet.training.fit`. The papers' own methods are found in their files; the parts are listed
here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("LossMethod", "MethodObjective"),
        "megatron_530b": ("Cluster",),
        "plans.ramps": ("BatchRamp", "TokenRate"),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get
