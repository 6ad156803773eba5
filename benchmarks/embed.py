"""How fast encoding is beside sentence-transformers, and beside the machine: `python benchmarks/embed.py`.

One run, one model, the same documentation in all arms, interleaved (see `broadsheet.trial.engine`):

- `SentenceTransformer.encode` as it comes (batches of 32 texts, sorted by characters) against `Embedder.encode`, in
  float32 and bfloat16, on docstrings of mixed length cut to 512 tokens; and how far their vectors lie apart;
- how near both come to what the machine can multiply: the operations that the texts' own tokens need, padding not
  counted, against the rate of large matrix products, measured in turn with them: a shared machine's rate changes;
- what Token Prepending costs over the same template without it, on sentences;
- what a sweep over layers costs, in forward passes over its texts;
- a corpus streamed to disk: memory at a quarter of it and at its end.

Both arms read the same tokens: sentence-transformers is told not to put an instruct model's chat template around each
text, which it does by itself. `--compile` adds an arm whose layers `torch.compile` has rewritten, and what that took.
`--record` keeps the result as evidence/embed.benchmark.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layer import least_seconds
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from broadsheet import models
from broadsheet.clock import measure
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.embed import TokenPrepending, embedder
from broadsheet.embed.base import Embedder
from broadsheet.embed.modules.template import PROMPT_EOL
from broadsheet.embed.sweep import default_exits, default_layers, sweep
from broadsheet.models import embedded
from broadsheet.page import evidence
from broadsheet.search.encoding.streaming import encode_corpus
from broadsheet.trial.engine import Arm, run_arms
from broadsheet.trial.results import ArmResult
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison

PLAIN, OURS, COMPILED = "sentence-transformers", "broadsheet", "broadsheet, layers compiled"
LIMIT, LIMIT_SECONDS = "matrix products", 2.0
LENGTH = 512


def plain(model: str, dtype: torch.dtype) -> SentenceTransformer:
    """sentence-transformers' own modules around the same weights, reading the same tokens."""
    where = embedded.folder() if model == "default" else model
    first = Transformer(
        str(where),
        max_seq_length=LENGTH,
        model_kwargs={"dtype": dtype, "attn_implementation": "sdpa"},
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    if first.tokenizer.pad_token is None:
        first.tokenizer.pad_token = first.tokenizer.eos_token
    return SentenceTransformer(modules=[first, Pooling(first.get_embedding_dimension(), "mean")])


def race(
    model: str, dtype: torch.dtype, texts: Sequence[str], block: int, compiled: bool
) -> tuple[list[ArmResult], list[Comparison], float, Products]:
    """The same texts by both, and the largest difference of their vectors, as a share of the largest entry."""
    products = Products(dtype, models.load(model, dtype=dtype).model.device)
    made: dict[str, dict[str, np.ndarray]] = {PLAIN: {}, OURS: {}, COMPILED: {}}

    def arm(name: str, role: Any, loaded: SentenceTransformer, prepare: Callable[[], None] | None = None) -> Arm:
        def run(given: Sequence[str]) -> dict[str, Any]:
            made[name][given[-1]] = loaded.encode(list(given))
            return {}

        return Arm(name, run, role, prepare=prepare)

    ours = embedder(models.load(model, dtype=dtype), max_seq_length=LENGTH)
    arms = [arm(PLAIN, "baseline", plain(model, dtype)), arm(OURS, "method", ours)]
    if compiled:
        rewritten = embedder(models.load(model, dtype=dtype), max_seq_length=LENGTH)

        def rewrite() -> None:
            for part in rewritten.encoder.layers:
                part.compile(dynamic=True)
            rewritten.encode(list(texts[:64]))

        arms.append(arm(COMPILED, "sibling", rewritten, rewrite))
    arms.append(Arm(LIMIT, products.run, "sibling"))
    results, comparisons = run_arms(arms, texts, [], block_size=block, item="text")
    results = [result for result in results if result.name != LIMIT]
    comparisons = [comparison for comparison in comparisons if comparison.arm != LIMIT]
    apart = max(np.abs(made[OURS][block] - vectors).max() for block, vectors in made[PLAIN].items())
    largest = max(np.abs(vectors).max() for vectors in made[PLAIN].values())
    return results, comparisons, float(apart / largest), products


def operations(encoder: Any, texts: Sequence[str]) -> dict[str, float]:
    """Multiplications and additions that the tokens of the texts need: of linear layers, and of causal attention."""
    lengths = [len(row) for row in encoder.rows(texts)]
    weights = sum(part.weight.numel() for part in encoder.backbone.modules() if isinstance(part, torch.nn.Linear))
    config = encoder.model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return {
        "tokens": sum(lengths),
        "linear": 2.0 * weights * sum(lengths),
        "attention": 4.0 * width * config.num_hidden_layers * pairs,
    }


class Products:
    """How fast the machine multiplies large square matrices, over the whole of a race.

    Attributes:
        rate, best: operations a second, of all products together and of the fastest.
    """

    size = 2048

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.square = torch.randn(self.size, self.size, device=device).to(dtype)
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._seconds: list[float] = []

    def run(self, _: Any = None) -> dict[str, Any]:
        """Multiply for two seconds."""
        until = time.perf_counter() + LIMIT_SECONDS
        while (started := time.perf_counter()) < until:
            self.square @ self.square
            self._wait()
            self._seconds.append(time.perf_counter() - started)
        return {}

    @property
    def rate(self) -> float:
        return 2 * self.size**3 * len(self._seconds) / sum(self._seconds)

    @property
    def best(self) -> float:
        return 2 * self.size**3 / min(self._seconds)


def prepended(loaded: Any, texts: Sequence[str], repeats: int) -> dict[str, float]:
    """Seconds for sentences in PromptEOL's template, with and without Token Prepending."""
    arms: dict[str, Embedder] = {
        "template": embedder(loaded, "last-token", template=PROMPT_EOL),
        "token prepending": embedder(loaded, "last-token", template=PROMPT_EOL, encoder=TokenPrepending),
    }
    lengths = {name: sum(map(len, arm.encoder.rows(texts))) for name, arm in arms.items()}
    seconds = least_seconds({name: lambda arm=arm: arm.encode(texts) for name, arm in arms.items()}, repeats)  # type: ignore[misc]
    return {
        "texts": len(texts),
        "tokens": lengths["template"],
        "tokens_prepended": lengths["token prepending"],
        "seconds": seconds["template"],
        "seconds_prepended": seconds["token prepending"],
    }


def swept(loaded: Any, texts: Sequence[str], repeats: int) -> dict[str, float]:
    """A sweep for Token Prepending: how many settings it tries, and its time in forward passes over the texts."""
    half = len(texts) // 2
    first, second, gold = texts[:half], texts[half : 2 * half], [float(i) for i in range(half)]
    encoder = embedder(loaded, "last-token", encoder=TokenPrepending).encoder
    layers = default_layers(len(encoder.layers))
    deepest = embedder(loaded, "last-token", encoder=TokenPrepending, layer=max(layers))
    found = sweep(encoder, first, second, gold)
    seconds = least_seconds(
        {"sweep": lambda: sweep(encoder, first, second, gold), "pass": lambda: deepest.encode(texts[: 2 * half])},
        repeats,
    )
    return {
        "settings": len(found.cells),
        "exits": len(default_exits(len(encoder.layers))),
        "layers": len(layers),
        "passes_said": found.passes,
        "seconds": seconds["sweep"],
        "seconds_of_a_pass": seconds["pass"],
    }


class First(corpora.Corpus):
    """The first so many documents of a corpus."""

    def __init__(self, whole: corpora.Corpus, count: int) -> None:
        super().__init__(whole.spec, "stop", "text", "id")
        self.whole, self.count = whole, count

    def _rows(self) -> Any:
        return islice(self.whole._rows(), self.count)

    def identity(self) -> dict[str, Any]:
        return self.whole.identity() | {"first": self.count}

    def fingerprint(self) -> str:
        return self.whole.fingerprint()

    def describe(self) -> str:
        return f"the first {self.count} of {self.whole.describe()}"


def streamed(corpus: corpora.Corpus, count: int) -> dict[str, float]:
    """Peak memory of a tiny model that encodes a quarter of so many documents to disk, and all of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer = models.load("default")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    tiny = embedder((LlamaForCausalLM(config).eval(), tokenizer), max_seq_length=64)
    found: dict[str, float] = {"documents": count}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("warm_up", 2048), ("quarter", count // 4), ("whole", count)):
            out = Path(folder, name)
            done, seconds, peak = measure(lambda given: encode_corpus(tiny, *given), (First(corpus, part), out))
            found |= {f"peak_bytes_{name}": peak, f"seconds_{name}": seconds, f"documents_{name}": done.documents}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2048, help="in the race")
    parser.add_argument("--block", type=int, default=512, help="texts that are encoded at once")
    parser.add_argument("--sentences", type=int, default=128, help="for Token Prepending and the sweep")
    parser.add_argument("--documents", type=int, default=100_000, help="streamed to disk by a tiny model; 0 for none")
    parser.add_argument("--repeats", type=int, default=5, help="of what is timed alone; the least counts")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="add an arm with compiled layers")
    parser.add_argument("--quick", action="store_true", help="a quarter of everything")
    parser.add_argument("--model", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        for name in ("texts", "block", "sentences", "documents"):
            setattr(arguments, name, getattr(arguments, name) // 4)

    corpus = corpora.load("pydocs")
    texts = [document.text for document in corpus.take(arguments.texts, arguments.seed)]
    races = {}
    for name in arguments.dtypes:
        dtype = getattr(torch, name)
        try:
            loaded = models.load(arguments.model, dtype=dtype)
        except InputError as error:
            parser.error(str(error))
        needed = operations(embedder(loaded, max_seq_length=LENGTH).encoder, texts)
        del loaded
        results, comparisons, apart, products = race(arguments.model, dtype, texts, arguments.block, arguments.compile)
        races[name] = tell_race(name, needed, products, results, comparisons, apart)

    dtype = getattr(torch, arguments.dtypes[-1])
    loaded = models.load(arguments.model, dtype=dtype)
    summaries = [document.metadata["summary"] for document in corpus.take(4 * arguments.sentences, arguments.seed + 1)]
    sentences = [text for text in summaries if 5 <= len(text.split()) <= 30][: arguments.sentences]
    extra = prepended(loaded, sentences, arguments.repeats)
    ratio = extra["seconds_prepended"] / extra["seconds"]
    print(
        f"Token Prepending, {extra['texts']} sentences of {extra['tokens'] / extra['texts']:.0f} tokens with their "
        f"template: {ratio - 1:+.1%} time ({extra['tokens_prepended'] / extra['tokens'] - 1:+.1%} tokens)"
    )
    tried = swept(loaded, sentences, arguments.repeats)
    print(
        f"sweep over {tried['exits']} exits × {tried['layers']} layers: "
        f"{tried['seconds'] / tried['seconds_of_a_pass']:.2f} passes over the texts for {tried['settings']} settings"
    )
    stream = streamed(corpus, arguments.documents) if arguments.documents else {}
    if stream:
        print(
            f"streaming to disk: peak memory {stream['peak_bytes_quarter'] / 1e6:,.0f} MB for "
            f"{stream['documents_quarter']:,} documents, {stream['peak_bytes_whole'] / 1e6:,.0f} MB for "
            f"{stream['documents_whole']:,}"
        )
    if arguments.record:
        result = {
            "races": races,
            "token_prepending": extra,
            "sweep": tried,
            "streaming": stream,
            "block": arguments.block,
            "threads": torch.get_num_threads(),
            "command": " ".join(["python benchmarks/embed.py", *sys.argv[1:]]),
            "provenance": evidence.provenance(
                model={"name": arguments.model, "fingerprint": models.fingerprint(loaded.model)},
                data="pydocs",
                seed=arguments.seed,
                dtype=arguments.dtypes,
            ),
        }
        print(evidence.record("embed.benchmark", result, evidence.folder()))


def tell_race(
    dtype: str,
    needed: dict[str, float],
    products: Products,
    results: Sequence[ArmResult],
    comparisons: Sequence[Comparison],
    apart: float,
) -> dict[str, Any]:
    """Print one race, and return it as it is recorded."""
    peak = products.rate
    print(
        f"{dtype}: {needed['tokens']:,.0f} tokens; vectors at most {apart:.1e} of the largest entry apart; "
        f"matrix products at {peak / 1e9:.0f} GFLOP/s, at best {products.best / 1e9:.0f}"
    )
    arms = {}
    for result in results:
        if not result.items_per_second:
            print(f"  {result.name}: {result.error}")
            continue
        seconds = result.n_items / result.items_per_second.estimate
        linear, whole = (
            operations / seconds / peak for operations in (needed["linear"], needed["linear"] + needed["attention"])
        )
        print(
            f"  {result.name:28} {result.items_per_second.estimate:6.2f} texts/s {needed['tokens'] / seconds:7,.0f} "
            f"tokens/s   {linear:.0%} of the matrix limit, {whole:.0%} with attention   "
            f"{result.peak_bytes / 1e9:.1f} GB"
        )
        arms[result.name] = {
            "texts_per_second": result.items_per_second.estimate,
            "tokens_per_second": needed["tokens"] / seconds,
            "share_linear": linear,
            "share_with_attention": whole,
            "peak_bytes": result.peak_bytes,
            "prepare_seconds": result.prepare_seconds,
        }
    said = [sentence(one) for one in comparisons]
    print("".join(f"  {line}\n" for line in said), end="")
    rates = {"peak": peak, "peak_best": products.best}
    return {"arms": arms, "comparisons": said, "needed": needed, "apart": apart, **rates}


if __name__ == "__main__":
    main()
