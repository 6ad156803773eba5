"""The tables of speed, and of rates, that docs/generate.py fills in, from what the benchmarks recorded.

Knows: the records under evidence/. Does not know: pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broadsheet.page import evidence


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    header = list(header)
    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def train_speed() -> str:
    """What `benchmarks/train.py` recorded: the laboratory beside a plain Trainer, and what a method adds to a step."""
    found = evidence.read("train.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/train.py --record` records it."
    lab = found["laboratory"]
    ways = [
        (way, f"{rate[0]:,.0f} [{rate[1]:,.0f}–{rate[2]:,.0f}]", _times(lab["times"].get(way)))
        for way, rate in lab["tokens/s"].items()
    ]
    added = [(row["method"], _times(row["times"])) for row in found["methods"]]
    cut = [(row["what"], _times(row["times"])) for row in found["pruned"]]
    several = [
        (f"{row['processes']}", _rate(row["tokens/s"]), _times(row["times"])) for row in found.get("processes", [])
    ]
    by = found.get("attention", {"alone": [], "lora step": []})
    steps = {(row["rows"], row["tokens"]): row["times"] for row in by["lora step"]}
    short = [
        (f"{rows} × {tokens:,}", _times(row["times"]), _times(steps.get((rows, tokens))))
        for row in by["alone"]
        for rows, tokens in [(row["rows"], row["tokens"])]
    ]
    attended = [
        "Attention by products, in bfloat16 and with its backward pass, beside torch's kernel; and a LoRA step of the "
        "default model with it:",
        table(("rows × tokens", "attention so many times as fast", "a step"), short),
    ]
    return "\n\n".join(
        [
            _benchmark(found, "train"),
            table(("training", "tokens of texts a second", "`fit` is so many times as fast"), ways),
            f"That is {lab['of_limit']:.0%} of what products of square matrices reach here, by the operations that the "
            "model needs.".replace("%", " %"),
            table(("method", "a step's time over a plain step's"), added),
            "The default model without a quarter of its MLP channels, beside the whole one:",
            table(("what", "so many times as fast"), cut),
            "Processes of one thread, each with rows of its own:",
            table(("processes", "tokens of texts a second, together", "over one process"), several),
            *(attended if short else []),
        ]
    )


def _times(found: Sequence[float] | None) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}–{found[2]:.2f}]" if found else "–"


def curate_speed() -> str:
    """What `benchmarks/curate.py` recorded: signatures and filters beside others', steps, profiles, memory."""
    found = evidence.read("curate.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/curate.py --record` records it."
    signed = [
        (row["way"], _rate(row["documents/s"]), _times(row["times"]), _percent(row["recall"]))
        for row in found["signatures"]
    ]
    filtered = [
        (row["filter"].removesuffix("Filter"), row["way"], _rate(row["documents/s"]), _times(row["times"]))
        for row in found["filters"]
    ]
    single = [(row["step"], _rate(row["documents/s"])) for row in found["steps"]]
    described = ", ".join(f"{seconds:,.0f} s ({name})" for name, seconds in found["profile"].items())
    said = [
        f"Two processes take a pipeline through in 1 / {_times(found['processes'])} of the time of one.",
        f"`broadsheet profile` takes {described} of a processor for 100 MB of rows.",
        *(
            f"{row['documents']:,} documents of a stream: {row['peak_mb']:,.0f} MB of memory at most."
            for row in found["stream"]
        ),
    ]
    return "\n\n".join(
        [
            _benchmark(found, "curate"),
            "MinHash signatures, documents a second of one processor:",
            table(("by", "documents/s", "broadsheet is so many times as fast", "near copies found"), signed),
            "Gopher's filters, which decide alike where the words are the same:",
            table(("filter", "by", "documents/s", "broadsheet is so many times as fast"), filtered),
            table(("step", "documents/s"), single),
            "\n".join(f"- {each}" for each in said),
        ]
    )


def _rate(found: Sequence[float]) -> str:
    return f"{found[0]:,.0f} [{found[1]:,.0f}–{found[2]:,.0f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def attend_speed() -> str:
    """What `benchmarks/attend.py` recorded: each method's attention beside full attention's and the floor."""
    found = evidence.read("attend.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/attend.py --record` records it."
    kinds = [("prompt", "a prompt of {:,} tokens"), ("token", "one more token after {:,}")]
    columns = {
        about.format(int(length)): arms
        for kind, about in kinds
        for length, arms in found[kind].items()
        if isinstance(arms, dict)
    }
    names = dict.fromkeys(name for arms in columns.values() for name in arms)
    rows = [[name, *(_speed(arms.get(name)) for arms in columns.values())] for name in names]
    sparse, steps = found["flexprefill"], found["whole_token_seconds"]
    said = [
        f"FlexPrefill, on what five layers make of {int(length):,} tokens of documentation: {row['speedup']:.1f} times "
        f"as fast as sdpa, {row['selection_share']:.0%} of its time for the selection, {row['computed']:.0%} of the "
        f"blocks computed, at {row['of_floor']:.0%} of the speed of sdpa on that many."
        for length, row in sparse["attention"].items()
    ]
    for length, changes in sparse["loss"].items():
        low, high = (f"{100 * best(each['loss_change'] for each in changes):+.2f}" for best in (min, max))
        sparse_seconds, full_seconds = (
            sum(each[name] for each in changes) / len(changes) for name in ("prefill_seconds", "prefill_seconds_full")
        )
        said.append(
            f"With it, the loss over all of a text of {int(length):,} tokens changes by "
            f"{low.replace('-', '−')} to {high.replace('-', '−')} % on {len(changes)} texts, and the whole prefill "
            f"takes {sparse_seconds:.1f} s instead of {full_seconds:.1f} s."
        )
    said += [
        f"The whole default model reads {int(length):,} tokens in "
        + " s, with ".join(f"{name} in {seconds:.1f}" for name, seconds in arms.items())
        + " s."
        for length, arms in found["whole_prompt_seconds"].items()
    ]
    lengths = [name.split()[1] for name in steps if name.startswith("full")]
    said.append(
        "One more token of the whole default model, in ms, with LM-Infinite and as it is: "
        + "; ".join(
            f"after {int(n):,} tokens {1000 * steps[f'lm_infinite {n}']:.0f} and {1000 * steps[f'full {n}']:.0f}"
            for n in lengths
        )
        + "."
    )
    return "\n\n".join(
        [
            _benchmark(found, "attend"),
            table(("attention of one layer", *columns), rows),
            "\n".join(f"- {s}" for s in said),
        ]
    )


def _speed(row: dict[str, float] | None) -> str:
    if row is None:
        return "–"
    if "times_sdpa" not in row:
        return f"{1000 * row['seconds']:,.0f} ms"
    seconds, floor = row["seconds"], row["floor_seconds"] / row["seconds"]
    return f"{1000 * seconds:,.{0 if seconds > 0.01 else 2}f} ms; {row['times_sdpa']:.1f}×; {floor:.0%}"


def decode_speed() -> str:
    """What `benchmarks/decode.py` recorded: tokens/s by dtype and kind of prompt, and what a step costs."""
    found = evidence.read("aded.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/decode.py --record` records it."
    parts = [_benchmark(found, "aded")]
    dtypes = [key for key, value in found.items() if isinstance(value, dict) and "step_seconds" in value]
    for dtype in dtypes:
        steps = found[dtype]["step_seconds"]
        kinds = {kind: value["arms"] for kind, value in found[dtype].items() if kind != "step_seconds"}
        names = [arm["name"] for arm in next(iter(kinds.values()))]
        rows = [[name, *(_tokens(arms[i], arms[0]) for arms in kinds.values())] for i, name in enumerate(names)]
        parts.append(
            f"**{dtype}.** A step over n tokens, in steps over one: "
            + ", ".join(f"{n}: {seconds / steps['1']:.2f}" for n, seconds in steps.items() if n != "1")
            + "."
        )
        parts.append(table(("tokens/s", *kinds), rows))
    return "\n\n".join(parts)


def _tokens(arm: dict, greedy: dict) -> str:
    if arm["status"] != "ok":
        return f"failed: {arm['error']}"
    times = sum(greedy["samples"]["seconds"]) / sum(arm["samples"]["seconds"])
    same = arm["values"]["identical output"]["estimate"]
    return f"{arm['items_per_second']['estimate']:.1f}; {times:.2f}×; {same:.0%} identical"


def rank_speed() -> str:
    """What `benchmarks/rank.py` recorded: both decodings by passages and their length, the limit, PG-RANK's step."""
    found = evidence.read("rank.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/rank.py --record` records it."
    near = found["limit"]
    rate = near["operations"] / near["seconds"]
    rows = [
        [
            name,
            f"{row['calls']:.0f}",
            f"{row['tokens']:,.0f}",
            f"{row['first token']:.2f} s",
            f"{row['permutation']:.2f} s",
            f"{row['permutation'] / row['first token']:.2f}×",
        ]
        for name, row in found["growth"].items()
    ]
    window = ", ".join(f"{name} {row['seconds']:.2f} s" for name, row in found["window"].items())
    said = [
        f"A window of 20 passages of {found['words']} words, each in turn: {window}.",
        f"Reading {near['tokens']:,.0f} tokens of a window runs at {rate / 1e9:,.0f} GFLOP/s: "
        f"{near['products_seconds'] / near['seconds']:.0%} of the speed of the bare matrix products it consists of, "
        f"{rate / near['peak']:.0%} of that of a large square product ({near['peak'] / 1e9:,.0f} GFLOP/s).",
        f"A step of PG-RANK on scores of 64 queries × 100 documents with 32 rankings each takes "
        f"{1000 * found['policy_gradient_seconds']:.0f} ms, forward and backward.",
        *found["comparisons"],
    ]
    header = ("a query with", "calls", "prompt tokens", "first token", "permutation", "times")
    return "\n\n".join([_benchmark(found, "rank"), table(header, rows), "\n".join(f"- {s}" for s in said)])


def search_speed() -> str:
    """What `benchmarks/search.py` recorded: libraries for vectors side by side, and the index through its files."""
    found = evidence.read("search.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/search.py --record` records it."
    wanted = found["wanted_recall"]
    parts = [_benchmark(found, "search")]
    for kind, rows in found["results"].items():
        about = {
            "documentation": f"the first {found['words']} words of documentation through {found['layer']} layers of "
            "the default model",
            "clusters": "clusters drawn at random",
        }.get(kind, kind)
        parts.append(
            f"**{rows['vectors']:,} vectors of {rows['dimensions']} dimensions**, {about}. Each library at the least "
            f"width that reaches a recall of {wanted}, or at its greatest:"
        )
        exact = rows["exact"]
        body = [["exact", "1", f"{exact['batch_per_second']:,.0f}", _ms(exact["single_seconds"]), "–", "–"]]
        body += [_library(name, rows[name]) for name in rows if name in found["packages"]]
        parts.append(table(("search", "recall@10", "queries/s", "one query", "built in", "on disk"), body))
        if ours := rows.get("VectorIndex"):
            parts.append(
                f"The index itself, with its texts, keywords and checksums: made in {ours['build_seconds']:.1f} s, "
                f"opened in {_ms(ours['open_seconds'])}, a query in {_ms(ours['single_seconds'])} (exactly: "
                f"{_ms(ours['exact_single_seconds'])}), recall@10 {ours['recall']:.3f} (`--check`: "
                f"{ours['check_recall']:.3f}), {ours['bytes'] / 1e6:,.0f} MB."
            )
    kinds = list(found["results"].values())
    installed = [
        (
            name,
            f"{package['version']}, {found['released'].get(found['package_names'][name], 'unknown')}",
            f"{package['bytes'] / 1e6:,.0f} MB",
            _ends([rows[name]["damaged"] for rows in kinds if rows.get(name, {}).get("damaged")]),
        )
        for name, package in found["packages"].items()
        if package
    ]
    parts.append("What else a library costs, and what it does with a file in which twenty bytes were changed:")
    parts.append(table(("search", "version and month", "installed", "damaged copies"), installed))
    return "\n\n".join(parts)


def page_speed() -> str:
    """What `benchmarks/page.py` recorded: how well papers are found, what likes add, how long screens take."""
    found = evidence.read("page.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/page.py --record` records it."

    def told(row: dict, name: str) -> str:
        estimate, low, high = row[name]
        return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"

    known = [
        [row["documents"], row["query"], row["way"], *(told(row, name) for name in ("mrr", "first", "first five"))]
        for row in found["known"]
    ]
    ways = [[row["way"], told(row, "share")] for row in found["topics"]]
    spent = ("median_ms", "p95_ms", "cpu_ms")
    screens = [
        [row["screen"], row["search"], *(f"{row[name]:.0f} ms" for name in spent), f"{row['kilobytes']:.0f} kB"]
        for row in found["time"]
    ]
    return "\n\n".join(
        [
            _benchmark(found, "page"),
            "**A known paper.** What we say of each paper of this project is looked for among all of them. Abstracts "
            "are not shipped, so a document is a title, or a title with our topics; with abstracts more would be "
            "found. Intervals are over papers.",
            table(("documents", "looked for", "by", "MRR", "comes first", "among the first five"), known),
            f"**Topics.** The {found['topics'][0]['stages']} stages of this project with enough papers stand for "
            "topics; three of their papers are called right, two of others wrong. Of the next five, the share that "
            "belongs to the stage (intervals are over stages):",
            table(("ranked by", "share"), ways),
            "**Screens** of `broadsheet serve` over 5,000 made-up papers, on loopback. Others used the machine "
            "meanwhile: what the process took of the processor is nearer to what a screen costs.",
            table(("screen", "search by", "median", "95th percentile", "processor", "size"), screens),
        ]
    )


def _library(name: str, row: dict) -> list[str]:
    width, at = list(row["widths"].items())[-1]
    return [
        name,
        f"{at['recall']:.3f} (width {width})",
        f"{at['batch_per_second']:,.0f}",
        _ms(at["single_seconds"]),
        f"{row['build_seconds']:.1f} s",
        f"{row['bytes'] / 1e6:,.1f} MB",
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{2 if seconds < 0.01 else 0}f} ms"


def _ends(ends: list[dict]) -> str:
    total = {end: sum(each[end] for each in ends) for end in ("refuses", "answers", "crashes", "hangs")} if ends else {}
    return ", ".join(f"{end} {count}" for end, count in total.items() if count) or "–"


def embed_speed() -> str:
    """What `benchmarks/embed.py` recorded: encoding beside sentence-transformers and the machine, and other costs."""
    found = evidence.read("embed.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/embed.py --record` records it."
    rows, said = [], []
    for dtype, race in found["races"].items():
        for name, arm in race["arms"].items():
            rows.append(
                [
                    name,
                    dtype,
                    f"{arm['texts_per_second']:.1f}",
                    f"{arm['tokens_per_second']:,.0f}",
                    f"{arm['share_linear']:.0%}; {arm['share_with_attention']:.0%}",
                    f"{arm['peak_bytes'] / 1e9:.1f} GB",
                ]
            )
        said.append(f"In {dtype} the vectors of both lie at most {race['apart']:.0e} of the largest entry apart.")
        said.append(f"The matrix limit in {dtype}, measured in turn with both: {race['peak'] / 1e9:,.0f} GFLOP/s.")
        said += [f"{dtype}: {line}" for line in race["comparisons"]]
    extra, tried, stream = found["token_prepending"], found["sweep"], found["streaming"]
    said.append(
        f"Token Prepending on {extra['texts']} sentences against the same template without it: "
        f"{extra['seconds_prepended'] / extra['seconds'] - 1:+.1%} time, for "
        f"{extra['tokens_prepended'] / extra['tokens'] - 1:+.1%} tokens.".replace("-", "−")
    )
    said.append(
        f"Choosing its layers takes {tried['seconds'] / tried['seconds_of_a_pass']:.1f} passes over the texts for "
        f"{tried['settings']} settings ({tried['exits']} exits × {tried['layers']} output layers)."
    )
    if stream:
        said.append(
            f"A corpus streamed to disk peaks at {stream['peak_bytes_quarter'] / 1e6:,.0f} MB for "
            f"{stream['documents_quarter']:,} documents and at {stream['peak_bytes_whole'] / 1e6:,.0f} MB for "
            f"{stream['documents_whole']:,}, a tiny model's own memory included."
        )
    header = (
        "encoding",
        "dtype",
        "texts/s",
        "tokens/s",
        "of the matrix limit: linear layers; with attention",
        "memory",
    )
    return "\n\n".join([_benchmark(found, "embed"), table(header, rows), "\n".join(f"- {s}" for s in said)])


def hear_speed() -> str:
    """What `benchmarks/hear.py` recorded: encoding, answering and training beside plainer ways of the same work."""
    found = evidence.read("hear.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/hear.py --record` records it."
    rows = [
        [name, *(f"{row[way]:.0f}×" if way in row else "–" for way in ("short_together", "short_one_by_one", "long"))]
        for name, row in found["encoding"].items()
    ]
    windows, cache, answers, taught = (found[name] for name in ("qformer", "cache", "answering", "training"))
    audio, steps = found["clips"] * found["seconds"], ("steps_per_second_cached", "steps_per_second_encoded")
    cached, encoded = (taught[name] for name in steps)
    said = [
        f"Answers about {found['clips']} clips of {found['seconds']:g} s, encoding included: "
        f"{audio / answers['together']:.1f}× real time together, {audio / answers['one_by_one']:.1f}× one by one.",
        f"The Q-Former over {windows['windows']} windows at once takes {1000 * windows['seconds']:.0f} ms, in a loop "
        f"{1000 * windows['seconds_of_loop']:.0f} ms; the tokens lie at most {windows['apart']:.0e} apart.",
        f"Frames from the cache take {1000 * cache['cached']:.1f} ms, encoding them anew "
        f"{1000 * cache['encoded']:,.0f} ms: {cache['encoded'] / cache['cached']:,.0f} times as long.",
        f"Training on batches of {taught['batch']} clips: {cached:.2f} steps/s with cached frames, {encoded:.2f} where "
        f"each step encodes its clips: {cached / encoded:.2f} times as many. Its memory peaks at "
        f"{taught['peak_bytes_cached'] / 1e9:.1f} GB.",
    ]
    header = ("seconds of audio a second", "short clips together", "one by one", "30 s")
    return "\n\n".join([_benchmark(found, "hear"), table(header, rows), "\n".join(f"- {s}" for s in said)])


def verdict_rates() -> str:
    """What `benchmarks/verdicts.py` recorded: false verdicts and power by kind of data, one row a kind."""
    found = evidence.read("verdicts.benchmark")
    if found is None:
        return "Nothing is recorded yet. `python benchmarks/verdicts.py --record` records it."
    kinds: dict[str, list[dict]] = {}
    for row in found["rows"]:
        kinds.setdefault(row["kind"], []).append(row)
    rows = [
        [
            kind,
            ", ".join(f"{row['n']:,}" for row in sizes),
            ", ".join(f"{100 * row['false']:.1f}" for row in sizes),
            ", ".join("–" if row["power"] is None else f"{100 * row['power']:.0f}" for row in sizes),
        ]
        for kind, sizes in kinds.items()
    ]
    n = int(found["command"].partition("--repetitions ")[2].split()[0])
    said = (
        f"{n:,} repetitions each: a rate of 5 % comes out up to {100 * (0.05 + 2 * (0.05 * 0.95 / n) ** 0.5):.1f}, one "
        f"of 80 % between {100 * (0.8 - 2 * (0.8 * 0.2 / n) ** 0.5):.0f} and "
        f"{100 * (0.8 + 2 * (0.8 * 0.2 / n) ** 0.5):.0f}, "
        "and a little beyond where the stated size, the median of as many, is itself uncertain."
    )
    header = ("data", "n", "false verdicts, of 100", "found at the stated size, of 100")
    return "\n\n".join([_benchmark(found, "verdicts"), said, table(header, rows)])


def attacks() -> str:
    """What `make attack` recorded: how many of each kind were withstood, and what was not."""
    found = evidence.read("attack.benchmark")
    if found is None:
        return "Nothing is recorded yet. `make attack` records it."
    rows = [(kind, f"{sum(of.values()):,}", f"{len(of):,}") for kind, of in found["kinds"].items()]
    failed = found["failed"]
    said = f"Not withstood: {', '.join(f'`{each}`' for each in failed)}." if failed else "All were withstood."
    header = ("attack", "withstood", "commands, formats and roads")
    return "\n\n".join([_benchmark(found, "attack"), said, table(header, rows)])


def _benchmark(found: dict, name: str) -> str:
    made = found["provenance"]
    machine, versions = made["machine"], made["versions"]
    return (
        f"Recorded {made['date'][:10]} by `{found['command']}` on {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, with torch {versions['torch']}, transformers {versions['transformers']}. "
        f"Everything measured is in `evidence/{name}.benchmark.json`."
    )
