"""Every road to a model of sentence-transformers: what is damaged, hostile or half there is refused in one line."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel

import broadsheet
from broadsheet import embed
from broadsheet.console import InputError
from broadsheet.curate.orders.vectors import Sentences
from broadsheet.detect.fill import T5Fill
from broadsheet.models.loading import load_classifier, load_seq2seq
from broadsheet.models.sentences import load_sentences, sentences_fingerprint

KERNEL = "evil/kernel"
ROADS: dict[str, Callable[[str], Any]] = {
    "embed": embed.load,
    "curate": lambda folder: Sentences(folder).encode(["a"]),
    "models": lambda folder: load_sentences(folder, SentenceTransformer),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Callable) -> Path:
    """A small BERT with mean pooling, as sentence-transformers saves it."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16, "mean"), Normalize()]).save(
        str(tmp_path / "sentences")
    )
    return tmp_path / "sentences"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("road", ROADS)
def test_what_was_saved_is_read_and_embeds_the_same(folder, road, monkeypatch):
    expected = SentenceTransformer(str(folder)).encode(["one two", "three"])
    made = ROADS[road](str(folder))
    found = made if road == "curate" else made.encode(["one two", "three"])
    if road != "curate":
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert made[0].auto_model.config._attn_implementation == "sdpa"
    else:
        assert found.shape == (1, 16)


@pytest.mark.parametrize("road", ROADS)
def test_an_embedder_of_ours_is_read_on_every_road(tmp_path, tiny_model, tiny_tokenizer, road):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    ours = embed.baseline("mean", str(tmp_path / "model"))
    ours.save_pretrained(str(tmp_path / "ours"))
    made = ROADS[road](str(tmp_path / "ours"))
    found = made if road == "curate" else made.encode(["a"])
    np.testing.assert_allclose(found, ours.encode(["a"]), atol=1e-5)
    assert road == "curate" or type(made) is (embed.Embedder if road == "embed" else SentenceTransformer)


@pytest.mark.parametrize(
    "name", ["cli.main", "embed.base.nn", "embed.base.Pooling", "embed.base.load", "embed.modules.encoder.Nothing"]
)
def test_what_is_no_module_of_ours_is_refused(tmp_path, tiny_model, tiny_tokenizer, name):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    embed.baseline("mean", str(tmp_path / "model")).save_pretrained(str(tmp_path / "ours"))
    rows = json.loads((tmp_path / "ours/modules.json").read_text())
    rows[0]["type"] = f"broadsheet.{name}"
    (tmp_path / "ours/modules.json").write_text(json.dumps(rows))
    for road in ROADS.values():
        with pytest.raises(InputError, match=r"is no module of an embedder|wants code of its own"):
            road(str(tmp_path / "ours"))


def test_a_fingerprint_knows_weights_pooling_and_prompts(folder):
    def made(pooling: str = "mean", **prompts: str) -> str:
        model = load_sentences(folder, SentenceTransformer)
        model[1] = Pooling(16, pooling)
        model.prompts = dict(prompts)
        return sentences_fingerprint(model)

    assert made() == made()
    assert len({made(), made("cls"), made(query="query: "), made(query="ask: ")}) == 4


def hub_kernel(folder: Path) -> str:
    edit(folder / "config.json", attn_implementation=KERNEL)
    return KERNEL


def pickles(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return "safetensors"


def lost_layer(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return "lacks 16 of the weights"


def misnamed(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    save_file({f"x.{name}": weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return "of the weights its config asks for"


def cut_off(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "is not a whole safetensors file"


def other_code(folder: Path) -> str:
    rows = json.loads((folder / "modules.json").read_text())
    rows[1]["type"] = "evil.module.Pooling"
    (folder / "modules.json").write_text(json.dumps(rows))
    return "code of its own"


def elsewhere(folder: Path) -> str:
    rows = json.loads((folder / "modules.json").read_text())
    rows[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(rows))
    return "outside its own"


def no_list(folder: Path) -> str:
    (folder / "modules.json").write_text('{"a": 1}')
    return "expected a list"


def deep_list(folder: Path) -> str:
    (folder / "modules.json").write_text("[" * 100_000)
    return "is not JSON"


def nameless(folder: Path) -> str:
    (folder / "modules.json").write_text('[{"idx": 0}, 3]')
    return "without path or type"


def unknown_type(folder: Path) -> str:
    edit(folder / "config.json", model_type="nothing")
    return "is not one that transformers knows"


def pickled_module(folder: Path) -> str:
    rows = json.loads((folder / "modules.json").read_text())
    rows[2] |= {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "2_Dense").mkdir(exist_ok=True)
    settings = {
        "in_features": 16,
        "out_features": 4,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    torch.save({"linear.weight": torch.zeros(4, 16)}, folder / "2_Dense" / "pytorch_model.bin")
    return "is a pickle"


FAULTS = [
    hub_kernel, pickles, lost_layer, misnamed, cut_off, other_code, elsewhere, no_list, deep_list, nameless,
    unknown_type, pickled_module,
]  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_is_not_safe_or_not_whole_is_refused_on_every_road(folder, fault, road, attack):
    told = fault(folder)
    with pytest.raises(InputError, match=told) as refused:
        ROADS[road](str(folder))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    attack.count("model folders", road)


def test_names_of_nothing_are_refused():
    for name in ("/nowhere/at/all", "no such thing"):
        with pytest.raises(InputError, match="unknown embedder"):
            load_sentences(name, SentenceTransformer)


def test_other_kinds_are_read_by_their_own_loaders_alone(tiny_folder):
    with pytest.raises(InputError, match="model_type 'llama' is not one from sequence to sequence"):
        load_seq2seq(tiny_folder)
    with pytest.raises(InputError, match="model_type 'llama' is not one from sequence to sequence"):
        T5Fill(str(tiny_folder))
    edit(tiny_folder / "config.json", attn_implementation=KERNEL)
    for load in (load_seq2seq, load_classifier, T5Fill):
        with pytest.raises(InputError, match=KERNEL):
            load(str(tiny_folder))


# Where the library reads models of others. What is added here has to make the checks of `models.safefiles` first.
READERS = {
    "models/reading.py", "models/adapters.py", "models/sentences.py",
    "models/tokens.py", "hear/encoders/whisper.py", "hear/encoders/beats.py",
    "attend/peers/kvpress_runner.py",  # a program of its own, in another environment, of a folder that was checked
    "evaluate/loogle_lm_eval/task.py",  # a tokenizer that the reader of lm-eval names
}  # fmt: skip


def test_no_other_file_reads_models_of_others():
    found = set()
    package = Path(broadsheet.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _reads(node):
                found.add(path.relative_to(package).as_posix())
    assert found <= READERS | OWN, f"reads a model past the one loader: {sorted(found - READERS - OWN)}"
    assert {"models/reading.py", "models/sentences.py"} <= found, "the check sees what it looks for"


# Files that read what broadsheet itself has written, by classes of its own.
OWN = {"hear/commands.py", "hear/recipes.py", "hear/trials/arms.py", "hear/salmonn.py", "hear/encoders/beats_layers.py"}


def _reads(call: ast.Call) -> bool:
    """Whether a call makes a model or a tokenizer from files: `….from_pretrained(…)`, `torch.load(…)`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "SentenceTransformer":
        return bool(call.args)  # a name; modules come by keyword
    if name == "load" and isinstance(call.func, ast.Attribute):
        return isinstance(call.func.value, ast.Name) and call.func.value.id == "torch"
    return name == "from_pretrained" or (
        name == "kind" and any(each.arg == "trust_remote_code" for each in call.keywords)
    )
