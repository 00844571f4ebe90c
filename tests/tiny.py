"""The tiny random checkpoints in goldens/ that transformers wrote, one or several for each family."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from minillm.archs import find_hf
from minillm.config import Config, Fields

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem.removeprefix("tiny_") for path in GOLDENS.glob("tiny_*.npz"))
FAMILIES = sorted({name.rpartition("_")[0] for name in NAMES})
SCRIPT = runpy.run_path(str(GOLDENS / "make_tiny.py"))

# The largest difference of a logit, as a part of the largest logit. On these inputs transformers in float32 is
# about 2e-6 away from itself in float64; a rope_theta off by one part in 10,000 shows as 5e-5 to 4e-3.
RELATIVE = 1e-5


def quick(*families: str) -> list:
    """All families for a test that takes long: these always, as they differ most; the others if slow."""
    assert set(families) <= set(FAMILIES)
    return [pytest.param(family, marks=() if family in families else pytest.mark.slow) for family in FAMILIES]


def unpacked(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Write the files of a golden into folder; its other arrays."""
    with np.load(GOLDENS / f"tiny_{name}.npz") as file:
        arrays = dict(file)
    for key in [key for key in arrays if key.startswith("files/")]:
        (folder / Path(key).name).write_bytes(arrays.pop(key).tobytes())
    return arrays


def settings(name: str, folder: Path) -> dict:
    """The config.json of a golden."""
    unpacked(name, folder)
    return json.loads((folder / "config.json").read_text())


def without(values: dict, *keys: str, **more) -> dict:
    """The values but for these keys, and more."""
    return {key: value for key, value in values.items() if key not in keys} | more


def config(values: dict, context: int | None = None) -> Config:
    """What the values of a config.json describe."""
    return find_hf(values["model_type"], "config.json").config_from_hf(Fields(values, "config.json", context))


def context(family: str, case: int) -> int | None:
    """For how many tokens the checkpoint is to be opened."""
    return SCRIPT["FAMILIES"][family][case].get("context")


def assert_agrees(found: np.ndarray, expected: np.ndarray) -> None:
    """Logits [t, v] agree to RELATIVE."""
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= RELATIVE, f"logits differ by {error:.1e} of the largest"
