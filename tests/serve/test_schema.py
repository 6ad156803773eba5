"""Requests made up from the server's own schema, fit and unfit: none is answered by a failure of the server's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, serving

from broadsheet.embed.base import baseline
from broadsheet.rank import ListwiseReranker
from broadsheet.serve.app import create_app
from broadsheet.serve.models.named import Models


@pytest.fixture
def server(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Iterator[Running]:
    tiny_model(max_position_embeddings=256).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    baseline("mean", str(tmp_path / "tiny"), max_seq_length=24).save_pretrained(str(tmp_path / "vectors"))
    ListwiseReranker.load(tmp_path / "tiny", window=4, step=2).save(tmp_path / "orders")
    made = Models([str(tmp_path / "tiny")], [str(tmp_path / "vectors")], [str(tmp_path / "orders")], ["likelihood"])
    with serving(create_app(made)) as running:
        yield running


def test_no_request_that_the_schema_allows_or_forbids_makes_the_server_fail(server, tmp_path):
    program = Path(sys.executable).parent / "schemathesis"
    asked = [program, "run", f"{server.url}/openapi.json", "--max-examples", "12", "--seed", "1"]
    asked += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--no-color", "--request-timeout", "60"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=280, cwd=tmp_path)  # it keeps notes there
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    made = re.search(r"(\d+) generated", done.stdout)
    assert made, done.stdout[-3000:]
    assert int(made[1]) > 500
