"""Attend: longer contexts and cheaper attention, installed around an unchanged model by `with method(model):`.

`LMInfinite`, `InfLLM` and `LongHeads` replace what a layer remembers, `FlexPrefill` how a prompt's attention is
computed; `TransNormerForCausalLM` is a model of its own, trained from scratch.
"""

from broadsheet.attend.base import Attention, PostRopeAttention, PreRopeAttention
from broadsheet.attend.flexprefill import FlexPrefill
from broadsheet.attend.infllm import InfLLM
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.longheads import LongHeads, coverage
from broadsheet.attend.memory import Bytes, Layer, MemoryLayer, State, cache_bytes
from broadsheet.attend.transnormer import TransNormerForCausalLM
from broadsheet.attend.transnormer_config import TransNormerConfig

__all__ = [
    "Attention",
    "Bytes",
    "FlexPrefill",
    "InfLLM",
    "LMInfinite",
    "Layer",
    "LongHeads",
    "MemoryLayer",
    "PostRopeAttention",
    "PreRopeAttention",
    "State",
    "TransNormerConfig",
    "TransNormerForCausalLM",
    "cache_bytes",
    "coverage",
]
