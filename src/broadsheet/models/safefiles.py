"""Bounded checks of files that others wrote, made before any library reads them.

Knows the outer form of safetensors and GGUF files (lengths, counts and offsets against the file's own size) and the
fields of a model folder's JSON that would make transformers fetch or run code. Loads no tensor, imports no torch, and
does not know what the weights mean.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from broadsheet.console import InputError

JSON_LIMIT = 10_000_000  # bytes; the largest config and index files in use are under 5 MB
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
GGUF_PAIRS_LIMIT = 65_536
GGUF_TENSORS_LIMIT = 65_536
GGUF_ITEMS_LIMIT = 4_000_000  # array items in the whole header; a vocabulary of 262k tokens with its merges has 1.4 M
GGUF_TEXT_LIMIT = 100_000_000  # bytes of strings in the whole header; the same vocabulary has under 20 MB

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_DIMENSIONS = 64  # of a tensor, at most: PyTorch's own limit
_SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# GGUF value types: 8 is a string, 9 an array; the others have a fixed size.
_GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


class GGUFHeader(NamedTuple):
    """What a GGUF file says about itself.

    Attributes:
        metadata: key to value for numbers and strings; an array is given as its number of items.
        tensor_types: names of the tensors' storage types, such as {"F32", "Q4_1"}.
    """

    metadata: dict[str, Any]
    tensor_types: set[str]

    @property
    def quantized(self) -> bool:
        """Whether any tensor is stored in quantized blocks."""
        return not self.tensor_types <= {"F64", "F32", "F16", "BF16"}


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in `path`, read only if it is at most `limit` bytes long.

    Raises:
        InputError: the file is missing, too large, not JSON, or JSON that is not an object.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; a model folder has config.json, weights and tokenizer files")
    size = path.stat().st_size
    if size > limit:
        raise InputError(f"{path} is {size:,} bytes long; a file of this kind has at most {limit:,}")
    return _json_object(path.read_bytes(), str(path))


def read_list(path: Path, limit: int = JSON_LIMIT) -> list[Any]:
    """The JSON list in `path`, as `read_json` reads an object."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; a model of sentence-transformers has modules.json and their folders")
    if (size := path.stat().st_size) > limit:
        raise InputError(f"{path} is {size:,} bytes long; a file of this kind has at most {limit:,}")
    value = _json(path.read_bytes(), str(path))
    if not isinstance(value, list):
        raise InputError(f"{path} holds a JSON {type(value).__name__}; expected a list")
    return value


def _json_object(text: bytes, name: str) -> dict[str, Any]:
    value = _json(text, name)
    if not isinstance(value, dict):
        raise InputError(f"{name} holds a JSON {type(value).__name__}; expected an object")
    return value


def _json(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError covers undecodable bytes and overlong integers
        raise InputError(f"{name} is not JSON ({str(error).splitlines()[0]}); get the file again") from None


def check_safetensors(path: Path) -> int:
    """Check that a safetensors file is whole: its header fits, and its tensors fill the file exactly.

    Reads the header only, so it takes milliseconds for a file of any size.

    Returns:
        The number of its tensors.

    Raises:
        InputError: the file is cut off, header-bloated or not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        longest = min(SAFETENSORS_HEADER_LIMIT, size - 8)
        if not 2 <= length <= longest:
            raise _damaged(path, "safetensors", f"its header claims {length:,} bytes, at most {max(longest, 0):,} fit")
        header = _json_object(file.read(length), f"the safetensors header of {path}")
    spans = [_tensor_span(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _damaged(path, "safetensors", f"its tensors leave a gap or overlap at byte {end:,}")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, "safetensors", f"its tensors need {end:,} bytes and it has {size - 8 - length:,}")
    return len(spans)


def _tensor_span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """The byte range of one tensor of a safetensors header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
            0 <= start <= stop and len(shape) <= _DIMENSIONS and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
        ):
            bits = _SAFETENSORS_BITS.get(dtype)
            if bits is None or math.prod(shape) * bits == (stop - start) * 8:
                return start, stop
    raise _damaged(path, "safetensors", f"its entry for {name[:80]!r} is not consistent")


def read_gguf(path: Path) -> GGUFHeader:
    """Walk a GGUF file's header, every length checked against the file, and return what it says.

    Takes a fraction of a second for a vocabulary of 50,000 tokens, and little memory for a file of any kind.

    Raises:
        InputError: the file is cut off, header-bloated, of an unknown version, or not GGUF.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise _damaged(path, "GGUF", "it does not begin with the letters GGUF")
        if size < 24:
            raise _damaged(path, "GGUF", "it ends within its header")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _GGUFWalk(path, view, size).header()


class _GGUFWalk:
    """One pass over a memory-mapped GGUF header; no read goes past the end of the file."""

    def __init__(self, path: Path, view: mmap.mmap, size: int) -> None:
        self.path, self.view, self.size = path, view, size
        self.position = 4
        self.items = self.text = 0

    def header(self) -> GGUFHeader:
        version = self.number("I")
        if version not in (2, 3):
            raise _damaged(self.path, "GGUF", f"it is of version {version}, expected 2 or 3")
        tensors = self.count("Q", GGUF_TENSORS_LIMIT, "tensors")
        pairs = self.count("Q", GGUF_PAIRS_LIMIT, "metadata entries")
        metadata = {self.string(): self.value(self.number("I")) for _ in range(pairs)}
        needs = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _damaged(self.path, "GGUF", f"its alignment is {alignment!r}")
        data = -(-self.position // alignment) * alignment
        if needs and data + max(end for _, end in needs) > self.size:
            missing = data + max(end for _, end in needs) - self.size
            raise _damaged(self.path, "GGUF", f"{missing:,} bytes are missing at its end")
        return GGUFHeader(metadata, {name for name, _ in needs})

    def tensor(self) -> tuple[str, int]:
        """One entry of the tensor table: the storage type's name, and where its data ends within the data part."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self.string()
        dimensions = self.count("I", 4, "dimensions")
        elements = math.prod(self.number("Q") for _ in range(dimensions))
        kind, offset = self.number("I"), self.number("Q")
        try:
            storage = GGMLQuantizationType(kind)
        except ValueError:
            raise _damaged(self.path, "GGUF", f"it stores a tensor as type {kind}, which is unknown") from None
        block_elements, block_bytes = GGML_QUANT_SIZES[storage]
        return storage.name, offset + elements // block_elements * block_bytes

    def value(self, kind: int) -> Any:
        if kind == _GGUF_STRING:
            return self.string()
        if kind == _GGUF_ARRAY:
            return self.array()
        return self.number(self.format_of(kind))

    def array(self) -> int:
        """Step over an array; return its number of items."""
        kind = self.number("I")
        count = self.count("Q", GGUF_ITEMS_LIMIT - self.items, "array items")
        self.items += count
        if kind == _GGUF_STRING:
            for _ in range(count):
                self.skip(self.text_length())
        else:
            self.skip(count * struct.calcsize(f"<{self.format_of(kind)}"))
        return count

    def format_of(self, kind: int) -> str:
        if kind not in _GGUF_NUMBERS:
            raise _damaged(self.path, "GGUF", f"its metadata has a value of type {kind}, which is unknown")
        return _GGUF_NUMBERS[kind]

    def count(self, format: str, limit: int, what: str) -> int:
        count = self.number(format)
        if count > limit:
            raise _damaged(self.path, "GGUF", f"its header claims {count:,} {what}, at most {limit:,} are read")
        return count

    def number(self, format: str) -> Any:
        start = self.position
        self.skip(struct.calcsize(f"<{format}"))
        return struct.unpack_from(f"<{format}", self.view, start)[0]

    def string(self) -> str:
        length = self.text_length()
        start = self.position
        self.skip(length)
        return self.view[start : self.position].decode("utf-8", "replace")

    def text_length(self) -> int:
        length = self.count("Q", GGUF_TEXT_LIMIT - self.text, "bytes of text")
        self.text += length
        return length

    def skip(self, length: int) -> None:
        remain = self.size - self.position
        if length > remain:
            raise _damaged(self.path, "GGUF", f"its header asks for {length:,} bytes where {remain:,} remain")
        self.position += length


def _damaged(path: Path, form: str, why: str) -> InputError:
    return InputError(f"{path} is not a whole {form} file: {why}; get the file again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`, all present.

    Raises:
        InputError: there are none, only pickled weights, or a shard named by the index is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only pickled weights ({pickled[0]}), which can run code when read" if pickled else "none"
        raise InputError(
            f"{folder} needs weights as {WEIGHTS} or {WEIGHTS_INDEX}, it has {found}; convert them to safetensors first"
        )
    index = read_json(folder / WEIGHTS_INDEX)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{folder / WEIGHTS_INDEX} has no weight_map from tensor names to files; get the file again")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{folder / WEIGHTS_INDEX} names {name!r}; expected a .safetensors file in the same folder"
            )
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}, one of the {len(names)} files its index names; get it again")
    return [folder / name for name in names]


def check_folder(folder: Path) -> None:
    """Check that a Hugging Face model folder is whole and asks transformers for nothing but reading it.

    Raises:
        InputError: as `check_config`; weights are missing or damaged.
    """
    check_config(folder)
    tensors = sum(check_safetensors(file) for file in weight_files(folder))
    config = read_json(folder / "config.json")
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > max(tensors, 1):
            told = f"its config asks for {layers:,} layers, and its weights are {tensors:,} tensors"
            raise InputError(f"{folder}: {told}; they do not belong together")


def check_config(folder: Path) -> None:
    """Check what a model folder's configs would make transformers do; the weights need not be there yet.

    Raises:
        InputError: `config.json` is missing or damaged; a config names a hub kernel or other weight files; the folder
            is quantized, an adapter, or a distributed checkpoint.
    """
    if not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        hint = (
            f"; name the GGUF file itself: {folder / ggufs[0]}" if ggufs else "; expected a Hugging Face model folder"
        )
        raise InputError(f"{folder} has no config.json{hint}")
    # transformers prefers these over the weights beside them, and an adapter's base model would come from the hub
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} is an adapter (adapter_config.json); merge it into its base model and save that")
    if any(folder.glob("shard-*.safetensors")):
        raise InputError(f"{folder} is a distributed checkpoint (shard-*.safetensors); save it as {WEIGHTS} first")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            _refuse_kernels(folder / name, read_json(folder / name))
    config = read_json(folder / "config.json")
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{folder} is quantized (quantization_config in config.json); only plain safetensors weights and GGUF files"
            " are read: dequantize it first"
        )
    if config.get("transformers_weights") not in (None, WEIGHTS, WEIGHTS_INDEX):
        raise InputError(f"{folder / 'config.json'} names other weight files (transformers_weights); remove that field")


def _refuse_kernels(path: Path, config: dict[str, Any]) -> None:
    """Refuse a config any of whose `…_implementation` fields, at any depth, names something on the hub.

    transformers reads such a name (`org/repository`) as compiled code to fetch and run.
    """
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        field, value = pending.pop()
        if isinstance(value, dict):
            pending += [(key if "implementation" in key else field, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [(field, inner) for inner in value]
        elif field and isinstance(value, str) and "/" in value:
            raise InputError(
                f"{path}: {field} names {value[:80]!r}, code on the hub that would be fetched and run; nothing was:"
                " remove that field"
            )
