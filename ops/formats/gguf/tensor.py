"""Whole tensors to GGUF bytes and back, checked: the front of `GGUF_TYPES`."""

import numpy as np

from . import GGUF_TYPES, GGUFType

PIECE = 1 << 16  # values worked on at once: more would fall out of the cache


def gguf_type(name: str) -> GGUFType:
    """A type by name; ValueError lists those there are."""
    for form in GGUF_TYPES.values():
        if form.name == name:
            return form
    raise ValueError(f"type is {name!r}, expected one of {', '.join(form.name for form in GGUF_TYPES.values())}")


def encode_gguf(x: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [..., n] -> uint8 [..., bytes] of n / values blocks of `size` bytes of the type `name`.

    `importance` [..., n], or of fewer axes and then of every row alike, weighs squared errors; only types that
    weigh them take it. What has importance 0 may become any number.
    """
    form, x = gguf_type(name), np.asarray(x)
    if x.dtype != np.float32:
        raise ValueError(f"encode_gguf: x is {x.dtype}, expected float32")
    check_shape("encode_gguf", "x", x.shape, form.values, f"values ({name})")
    largest = max(float(np.max(x)), -float(np.min(x)))
    if not np.isfinite(largest):
        raise ValueError("encode_gguf: x holds NaN or infinity, expected finite numbers")
    if largest > form.largest:
        raise ValueError(f"encode_gguf: x reaches {largest:.6g}, expected at most {form.largest:.6g} for {name}")
    blocks = np.ascontiguousarray(x).reshape(-1, form.values)
    weights = None if importance is None else checked_importance(importance, x.shape, form).reshape(blocks.shape)
    coded = np.empty((len(blocks), form.size), np.uint8)
    step = max(PIECE // form.values, 1)
    for first in range(0, len(blocks), step):
        piece = slice(first, first + step)
        coded[piece] = form.encode(blocks[piece]) if weights is None else form.encode(blocks[piece], weights[piece])
    return coded.reshape(*x.shape[:-1], -1)


def decode_gguf(data: np.ndarray, name: str) -> np.ndarray:
    """uint8 [..., bytes] -> float32 [..., n]; damaged scales, infinite or NaN, give such numbers."""
    form, data = gguf_type(name), np.asarray(data)
    if data.dtype != np.uint8:
        raise ValueError(f"decode_gguf: data is {data.dtype}, expected uint8")
    check_shape("decode_gguf", "data", data.shape, form.size, f"bytes ({name})")
    blocks = np.ascontiguousarray(data).reshape(-1, form.size)
    x = np.empty((len(blocks), form.values), np.float32)
    step = max(PIECE // form.values, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, len(blocks), step):
            x[first : first + step] = form.decode(blocks[first : first + step])
    return x.reshape(*data.shape[:-1], -1)


def check_shape(op: str, what: str, shape: tuple[int, ...], each: int, unit: str) -> None:
    """ValueError unless there are whole blocks, and at least one."""
    if not shape or 0 in shape or shape[-1] % each:
        raise ValueError(
            f"{op}: {what} has shape {list(shape)}, expected rows of a multiple of {each} {unit} and no empty axis"
        )


def checked_importance(importance: np.ndarray, shape: tuple[int, ...], form: GGUFType) -> np.ndarray:
    """Importance as float32 of the shape of x; ValueError if the type has no use for it or it is no weight."""
    if not form.weighs:
        names = ", ".join(one.name for one in GGUF_TYPES.values() if one.weighs)
        raise ValueError(f"encode_gguf: importance is given for {form.name}, expected it only for {names}")
    weights = np.asarray(importance)
    if weights.dtype != np.float32:
        raise ValueError(f"encode_gguf: importance is {weights.dtype}, expected float32")
    if weights.ndim == 0 or weights.shape != shape[len(shape) - weights.ndim :]:
        raise ValueError(
            f"encode_gguf: importance has shape {list(weights.shape)}, expected the last axes of {list(shape)}"
        )
    if not np.all(np.isfinite(weights)) or np.min(weights) < 0:
        raise ValueError(
            "encode_gguf: importance holds negative, infinite or NaN weights, expected finite ones >= 0"
        )
    return np.ascontiguousarray(np.broadcast_to(weights, shape))
