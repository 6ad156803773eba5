"""Attend: longer contexts and cheaper attention, installed around an unchanged model by `with method(model):`.

`LMInfinite`, `InfLLM` and `LongHeads` replace what a layer remembers, `FlexPrefill` how a prompt's attention is
computed; `TransNormerForCausalLM` is a model of its own, trained from scratch. The papers' own methods
(`broadsheet papers --stage attend`) are found in their files; the parts are listed here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("Attention", "PostRopeAttention", "PreRopeAttention"),
        "longheads": ("coverage",),
        "memory": ("Bytes", "Layer", "MemoryLayer", "State", "cache_bytes"),
        "transnormer_config": ("TransNormerConfig",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get
