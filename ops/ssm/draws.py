"""Inputs for the recurrent ops: ordinary ones, nasty ones, and such that the answer is exactly representable."""

import numpy as np

from ..cases import Arrays, Case
from ..shapes import parse

Rng = np.random.Generator
FORGET = -1024.0  # exp of it is 0 in any precision, and sums of it are exact


def starting_with(dims: str, shapes: str) -> tuple[str, ...]:
    """The arguments whose dimensions begin like that: `b t` is what comes token by token."""
    begin = tuple(dims.split())
    return tuple(name for name, contract in parse(shapes).items() if contract.dims[: len(begin)] == begin)


def fill_padding(x: np.ndarray, lengths: np.ndarray, value: float) -> np.ndarray:
    """X [b t ...] with `value` from lengths [b] on."""
    padding = np.arange(x.shape[1]) >= lengths[:, None]
    return np.where(padding.reshape(*padding.shape, *[1] * (x.ndim - 2)), value, x)


def only(case: Case, required: Arrays, optional: Arrays) -> Arrays:
    """The arrays of a case: the required ones, and of the optional ones those that it names."""
    return required | {name: array for name, array in optional.items() if name in case.inputs}


def whole(rng: Rng, largest: int, *shape: int) -> np.ndarray:
    """Whole numbers up to `largest` in size."""
    return rng.integers(-largest, largest + 1, shape).astype(np.float64)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw_lengths(case: Case, rng: Rng) -> np.ndarray:
    """Anything from no token to all of t."""
    return rng.integers(case.sizes["t"] + 1, size=case.sizes["b"], dtype=np.int32)


def draw_conv(case: Case, rng: Rng) -> Arrays:
    """Everything normal."""
    b, t, i, w = (case.sizes[letter] for letter in "btiw")
    required = {"x": rng.normal(size=(b, t, i)), "weight": rng.normal(size=(i, w))}
    optional = {"bias": rng.normal(size=i), "state": rng.normal(size=(b, w - 1, i))}
    return only(case, required, optional | {"lengths": draw_lengths(case, rng)})


def exact_conv(case: Case, rng: Rng) -> Arrays:
    """Small whole numbers."""
    b, t, i, w = (case.sizes[letter] for letter in "btiw")
    required = {"x": whole(rng, 4, b, t, i), "weight": whole(rng, 2, i, w)}
    optional = {"bias": whole(rng, 8, i), "state": whole(rng, 4, b, w - 1, i)}
    return only(case, required, optional | {"lengths": draw_lengths(case, rng)})


def ssm_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The shapes of Mamba-1 (sizes b t i n) or Mamba-2 (sizes b t g r k n)."""
    size = case.sizes
    b, t, n = size["b"], size["t"], size["n"]
    if "i" in size:
        i = size["i"]
        rates, x, B, state = (i, n), (b, t, i), (b, t, n), (b, i, n)
    else:
        i = size["g"] * size["r"]
        rates, x, B, state = (i,), (b, t, i, size["k"]), (b, t, size["g"], n), (b, i, size["k"], n)
    return {"x": x, "dt": (b, t, i), "A": rates, "B": B, "C": B, "D": (i,), "dt_bias": (i,), "state": state}


def draw_ssm(case: Case, rng: Rng) -> Arrays:
    """Steps of 0.001 to 1 (before the bias), rates around -1, -2 … as Mamba begins with them."""
    shape = ssm_shapes(case)
    arrays: Arrays = {name: rng.normal(size=shape[name]) for name in ("x", "B", "C", "D", "state")}
    steps = np.exp(rng.uniform(np.log(0.001), 0, shape["dt"]))
    softplus = bool(case.options.get("softplus"))
    arrays["dt"] = np.log(np.expm1(steps)) if softplus else steps
    arrays["dt_bias"] = rng.normal(size=shape["dt_bias"]) if softplus else rng.uniform(0, 0.5, shape["dt_bias"])
    arrays["A"] = -rng.uniform(0.5, 1.5, shape["A"]) * np.arange(1, shape["A"][-1] + 1)
    arrays["lengths"] = draw_lengths(case, rng)
    return only(case, {name: arrays[name] for name in ("x", "dt", "A", "B", "C")}, arrays)


def exact_ssm(case: Case, rng: Rng) -> Arrays:
    """Small whole numbers, decays of 1 or 0, steps of 0, 1 and 2 (0 or 64 where they go through a softplus)."""
    shape = ssm_shapes(case)
    arrays: Arrays = {name: whole(rng, 1, *shape[name]) for name in ("x", "B", "C", "D", "state")}
    if case.options.get("softplus"):
        arrays["dt"] = rng.choice([-4096.0, 64.0], shape["dt"])  # softplus makes exactly 0 and 64 of them
        arrays["dt_bias"] = np.zeros(shape["dt_bias"])
    else:
        arrays["dt"] = rng.integers(0, 3, shape["dt"]).astype(np.float64)
        arrays["dt_bias"] = rng.integers(0, 2, shape["dt_bias"]).astype(np.float64)
    arrays["A"] = rng.choice([0, FORGET], shape["A"])
    arrays["lengths"] = draw_lengths(case, rng)
    return only(case, {name: arrays[name] for name in ("x", "dt", "A", "B", "C")}, arrays)


def draw_delta(case: Case, rng: Rng) -> Arrays:
    """Keys of length 1, write strengths over all of (0, 1), and decays from hardly to half a token."""
    b, t, h, k, j = (case.sizes[letter] for letter in "bthkj")
    required = {
        "q": rng.normal(size=(b, t, h, k)),
        "k": unit(rng.normal(size=(b, t, h, k))),
        "v": rng.normal(size=(b, t, h, j)),
        "log_decay": -np.exp(rng.uniform(np.log(0.001), 0, (b, t, h))),
        "beta": rng.uniform(size=(b, t, h)),
    }
    return only(case, required, {"state": rng.normal(size=(b, h, k, j)), "lengths": draw_lengths(case, rng)})


def exact_delta(case: Case, rng: Rng) -> Arrays:
    """Keys and queries along one axis, write strengths and decays of 0 or 1, and small whole values."""
    b, t, h, k, j = (case.sizes[letter] for letter in "bthkj")
    exact_scale = np.log2(case.options.get("scale", k**-0.5)).is_integer()  # else only the state can be exact
    required = {
        "q": np.eye(k)[rng.integers(k, size=(b, t, h))] * exact_scale,
        "k": np.eye(k)[rng.integers(k, size=(b, t, h))] * rng.choice([-1, 1], (b, t, h, 1)),
        "v": whole(rng, 4, b, t, h, j),
        "log_decay": rng.choice([0, 0, 0, FORGET], (b, t, h)),
        "beta": rng.choice([0.0, 1.0], (b, t, h)),
    }
    return only(case, required, {"state": whole(rng, 4, b, h, k, j), "lengths": draw_lengths(case, rng)})


# Nasty inputs. Each is a place where some correct-looking way to compute breaks.


def poisoned_padding(shapes: str, arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """What is no token is NaN."""
    if "lengths" not in arrays:
        return arrays
    times = starting_with("b t", shapes)
    return arrays | {name: fill_padding(arrays[name], arrays["lengths"], np.nan) for name in times}


def large_term(name: str, arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """One term of each sum for y a hundred times as large as the others."""
    x = np.array(arrays[name])
    x[..., 0] *= 100
    return arrays | {name: x}


def tiny(name: str, arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Numbers whose squares underflow."""
    return arrays | {key: arrays[key] * 2.0**-100 for key in (name, "bias", "state") if key in arrays}


def all_forgotten(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Decays of e^-50 and less: dividing by their product, or exp before a mask, overflows."""
    return arrays | {"A": arrays["A"] * 1e5}


def all_remembered(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Decays of 1 but for a rounding: nothing is lost, and errors add up."""
    return arrays | {"A": arrays["A"] * 2.0**-20}


def delta_forgotten(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Decays of e^-20 and less, given as logarithms."""
    return arrays | {"log_decay": rng.uniform(-40, -20, arrays["log_decay"].shape)}


def delta_remembered(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """No decay at all: only new writes replace old ones."""
    return arrays | {"log_decay": np.zeros_like(arrays["log_decay"])}


def long_steps(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Softplus of 90 and more, whose exp is no float32."""
    return arrays | {"dt": rng.uniform(95, 105, arrays["dt"].shape)} if case.options.get("softplus") else arrays


def similar_keys(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Keys at about 60 degrees from one another: each write disturbs all that is held."""
    return arrays | {"k": unit(arrays["k"] + 0.9 * unit(rng.normal(size=case.sizes["k"])))}


def empty_keys(arrays: Arrays, case: Case, rng: Rng) -> Arrays:
    """Some keys and queries are zero: nothing is written, nothing is read."""
    some = rng.random((*arrays["k"].shape[:3], 1)) < 0.5
    return arrays | {"k": np.where(some, 0, arrays["k"]), "q": np.where(some, 0, arrays["q"])}
