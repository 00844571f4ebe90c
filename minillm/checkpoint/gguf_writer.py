"""Writing GGUF files, version 3, as llama.cpp reads them: all of a model in float32, or its matrices in fewer bits.

The tensors are those of the architecture's `GGUF_TENSORS`, turned around. Before a byte reaches the disk the reader
of checkpoints opens the file that would come out: it has to give the same config and the same shapes, so that what
GGUF has no words for is refused and never lost.
"""

import math
import struct
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..archs import Arch
from ..archs.tensors import Entry, View
from ..archs.to_gguf import plain, rope_tensors
from ..blocks.params import Shape
from ..config import Config, shown
from ..errors import UserError
from ..folders import whole
from ..model import Model
from ..ops import GGUF_TYPES, decode_gguf
from ..ops.formats.gguf.tensor import gguf_type
from ..quant import is_weight
from ..quant.storage import GGUF as Coding
from .gguf import GGUF
from .gguf_file import ARRAY, SCALARS, STRING, Cursor, read_metadata
from .loader import END_KEYS, from_gguf
from .parameters import Request, parameters
from .source import Index, missing

ALIGNMENT = 32
KINDS = {code: kind for kind, code in SCALARS.items()}
FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
FILE_TYPES = {"F32": 0, "F16": 1}  # `general.file_type`: what most tensors are
NUMBERS = {form.name: number for number, form in GGUF_TYPES.items()}
MIXED = 1024  # what that is where it is said by each tensor alone: "guessed", in llama.cpp

# What llama.cpp wants in float32 though it is a matrix: routers, norms of groups, convolutions, positions.
ALWAYS_F32 = ("ffn_gate_inp", "_norm", "ssm_conv1d", "position_embd")

NO_TOKENIZER = {"tokenizer.ggml.model": "none"}


def write_gguf(
    path: str | Path,
    model: Model,
    config: Config,
    arch: Arch,
    *,
    tokenizer: Mapping[str, Any] = NO_TOKENIZER,
    dtype: Literal["F32", "F16"] = "F32",
) -> None:
    """Write a model to a GGUF file, which appears under its name once it is whole.

    config is what the model was built from, and arch its architecture; tokenizer is the metadata `tokenizer.*`,
    which `tokenizer_metadata` takes from another file, by default that of a file that has none. UserError says what
    does not fit into a GGUF file.

    Matrices that are coded as types of GGUF files are written to the byte as they are, the others as dtype.
    """
    if dtype not in FLOATS:
        raise UserError(f"dtype is {dtype!r}, expected one of: {', '.join(FLOATS)}")
    if not hasattr(arch, "gguf_metadata"):
        raise UserError(f"{path}: architecture {config.arch} cannot be written as GGUF; it has no gguf_metadata")
    if config.limited:
        raise UserError(f"{path}: the model was opened for {config.context} tokens only; open it without a context")
    ends = dict(zip(END_KEYS, config.eos, strict=False))
    coded = any(is_weight(found) for _, found in parameters(model, config))
    kind = {"general.file_type": MIXED if coded else FILE_TYPES[dtype]}
    kind |= {"general.quantization_version": 2} if coded else {}
    metadata = arch.gguf_metadata(config) | kind | ends | dict(tokenizer)
    entries = [text(key) + encoded(value) for key, value in metadata.items()]
    as_read = read_metadata(Cursor(b"".join(entries), str(path)), len(entries))
    draft = Draft(str(path), as_read, rope_tensors(config), dtype)
    for request, found in parameters(model, config):
        write = write_coded if is_weight(found) else write_plain
        write(request, found, draft, config, arch)
    check(draft, config, arch)
    store(Path(path), draft, entries)


def tokenizer_metadata(source: GGUF) -> dict[str, Any]:
    """What an open file says about its tokenizer."""
    return {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")}


@dataclass
class Draft:
    """A file that is not on disk yet, as a TensorSource.

    Tensors are float32 and become what `dtype` says, or they are the bytes of the type in `coded`.
    """

    where: str
    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]
    matrices: str
    coded: dict[str, str] = field(default_factory=dict)

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> Shape:
        if name not in self.tensors:
            raise missing(self.where, name)
        shape = self.tensors[name].shape
        if name not in self.coded:
            return shape
        form = gguf_type(self.coded[name])
        return (*shape[:-1], shape[-1] // form.size * form.values)

    def dtype(self, name: str) -> str:
        if name in self.coded:
            return self.coded[name]
        matrix = len(self.shape(name)) > 1 and name.endswith(".weight")
        return self.matrices if matrix and not any(part in name for part in ALWAYS_F32) else "F32"

    def nbytes(self, name: str) -> int:
        form = gguf_type(self.dtype(name))
        return math.prod(self.shape(name)) // form.values * form.size

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        self.shape(name)
        found = self.tensors[name]
        return (decode_gguf(found, self.coded[name]) if name in self.coded else found)[index]


def write_plain(request: Request, array: np.ndarray, draft: Draft, config: Config, arch: Arch) -> None:
    """Put a parameter into the tensors that hold it."""
    entry = entry_of(request, draft, arch)
    draft.tensors.update(entry.write(View(draft, config, request.layer), array, *request.shapes))


def write_coded(request: Request, weight: Any, draft: Draft, config: Config, arch: Arch) -> None:
    """Put a coded matrix into the tensors that hold it: rows of bytes go where rows of numbers would.

    So they may be parted and ordered anew, but not their columns; what is read must be what was coded.
    """
    storage = getattr(weight, "storage", None)
    if not isinstance(storage, Coding):
        raise UserError(f"{draft.where}: {request.place} is coded as no type of GGUF files; choose another recipe")
    entry, view, (data,) = entry_of(request, draft, arch), View(draft, config, request.layer), weight.parts
    data = np.asarray(data)
    pieces = entry.write(view, data, *((*shape[:-1], data.shape[-1]) for shape in request.shapes))
    draft.tensors.update(pieces)
    draft.coded.update(dict.fromkeys(pieces, storage.type))
    if not np.array_equal(entry.read(view), decode_gguf(data, storage.type), equal_nan=True):
        architecture = draft.metadata["general.architecture"]
        raise UserError(
            f"{draft.where}: llama.cpp's {architecture} architecture has the columns of {request.place} in another "
            f"order, so it cannot be written as {storage.type}; leave it as it is with {request.name}=keep"
        )


def entry_of(request: Request, draft: Draft, arch: Arch) -> Entry:
    """Where a parameter is kept; UserError if there is no place for it."""
    if request.name not in arch.GGUF_TENSORS:
        architecture = draft.metadata["general.architecture"]
        raise UserError(f"{draft.where}: llama.cpp's {architecture} architecture has no tensor for {request.name}")
    return arch.GGUF_TENSORS[request.name]


def check(draft: Draft, config: Config, arch: Arch) -> None:
    """Read the file that is about to be written; UserError unless it is the same model."""
    opened = from_gguf(draft, None, arch if arch.GGUF else None)
    as_read = replace(opened.config, arch=config.arch, context=config.context)
    found = difference(plain(config), plain(as_read), "")
    if found is not None:
        architecture = draft.metadata["general.architecture"]
        raise UserError(f"{draft.where}: llama.cpp's {architecture} architecture cannot say that {found}")
    opened.shapes()
    tokens = draft.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) != config.v:
        raise UserError(f"{draft.where}: tokenizer.ggml.tokens lists {len(tokens)} tokens, expected {config.v}")


def difference(ours: Any, read: Any, path: str) -> str | None:
    """Where two descriptions differ by more than the rounding of a float32, in words; None if nowhere."""
    if is_dataclass(ours) and type(ours) is type(read):
        names = [field.name for field in fields(ours) if field.compare]
        pairs = [(getattr(ours, name), getattr(read, name), f"{path}.{name}".lstrip(".")) for name in names]
    elif isinstance(ours, tuple) and isinstance(read, tuple) and len(ours) == len(read):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(ours, read, strict=True))]
    else:
        close = isinstance(ours, float) and isinstance(read, float) and math.isclose(ours, read, rel_tol=1e-6)
        return None if ours == read or close else f"{path} is {shown(ours)}; it would be read as {shown(read)}"
    return next((found for a, b, where in pairs if (found := difference(a, b, where))), None)


def store(path: Path, draft: Draft, entries: list[bytes]) -> None:
    """Write the file beside its place, open it, and put it there."""
    try:
        with whole(path) as part:
            with part.open("wb") as file:
                file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(draft.names()), len(entries)))
                file.write(b"".join(entries) + tensor_table(draft))
                for name in draft.names():
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    file.write(stored(draft, name).data)
            GGUF(part)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def tensor_table(draft: Draft) -> bytes:
    """Name, sizes (innermost first), type and place of each tensor."""
    table, place = b"", 0
    for name in draft.names():
        shape = draft.shape(name)[::-1]
        numbers = (len(shape), *shape, NUMBERS[draft.dtype(name)], place)
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", *numbers)
        place += draft.nbytes(name)
        place += -place % ALIGNMENT
    return table


def stored(draft: Draft, name: str) -> np.ndarray:
    """A tensor as it lies in the file; UserError if float16 cannot hold it."""
    if name in draft.coded:
        return np.ascontiguousarray(draft.tensors[name])
    array = draft.read(name)
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(array, FLOATS[draft.dtype(name)])
    if np.isinf(rounded).any() and not np.isinf(array).any():
        largest = f"a number of size {np.abs(array).max():.3g}"
        raise UserError(f"{draft.where}: tensor {name} holds {largest}, but float16 ends at 65504; write F32")
    return rounded


def text(value: str) -> bytes:
    """A string with its length in front."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def encoded(value: Any) -> bytes:
    """A metadata value behind its type; whole numbers are unsigned, as llama.cpp expects sizes and ids."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, array):
        return struct.pack("<IIQ", ARRAY, KINDS[value.typecode], len(value)) + value.tobytes()
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(text(one) for one in value)
    code = {bool: "?", float: "f"}.get(type(value), "I" if 0 <= value < 2**32 else "q")
    return struct.pack(f"<I{code}", KINDS[code], value)
