"""For agents: the page, its evidence and its trials as tools of the Model Context Protocol.

Knows: papers, evidence, jobs. Does not know: HTTP, keys. Every answer about a paper carries its verdict, the interval,
the rung and what of it is left out. Data, models and files come from lists that whoever starts it has given; a client
names entries of them, and never a path or a command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

from broadsheet import __version__
from broadsheet.console import InputError, say, where
from broadsheet.page import evidence
from broadsheet.page.docparts import example, first_sentences, use
from broadsheet.page.papers import RUNGS, Paper, docstring, get, get_trial, search
from broadsheet.report.answer import TrialAnswer
from broadsheet.serve.trials.jobs import Job, Jobs
from broadsheet.trial.results import TrialResult

INSTRUCTIONS = """\
broadsheet has 79 papers about large language models for text; those that are built can be tried here.
Search with `papers`, read with `show`, or describe a task to `advise`. `try_start` starts a trial (minutes to
hours), `try_watch` says how far it is, `try_result` what it found. `compare` judges two files of results.
Tell a user the verdict as it stands. "open" and "no measurable difference" mean that nothing was shown, not that
nothing is there; an interval is of this model and these data. A trial with `quick` is a first look and decides
nothing.
"""


class Agents:
    """The tools, over what may be used.

    Args:
        jobs: the trials.
        models, data: that trials may be run on.
        results: a folder whose files may be compared.
    """

    def __init__(
        self,
        jobs: Jobs,
        models: Sequence[str] = ("default",),
        data: Sequence[str] = ("pydocs:stdlib", "pydocs"),
        results: Path | None = None,
    ) -> None:
        self.jobs, self.models, self.data, self.results = jobs, tuple(models), tuple(data), results

    def papers(self, words: str = "", stage: str = "", least_rung: int = 0) -> list[dict[str, Any]]:
        """Papers that these words are about, with their rung and verdict; all papers without words.

        Args:
            words: of title, summary, topics or class names.
            stage: curate, train, attend, decode, embed, rank, detect, …; empty for all.
            least_rung: 0 listed, 1 runs, 2 exact, 3 helps, 4 leads.
        """
        found = search(words, stage=stage, rung=least_rung)
        return [{"title": paper.title, "summary": paper.summary, **standing(paper)} for paper in found]

    def show(self, paper: str) -> dict[str, Any]:
        """What a paper is, when to take it and what instead, an example in Python, and what was measured."""
        found = get(paper)
        classes = [
            {
                "class": entry.partition(":")[2],
                "does": first_sentences(docstring(entry), 1),
                "when": use(docstring(entry)),
                "example": example(docstring(entry)),
            }
            for entry in found.entry
        ]
        return {
            "title": found.title,
            "url": found.url,
            "summary": found.summary,
            **standing(found),
            "classes": classes,
            "scope": {heading: list(phrases) for heading, phrases in found.scope.items()},
        }

    def evidence(self, paper: str) -> dict[str, Any]:
        """The recorded trial of a paper: its answer, each comparison with its interval, its notes, and the command."""
        found = get(paper)
        recorded = evidence.read(found.id, found.evidence_folder)
        if recorded is None:
            return {**standing(found), "recorded": False}
        return {**standing(found), "recorded": True, **told(TrialResult.from_dict(recorded))}

    def advise(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Which papers to try, to measure with and to read for a task, and why; without answers, the questions.

        Args:
            answers: by fact (goal, need, labels, unlabelled, weights, size, knowledge, machine, input, latency,
                language), one of the values that it may have.
        """
        from broadsheet.page.guides import advice

        if not answers:
            return {"questions": {name: list(fact.values) for name, fact in advice.facts().items()}}
        advice.check(answers)
        return advice.advise(answers).to_dict()

    def compare(self, baseline: str, other: str, margins: Sequence[str] = ()) -> list[dict[str, Any]]:
        """A paired verdict on two files of per-item results (lm-eval samples, JSONL, CSV) in the results' folder.

        Args:
            baseline, other: names of files there.
            margins: how much worse still counts as no worse: `accuracy=0.01`.
        """
        from broadsheet.trial.compare import compare_files
        from broadsheet.trial.sentences import sentence
        from broadsheet.trial.verdicts import margins as read

        found = compare_files(self._file(baseline), self._file(other), margins=read(tuple(margins)))
        return [{**evidence.finite(asdict(each)), "sentence": sentence(each)} for each in found]

    def try_start(self, paper: str, model: str = "", data: str = "", quick: bool = True) -> dict[str, Any]:
        """Start a paper's trial against the plain baseline; returns the job to watch. It takes minutes to hours.

        Args:
            model, data: of those that this server offers; by default the trial's own.
            quick: few items: a first look, which decides nothing.
        """
        identifier, _ = get_trial(paper)
        given = [identifier]
        given += ["--model", self._offered("model", model, self.models)] if model else []
        given += ["--data", self._offered("data", data, self.data)] if data else []
        return self._told(self.jobs.start([*given, *(["--quick"] if quick else [])]))

    def try_watch(self, job: str) -> dict[str, Any]:
        """How far a trial is: its state, and what it said last."""
        return self._told(self.jobs.get(job)) | {"said": self.jobs.lines(job)}

    def try_stop(self, job: str) -> dict[str, Any]:
        """Stop a trial; what it has measured is kept, and the same trial goes on from there."""
        return self._told(self.jobs.stop(job))

    def try_result(self, job: str) -> dict[str, Any]:
        """What a trial found: the answer in a sentence or two, each comparison with its interval, and its notes."""
        return told(TrialResult.from_dict(self.jobs.result(job)))

    def server(self) -> Any:
        """All of it as a server of the protocol."""
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError

        def refusing(tool: Callable[..., Any]) -> Callable[..., Any]:
            """The tool; what a client can mend is told to it, and of what else fails only the kind."""

            @wraps(tool)
            def told(*given: Any, **named: Any) -> Any:
                try:
                    return tool(*given, **named)
                except InputError as error:
                    raise ToolError(str(error)) from None
                except Exception as error:
                    say(where(error))
                    raise ToolError(f"the tool failed: {type(error).__name__}") from None

            return told

        made = MCPServer(
            "broadsheet",
            instructions=f"{INSTRUCTIONS}{self._offers()}\n",
            version=__version__,
            log_level="WARNING",
            subscriptions=False,  # there is nothing to hear of, and such a stream would never end
        )
        for tool in (
            self.papers, self.show, self.evidence, self.advise, self.compare,
            self.try_start, self.try_watch, self.try_stop, self.try_result,
        ):  # fmt: skip
            made.tool()(refusing(tool))
        return made

    def _offers(self) -> str:
        return f"Trials may run on the models {', '.join(self.models) or 'none'} and the data {', '.join(self.data)}."

    def _told(self, job: Job) -> dict[str, Any]:
        return {"job": job.id, "state": job.state, "command": " ".join(["broadsheet", *job.command])}

    def _offered(self, what: str, name: str, offered: Sequence[str]) -> str:
        if name not in offered:
            raise InputError(f"this server has no {what} {name!r}; it offers {', '.join(offered) or 'none'}")
        return name

    def _file(self, name: str) -> Path:
        """A file of the results' folder, by its name alone."""
        there = {path.name: path for path in self.results.iterdir() if path.is_file()} if self.results else {}
        if name not in there:
            raise InputError(f"there is no {name!r} among the results; there is {', '.join(sorted(there)) or 'none'}")
        return there[name]


def standing(paper: Paper) -> dict[str, Any]:
    """Where a paper stands: id, stage, rung, verdict, and the recorded answer with its interval."""
    recorded = evidence.read(paper.id, paper.evidence_folder) if paper.entry else None
    answer = str(TrialAnswer(TrialResult.from_dict(recorded))) if recorded else "nothing is recorded"
    return {
        "id": paper.id,
        "stage": paper.stage,
        "kind": paper.kind,
        "built": bool(paper.entry),
        "rung": f"{paper.rung} {RUNGS[paper.rung]}",
        "verdict": paper.verdict or "none",
        "answer": answer,
        "leaves_out": list(paper.leaves_out),
    }


def told(result: TrialResult) -> dict[str, Any]:
    """A trial's result without its items: answer, claims, comparisons as sentences, notes, command."""
    from broadsheet.trial.sentences import sentence

    return {
        "answer": str(TrialAnswer(result)),
        "verdict": result.verdict,
        "claims": [asdict(claim) for claim in result.judged],
        "comparisons": [sentence(each) for each in result.comparisons],
        "setting": evidence.finite(result.setting),
        "notes": list(result.notes),
        "command": result.command,
    }
