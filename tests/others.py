"""Folders as others quantise them: random codes by the formats' descriptions, beside what they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
E4M3 = ml_dtypes.float8_e4m3fn
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the first, the second ... of eight columns stands


class Format(NamedTuple):
    """settings: `quantization_config`; write(rng, rows, columns): tensors by the end of their names, the matrix."""

    settings: dict[str, Any]
    write: Callable[[np.random.Generator, int, int], tuple[Tensors, np.ndarray]]
    kept: str = "Coded"  # the class in which a matrix alone must end up
    multiple: int = 8  # of both sides of a matrix, so that words are full


def words(codes: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> np.ndarray:
    """Codes [a, n] -> int32 [a, n bits / 32]; the last word is filled with zeros."""
    per = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).reshape(len(codes), -1, per)
    total = np.zeros(codes.shape[:2], np.uint64)
    for i in range(per):
        total += codes[..., i].astype(np.uint64) << np.uint64(bits * (places or range(per))[i])
    return total.astype(np.uint32).view(np.int32)


def random_ints(rng: np.random.Generator, rows: int, columns: int, bits: int, group: int):
    """Codes [rows, columns], zero points and scales [rows, groups] of a random matrix of about unit rows."""
    groups, top = -(-columns // group), 2**bits
    codes, zeros = rng.integers(0, top, (rows, columns)), rng.integers(0, top, (rows, groups))
    scales = (rng.uniform(0.5, 2, (rows, groups)) / top / np.sqrt(columns)).astype(np.float16)
    return codes, zeros, scales


def gptq(bits: int, group: int, version: int = 1, act_order: bool = False) -> Format:
    """The first version has its zero points less one, modulo their range; group -1 is all columns."""

    def write(rng, rows, columns):
        size = columns if group == -1 else group
        codes, zeros, scales = random_ints(rng, rows, columns, bits, size)
        g = np.arange(columns) // size
        g = rng.permutation(g) if act_order else g
        stored = (zeros - 1) % 2**bits if version == 1 else zeros
        tensors = {"qweight": words(codes, bits).T, "qzeros": words(stored.T, bits), "scales": scales.T}
        tensors["g_idx"] = g.astype(np.int32)
        return tensors, (codes - zeros[:, g]) * scales[:, g].astype(np.float32)

    said = {"bits": bits, "group_size": group, "desc_act": act_order, "sym": False, "true_sequential": True}
    said |= {"quant_method": "gptq", "checkpoint_format": {1: "gptq", 2: "gptq_v2"}[version], "damp_percent": 0.01}
    return Format(said, write, "Dense" if act_order else "Coded", max(32 // bits, 8))


def awq(group: int) -> Format:
    def write(rng, rows, columns):
        codes, zeros, scales = random_ints(rng, rows, columns, 4, group)
        tensors = {"qweight": words(codes.T, 4, AWQ_PLACES), "qzeros": words(zeros.T, 4, AWQ_PLACES)}
        g = np.arange(columns) // group
        return {**tensors, "scales": scales.T}, (codes - zeros[:, g]) * scales[:, g].astype(np.float32)

    said = {"bits": 4, "group_size": group, "zero_point": True, "version": "gemm", "quant_method": "awq"}
    return Format(said | {"modules_to_not_convert": None}, write)


def tiled(settings: dict, tile: tuple, scale: str, dtype: Any, shape=None, scales_in: Any = np.float32) -> Format:
    """Bytes with a scale a tile, of a type; `shape` makes of the scales' shape that in the file."""
    height, width = tile

    def write(rng, rows, columns):
        if dtype == np.int8:
            codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        else:
            codes = (rng.normal(size=(rows, columns)) * 60).astype(dtype)
        tall, wide = height or rows, width or columns
        grid = -(-rows // tall), -(-columns // wide)
        scales = (rng.uniform(0.5, 2, grid) / 60 / np.sqrt(columns)).astype(scales_in)
        whole = np.repeat(np.repeat(scales.astype(np.float32), tall, 0), wide, 1)[:rows, :columns]
        scales = scales.reshape(shape(grid)) if shape else scales
        return {"weight": codes, scale: scales}, codes.astype(np.float32) * whole

    return Format(settings, write)


def fp8(*tile: int, scales_in: Any = np.float32) -> Format:
    """As DeepSeek-V3 has it; without a tile one scale a matrix."""
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    said |= {"weight_block_size": list(tile) or None, "modules_to_not_convert": ["lm_head"]}
    shape = None if tile else (lambda grid: ())
    return tiled(said, tile or (None, None), "weight_scale_inv", E4M3, shape, scales_in)


def compressed(format: str, **weights: Any) -> dict:
    """`quantization_config` of compressed-tensors."""
    weights = {"dynamic": False, "observer": "minmax", "observer_kwargs": {}, "actorder": None, **weights}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    said = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": scheme}}
    return said | {"quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None}


def packed(bits: int, group: int | None, symmetric: bool) -> Format:
    """Codes less half their range are the integers; zero points likewise, packed along the rows."""

    def write(rng, rows, columns):
        codes, zeros, scales = random_ints(rng, rows, columns, bits, group or columns)
        zeros = np.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
        g = np.arange(columns) // (group or columns)
        tensors = {"weight_packed": words(codes, bits), "weight_scale": scales}
        tensors |= {"weight_shape": np.array([rows, columns])}
        tensors |= {} if symmetric else {"weight_zero_point": words(zeros.T, bits).T}
        return tensors, (codes - zeros[:, g]) * scales[:, g].astype(np.float32)

    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    said = compressed("pack-quantized", num_bits=bits, type="int", symmetric=symmetric, **strategy)
    return Format(said, write)


def bytewise(format: str, type: str, strategy: str, dtype: Any, tile: tuple, **more: Any) -> Format:
    said = compressed(format, num_bits=8, type=type, symmetric=True, strategy=strategy, **more)
    return tiled(said, tile, "weight_scale", dtype, (lambda grid: (1,)) if strategy == "tensor" else None)


FORMATS = {
    "gptq 4": gptq(4, 16),
    "gptq 4 v2": gptq(4, -1, version=2),
    "gptq 8": gptq(8, 8),
    "gptq 2": gptq(2, 32),
    "gptq act-order": gptq(4, 8, act_order=True),
    "awq": awq(8),
    "fp8 tiles": fp8(16, 16),
    "fp8 tiles e8m0": fp8(24, 16, scales_in=ml_dtypes.float8_e8m0fnu),
    "fp8 tensor": fp8(),
    "ct int4": packed(4, 8, symmetric=True),
    "ct int4 asymmetric": packed(4, 8, symmetric=False),
    "ct int8 channel": packed(8, None, symmetric=True),
    "ct w8a8": bytewise("int-quantized", "int", "channel", np.int8, (1, None)),
    "ct fp8 tensor": bytewise("float-quantized", "float", "tensor", E4M3, (None, None)),
    "ct fp8 channel": bytewise("float-quantized", "float", "channel", E4M3, (1, None)),
    "ct fp8 block": bytewise("float-quantized", "float", "block", E4M3, (16, 24), block_structure=[16, 24]),
}


def mxfp4(rng: np.random.Generator, experts: int, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    """gpt-oss's experts: tensors by the end of their names, and the matrices [e, in, out]."""
    codes = rng.integers(0, 16, (experts, rows, columns // 32, 16, 2)).astype(np.uint8)
    scales = rng.integers(121, 125, (experts, rows, columns // 32)).astype(np.uint8)
    matrices = E2M1[codes].reshape(*scales.shape, 32) * np.exp2(scales[..., None].astype(np.float32) - 127)
    tensors = {"_blocks": codes[..., 0] | codes[..., 1] << 4, "_scales": scales}
    return tensors, matrices.reshape(experts, rows, columns).swapaxes(1, 2)


def quantise(
    folder: Path, target: Path, format: Format, *, chosen: str = "_proj.weight", seed: int = 0
) -> list[str]:
    """Write target / "few", a folder in a format, and target / "plain", its meaning in float32.

    All matrices whose names hold one of the words in `chosen` are replaced, if their sides are
    such that words are full: their names.
    """
    rng, tensors = np.random.default_rng(seed), load_file(folder / "model.safetensors")
    few, plain, done = dict(tensors), dict(tensors), []
    for name, w in tensors.items():
        if (
            w.ndim == 2
            and any(word in name for word in chosen.split())
            and not any(n % format.multiple for n in w.shape)
        ):
            pieces, matrix = format.write(rng, *w.shape)
            plain[name] = matrix.astype(np.float32)
            del few[name]
            few |= {name.removesuffix("weight") + end: piece for end, piece in pieces.items()}
            done.append(name)
    values = json.loads((folder / "config.json").read_text())
    save(target / "few", values | {"quantization_config": format.settings}, few)
    save(target / "plain", values, plain)
    return done


def save(folder: Path, values: dict, tensors: Tensors) -> Path:
    """A folder of a config and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(
        {name: np.ascontiguousarray(t) if t.ndim else t for name, t in tensors.items()},
        folder / "model.safetensors",
    )
    return folder
