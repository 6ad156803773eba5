"""Models: a causal language model and its tokenizer from "default", a folder, a `.gguf` file or a hub id.

    from broadsheet import models
    model, tokenizer = models.load("default")

Importing this package imports neither torch nor transformers.
"""

from broadsheet.models.batching import halve_on_oom, token_budget_batches
from broadsheet.models.embedded import gguf_file as default_gguf
from broadsheet.models.hub import Cached
from broadsheet.models.loading import Loaded, cached, config, fingerprint, load, title

__all__ = [
    "Cached",
    "Loaded",
    "cached",
    "config",
    "default_gguf",
    "fingerprint",
    "halve_on_oom",
    "load",
    "title",
    "token_budget_batches",
]
