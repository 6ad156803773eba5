"""Peers in the trial of ADED: one that drafts is verified by the trial's model, one that writes is compared with it."""

from __future__ import annotations

import json
import shlex
import sys
from types import SimpleNamespace

import pytest
import toy_peers

from broadsheet.console import InputError
from broadsheet.decode.trials import peers
from broadsheet.decode.trials.aded import MAIN, AdedTrial

DRAFTS = """
import json

def load(texts, vocabulary, length):
    lines = [json.loads(line) for line in open(texts)]
    assert lines and all(token < vocabulary for line in lines for token in line)
    after = {(a, b): line[i + 2 : i + 2 + length] for line in lines for i, (a, b) in enumerate(zip(line, line[1:]))}

    def paths(context):
        assert len(context) <= 16
        path = after.get(tuple(context[-2:]), [4])
        return [path, [path[0], 3], [5] * length]

    return lambda items: {"paths": [paths(item["context"]) for item in items]}
"""
WRITES = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    items = json.loads(line)["items"]
    outputs = {"tokens": [[7] * (item["new_tokens"] - SHORT) for item in items], "seconds": [0.5] * len(items)}
    print(json.dumps({"outputs": outputs, "seconds": 9.0, "peak_bytes": 12345}), flush=True)
"""


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model(eos_token_id=None, pad_token_id=0)


@pytest.fixture
def options(tmp_path, home, tiny_model, tiny_tokenizer, monkeypatch):
    """Of a short trial on a tiny model."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    texts = (" ".join(f"{chr(97 + (i * j) % 26)}{j}" for j in range(100)) for i in range(1, 20))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr("broadsheet.decode.trials.aded.step_seconds", lambda *_: {1: 1.0, 4: 1.1, 8: 1.2})
    monkeypatch.setattr(AdedTrial, "tuned", lambda self, name, settings, score, on: settings[0])
    sizes = {"prompts": 3, "tokens": 6, "warm": 3, "megabytes": 0.002}
    return {"model": str(tmp_path / "model"), "data": str(tmp_path / "corpus.jsonl"), **sizes}


def test_what_a_program_drafts_is_verified(llama, monkeypatch):
    import torch

    prompt = torch.tensor([[5, 6, 7, 8]])
    plain = llama.generate(prompt, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)[
        0, 4:
    ].tolist()
    asked = []

    def run(items):
        asked.append(items[0]["context"])
        done = len(items[0]["context"]) - 4
        return SimpleNamespace(outputs={"paths": [[plain[done : done + 3], [1, 2, 3]]]})

    drafter = peers.ExternalDrafter(SimpleNamespace(run=run))  # type: ignore[arg-type]
    out = llama.generate(
        prompt, custom_generate=drafter, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
    )
    assert out[0, 4:].tolist() == plain
    assert drafter.stats_.tokens_per_forward == 3.0  # a step writes three drafts and a token more, the first one token
    assert asked[0] == [5, 6, 7, 8, plain[0]]
    assert max(map(len, asked)) <= peers.WINDOW


def test_a_peer_that_drafts_writes_what_greedy_decoding_writes(options, tmp_path, monkeypatch):
    toy_peers.ready(monkeypatch, tmp_path / "toy", DRAFTS, stage="decode", kind="drafts", options={"length": 3})
    result = AdedTrial(**options, peer="counter(length=2)").run()
    arm = result.arms[-1]
    assert (arm.name, arm.role, arm.status, arm.error) == ("peer: counter(length=2)", "peer", "ok", "")
    assert arm.values["identical output"].estimate == 1.0
    assert sum(arm.samples["drafted"]) > 0
    assert ("tokens/s", "peer: counter(length=2)", MAIN) in {(c.metric, c.baseline, c.arm) for c in result.comparisons}


@pytest.mark.parametrize(("short", "error"), [(0, ""), (1, "expected `seconds` and 6 `tokens` for each of 1 prompts")])
def test_a_program_that_writes_is_compared_with_greedy_decoding(options, tmp_path, short, error):
    (tmp_path / "arm.py").write_text(WRITES.replace("SHORT", str(short)))
    command = shlex.join([sys.executable, str(tmp_path / "arm.py")])
    result = AdedTrial(**options, peer=command).run()
    arm = result.arms[-1]
    assert (arm.name, arm.role, error in arm.error) == ("peer: arm.py", "peer", True)
    if not short:
        assert arm.samples["seconds"] == [0.5] * 3
        assert arm.values["identical output"].estimate == 0.0
        assert arm.items_per_second.estimate == pytest.approx(6 / 0.5)
        assert arm.peak_bytes == 12345
        assert any(note.startswith("3 of the 3 texts of peer: arm.py differ") for note in result.notes)


def test_a_peer_that_reads_another_kind_of_file_is_refused(monkeypatch, tmp_path, home):
    toy_peers.ready(monkeypatch, tmp_path / "toy", WRITES, stage="decode")
    with pytest.raises(InputError, match=r"got --peer counter and --model no/folder; expected `default` or a \.gguf"):
        AdedTrial(model="no/folder", peer="counter")
