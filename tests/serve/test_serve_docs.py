"""What docs/serve.md shows: each request and each client's example is run against a server of tiny models."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, serving

from broadsheet.embed.base import baseline
from broadsheet.rank import ListwiseReranker
from broadsheet.serve.agents.tools import Agents
from broadsheet.serve.app import create_app
from broadsheet.serve.models.named import Models
from broadsheet.serve.trials.jobs import Jobs

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
URL = "http://127.0.0.1:8000"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


REQUESTS = [
    line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.startswith("curl ")
]
PROGRAMS = blocks("python")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("models")
    for name in ("default", "minilm", "first"):
        (root / name).mkdir()
    tiny_model(max_position_embeddings=1024).save_pretrained(root / "default")
    tiny_tokenizer().save_pretrained(root / "default")
    baseline("mean", str(root / "default")).save_pretrained(str(root / "minilm"))
    ListwiseReranker.load(root / "default", window=4, step=2).save(root / "first")
    made = Models([str(root / "default")], [str(root / "minilm")], [str(root / "first")], ["likelihood"])
    jobs = Jobs(root / "jobs")
    with serving(create_app(made, agents=Agents(jobs))) as running:
        yield running
    jobs.close()


@pytest.mark.parametrize("line", REQUESTS)
def test_a_request_is_answered(server, line):
    words = shlex.split(line)
    [url] = [word for word in words if word.startswith(URL)]
    headers = {words[i + 1].split(": ")[0]: words[i + 1].split(": ")[1] for i, w in enumerate(words) if w == "-H"}
    data = next((words[i + 1] for i, word in enumerate(words) if word == "-d"), None)
    status, answer = server.ask(url.removeprefix(URL), data.encode() if data else None, **headers)
    assert status == 200, answer
    if "/v1/score" in line:
        assert [each["tokens"] > 0 for each in answer["data"]] == [True, True]
    if data and json.loads(data).get("stream"):
        assert answer.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("program", PROGRAMS, ids=[re.findall(r"import (\w+)", each)[-1] for each in PROGRAMS])
def test_a_program_runs_as_it_stands(server, program, capsys):
    assert URL in program
    exec(compile(ast.parse(program.replace(URL, server.url)), "docs/serve.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_every_route_for_clients_is_shown(server):
    paths = server.ask("/openapi.json")[1]["paths"]
    for path in paths:
        assert f"`{path}`" in PAGE or path == "/v1/models/{name}", path
