"""Hugging Face folders that others quantised: read as what they are, and kept in few bits where that is possible.

`quantization_config` in config.json names the method and its settings; a method is a function from those to a
`layouts.Layout`. `Prequantised` answers for the tensors that were quantised under the names and in the shapes they
had before, so that an architecture's name map holds as it is. On top of that, an entry of such a map that only puts
rows in order does the same to rows of codes and to rows of scales: so a matrix made of several, like queries, keys
and values, is put together without being decoded.

What a format says about activations is not followed: they stay in float32.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ..archs.tensors import (
    ByPart,
    Changed,
    Entry,
    Experts,
    HalfSplit,
    Index,
    Shape,
    Stack,
    Tensor,
    Transposed,
    View,
    last_two_swapped,
    row_range,
)
from ..blocks.params import stacked
from ..config import Fields
from ..errors import UserError
from ..model import Model
from ..quant.coded import Coded
from .layouts import MXFP4, Layout, Matrix, Packed, Tiles
from .safetensors import Safetensors

KEY = "quantization_config"
ROW_BY_ROW = (Tensor, Stack, Experts, HalfSplit, ByPart, Transposed)  # entries that change no number


def layout_of(values: dict[str, Any], where: str) -> Layout | None:
    """How config.json says that matrices were quantised, taken out of its entries; None if they were not."""
    if values.get(KEY) is None:
        return None
    fields = Fields(values, where).group(KEY)
    del values[KEY]
    fields.only("quant_method", *METHODS)
    method = fields.text("quant_method")
    fields.only("method", method)
    fields.only("pack_dtype", "int32")
    layout = METHODS[method](fields)
    fields.finish(HARMLESS)
    return layout


# Which modules were left as they are is seen from their tensors; the rest is about how scales were found, and with
# which kernels others multiply.
HARMLESS = """
    modules_to_not_convert modules_to_convert ignored_layers ignore lm_head modules_in_block_to_quantize
    block_name_to_quantize module_name_preceding_first_block desc_act static_groups act_group_aware hyb_act sym
    true_sequential damp_percent damp_auto_increment mse dataset tokenizer model_seqlen model_name_or_path
    model_file_base_name batch_size pad_token_id cache_block_outputs meta backend use_exllama disable_exllama
    exllama_config max_input_length use_cuda_fp16 do_fuse fuse_max_seq_len modules_to_fuse dequantize
    global_compression_ratio version registry_requires_subclass run_compressed
""".split()


def gptq(fields: Fields) -> Layout:
    """GPTQ as AutoGPTQ and GPTQModel write it; zero points of its first version are one less than meant."""
    for key in ("checkpoint_format", "format"):
        fields.only(key, "gptq", "gptq_v2")
    fields.only("is_marlin_format", False)
    skips = all(pattern.startswith("-:") for pattern in fields.group("dynamic").values)
    fields.require(skips, "dynamic", "patterns of modules to leave out alone, which begin with -:")
    second = "gptq_v2" in (fields.values.get("checkpoint_format"), fields.values.get("format"))
    bits = bits_of(fields, 2, 4, 8)
    return Packed(f"GPTQ{bits}", bits, group_of(fields), offset=0 if second else 1)


def awq(fields: Fields) -> Layout:
    """AWQ as AutoAWQ writes it for its kernel `gemm`."""
    for key in ("version", "format", "checkpoint_format"):
        fields.only(key, "gemm", "GEMM")
    fields.only("zero_point", True)
    return Packed("AWQ4", bits_of(fields, 4), group_of(fields), across=True, places=(0, 4, 1, 5, 2, 6, 3, 7))


def fp8(fields: Fields) -> Layout:
    """e4m3 in tiles, as in DeepSeek-V3, or with one scale a matrix; `weight_scale_inv` is a factor all the same."""
    fields.only("fmt", "e4m3")
    fields.only("activation_scheme", "dynamic", "static")
    fields.only("scale_fmt", "float", "ue8m0")
    fields.only("expert_dtype", "fp8")
    tile = tile_of(fields, "weight_block_size") if fields.has("weight_block_size") else (None, None)
    return Tiles("FP8", "F8_E4M3", tile, ("weight_scale_inv", "weight_scale"))


def mxfp4(fields: Fields) -> Layout:
    """gpt-oss's own format, which has nothing to choose."""
    return MXFP4()


def compressed_tensors(fields: Fields) -> Layout:
    """What llm-compressor writes, if one scheme holds for all matrices that it changed."""
    fields.only("format", "pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
    fields.only("quantization_status", "compressed", "frozen")
    for key in ("sparsity_config", "transform_config"):
        fields.only(key, {})
    schemes = fields.group("config_groups")
    fields.require(len(schemes.values) == 1, "config_groups", "one scheme for all")
    scheme = schemes.group(*schemes.values)
    scheme.only("format", fields.text("format"))
    weights = scheme.group("weights")
    scheme.finish(("targets", "input_activations"))
    weights.only("dynamic", False)
    layout = scheme_of(weights, fields.text("format"))
    weights.finish(("actorder", "observer", "observer_kwargs", "group_size", "block_structure"))
    return layout


def scheme_of(weights: Fields, format: str) -> Layout:
    """The layout of a scheme's weights."""
    weights.only("strategy", "tensor", "channel", "group", "block")
    strategy = weights.text("strategy")
    group = weights.integer("group_size") if strategy == "group" else None
    if format == "pack-quantized":
        weights.only("type", "int")
        weights.only("strategy", "channel", "group")
        bits, symmetric = bits_of(weights, 4, 8, key="num_bits"), weights.flag("symmetric", True)
        names = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
        return Packed(f"CT{bits}", bits, group, *names, in_first=False, symmetric=symmetric)
    weights.only("symmetric", True)
    weights.only("type", "float" if format == "float-quantized" else "int")
    bits_of(weights, 8, key="num_bits")
    block = tile_of(weights, "block_structure") if strategy == "block" else (None, None)
    tile = {"tensor": (None, None), "channel": (1, None), "group": (1, group), "block": block}[strategy]
    return Tiles("CT8", "F8_E4M3" if format == "float-quantized" else "I8", tile)


METHODS: dict[str, Callable[[Fields], Layout]] = {
    "awq": awq,
    "compressed-tensors": compressed_tensors,
    "fp8": fp8,
    "gptq": gptq,
    "mxfp4": mxfp4,
}


def bits_of(fields: Fields, *known: int, key: str = "bits") -> int:
    """Of a code."""
    fields.only(key, *known)
    return fields.integer(key)


def group_of(fields: Fields) -> int | None:
    """How many columns share a scale; None for all, which files write as -1."""
    group = fields.integer("group_size", least=-1)
    fields.require(group != 0, "group_size", "a whole number above 0, or -1")
    return None if group == -1 else group


def tile_of(fields: Fields, key: str) -> tuple[int, int]:
    """The height and width of the tiles that share a scale."""
    height, width = fields.numbers(key, 2)
    fields.require(height == int(height) and width == int(width), key, "a list of 2 whole numbers")
    return int(height), int(width)


class Prequantised:
    """A folder's tensors as a TensorSource, what was quantised under its old name; `matrices` tells which.

    UserError if there are none: then config.json speaks of another file.
    """

    def __init__(self, file: Safetensors, layout: Layout):
        self.file, self.where, self.matrices = file, file.where, layout.matrices(file)
        if not self.matrices:
            raise UserError(
                f"{file.where}: config.json has a {KEY}, but no tensor is in few bits as it says; take the field "
                "out if all are plain numbers"
            )
        pieces = {name for matrix in self.matrices.values() for name in matrix.names}
        plain = [name for name in file.names() if name not in pieces and not self.is_beside(name)]
        self._names = dict.fromkeys([*plain, *self.matrices])

    def is_beside(self, name: str) -> bool:
        """Whether a tensor belongs to a matrix and changes nothing here: a scale for activations, a bias of zeros.

        AutoGPTQ gave every layer such a bias for a while. An architecture that asks for it still gets it.
        """
        stem, _, last = name.rpartition(".")
        if f"{stem}.weight" not in self.matrices:
            return False
        if last == "bias":
            return not np.any(self.file.read(name))
        return last in ("activation_scale", "input_scale", "weight_shape")

    def names(self):
        return self._names.keys()

    def shape(self, name: str) -> Shape:
        return self.part_shape(name, None)

    def dtype(self, name: str) -> str:
        return self.matrices[name].kind if name in self.matrices else self.file.dtype(name)

    def nbytes(self, name: str) -> int:
        pieces = self.matrices[name].names if name in self.matrices else (name,)
        return sum(self.file.nbytes(piece) for piece in pieces)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        if name not in self.matrices:
            return self.file.read(name, index)
        return self.piece(name, index, self.matrices[name].shape[-1], decoded)

    def part_shape(self, name: str, p: int | None) -> Shape:
        """The shape of a tensor, or of the p-th part of one that was quantised."""
        if name not in self.matrices:
            return self.file.shape(name)
        matrix = self.matrices[name]
        columns = matrix.shape[-1] if p is None else matrix.no_rows[p].shape[-1]
        shape = (*matrix.shape[:-1], columns)
        return last_two_swapped(shape) if matrix.in_first else shape

    def piece(self, name: str, index: Index, width: int, read: Callable[[Matrix, Index], np.ndarray]) -> np.ndarray:
        """What read(matrix, a slice for each axis) gives of rows of so many numbers, as the file has them."""
        matrix = self.matrices[name]
        index = (*index, *[slice(None)] * (len(matrix.shape) - len(index)))
        index = last_two_swapped(index) if matrix.in_first else index
        ranges = [row_range(some, size) for some, size in zip(index, (*matrix.shape[:-1], width), strict=True)]
        found = read(matrix, tuple(slice(some.start, some.stop) for some in ranges))
        return found.swapaxes(-1, -2) if matrix.in_first else found


def decoded(matrix: Matrix, index: Index) -> np.ndarray:
    """A piece in float32: the definition of what a file says."""
    counts, total, (*rows, columns) = [some.stop - some.start for some in index], matrix.shape[-1], index
    if 0 in counts:
        return np.zeros(counts, np.float32)
    widths = [part.shape[-1] for part in matrix.no_rows]
    units = (total // math.gcd(total, width) for width in widths if width > 1)
    unit = math.lcm(matrix.storage.multiple, 8, *units)  # columns that are decoded together
    first, last = columns.start // unit * unit, min(-(-columns.stop // unit) * unit, total)
    cover = [slice(first * width // total, -(-last * width // total)) for width in widths]
    parts: Any = tuple(read((*rows, some)) for read, some in zip(matrix.parts(), cover, strict=True))
    found = np.asarray(dense(Coded(parts, matrix.storage, last - first)))
    return found[..., columns.start - first : columns.stop - first]


dense = jax.jit(Coded.dense)


@dataclass(frozen=True)
class Part:
    """One part of every matrix as a source of its own, for entries that put rows in order."""

    source: Prequantised
    p: int

    def names(self):
        return self.source.names()

    def shape(self, name: str) -> Shape:
        return self.source.part_shape(name, self.p)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        width = self.source.matrices[name].no_rows[self.p].shape[-1]
        return self.source.piece(name, index, width, lambda matrix, index: matrix.parts()[self.p](index))


def parameter(entry: Entry, view: View) -> Any:
    """What an entry gives: float32, or where it can stay as it is a matrix in few bits."""
    kept = coded(entry, view, lambda part, dtype: jax.device_put(np.ascontiguousarray(entry.read(part))))
    return jax.device_put(entry.read(view)) if kept is None else kept


def like(entry: Entry, view: View, whole: jax.ShapeDtypeStruct) -> Any:
    """The same as shapes; `whole` is that of float32."""
    kept = coded(entry, view, lambda part, dtype: jax.ShapeDtypeStruct(entry.shape(part), dtype))
    return whole if kept is None else kept


def coded(entry: Entry, view: View, make: Callable[[View, np.dtype], Any]) -> Coded | None:
    """A weight of what make(view of a part, dtype) gives; None where one in few bits cannot be had."""
    source = view.source
    if not isinstance(source, Prequantised) or obstacle(entry, view) is not None:
        return None
    first = source.matrices[entry.names(view)[0]]
    parts = [make(replace(view, source=Part(source, p)), part.dtype) for p, part in enumerate(first.no_rows)]
    return Coded(tuple(parts), first.storage, first.shape[-1])


def obstacle(entry: Entry, view: View) -> str | None:
    """Why a parameter cannot stay in few bits; None if it can, UserError if its tensors lie the wrong way round."""
    source: Any = view.source
    found = [source.matrices.get(name) for name in entry.names(view)]
    if not any(found):
        return "was never in few bits"
    for name, matrix in zip(entry.names(view), found, strict=True):
        if matrix and matrix.in_first != is_turned(entry):
            raise UserError(
                f"{source.where}: tensor {name} is in {matrix.kind}, which is not supported for {view.config.arch}"
            )
    axes = max(len(matrix.shape) for matrix in found if matrix)
    if not all(isinstance(step, ROW_BY_ROW) and getattr(step, "axis", 0) < axes - 1 for step in steps(entry)):
        return "not only its rows are put in order"
    if len({(one.storage, one.shape[-1]) if one else None for one in found}) > 1:
        return "it is put together from several in different formats"
    if found[0].bits >= 32:
        return "its columns have scales in no order (act-order)"
    return None


def widened(checkpoint: Any) -> dict[str, list[str]]:
    """The tensors of a checkpoint that are in few bits there and float32 in memory, by the reason."""
    source, reasons = checkpoint.source, {}
    if not isinstance(source, Prequantised):
        return reasons

    def get(name: str, layer: int | None, *shapes: Shape, init):
        entry, view = checkpoint.entry(name), View(source, checkpoint.config, layer)
        if reason := obstacle(entry, view):
            names = [one for one in entry.names(view) if one in source.matrices]
            reasons.setdefault(reason, []).extend(names)
        return stacked(shapes)

    Model.build(checkpoint.config, get)
    return {reason: names for reason, names in reasons.items() if names}


def steps(entry: Any) -> Iterator[Any]:
    """An entry and all that it is made of."""
    yield entry
    inner = entry.entries if isinstance(entry, Stack) else [entry.entry] if isinstance(entry, Changed) else []
    for one in inner:
        yield from steps(one)


def is_turned(entry: Any) -> bool:
    """Whether an entry gives the transpose of what is in the file."""
    if isinstance(entry, Stack):
        return is_turned(entry.entries[0])
    return isinstance(entry, Changed) and is_turned(entry.entry) != isinstance(entry, Transposed)
