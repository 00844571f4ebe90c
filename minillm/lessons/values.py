"""A value in a few lines: what it is, its shape and dtype, its range, some of its numbers."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def is_array(value: Any) -> bool:
    """Whether value is an array of NumPy or JAX, or looks like one."""
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype")  # a module may have both


def outline(value: Any) -> str:
    """One line: an array's dtype and shape, other things cut short."""
    if is_array(value):
        return f"{value.dtype} {list(value.shape)}"
    if is_dataclass(value) and not isinstance(value, type):
        shape = getattr(value, "shape", None)
        return type(value).__name__ + ("" if shape is None else f"{list(shape)}")
    text = f"{type(value).__name__} of {len(value)}: " if isinstance(value, list | tuple | dict) else ""
    if isinstance(value, list | tuple) and any(is_array(one) or is_dataclass(one) for one in value):
        return text + ", ".join(outline(one) for one in value[:8]) + (", …" if len(value) > 8 else "")
    text += " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:199] + "…"


def description(value: Any) -> list[str]:
    """Lines on a value: an array's numbers, the fields of a dataclass, else its outline."""
    if is_array(value):
        return [outline(value), *numbers(np.asarray(value))]
    if is_dataclass(value) and not isinstance(value, type):
        return [outline(value), *(f"  {one.name}: {outline(getattr(value, one.name))}" for one in fields(value))]
    return [outline(value)]


def numbers(array: np.ndarray) -> list[str]:
    """The range of an array's numbers, and some of them."""
    some = np.array2string(array, precision=4, threshold=64, edgeitems=3, suppress_small=True, max_line_width=90)
    if array.size == 0 or array.dtype.kind not in "iufb":
        return [some]
    wide = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    odd = wide.size - finite.size
    line = f"from {finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}" if finite.size else ""
    return [", ".join(part for part in (line, f"{odd} not finite" if odd else "") if part), some]
