"""Laws of the recurrent ops: how time may be cut, and what must not know of what.

`times` names the arrays whose axis 1 is time. Pieces of time are made by `lengths` wherever possible and not by
slicing, so that a compiled kernel sees one shape. Both sides are (y, state), or only y.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Law
from ..shapes import parse
from .draws import FORGET, fill_padding, starting_with

Options = Mapping[str, Any]
Rng = np.random.Generator
Sides = tuple[tuple, tuple] | None


def time_laws(shapes: str, linear: str, unset: tuple[str, ...] = ()) -> tuple[Law, ...]:
    """What holds for all of them. Results are linear in `linear` and the state, up to a constant from `unset`."""
    times = starting_with("b t", shapes)
    return (
        Law("two parts in a row are the whole", partial(two_parts, times)),
        Law("token by token is all at once", partial(token_by_token, times)),
        Law("the future changes nothing", partial(halved_future, times)),
        Law("padding is not looked at", partial(poisoned, times), exact=True),
        Law("padding gives zero and leaves the state alone", partial(padded, times), exact=True),
        Law("parts of the input add up", partial(superposed, linear, unset)),
    )


def state_laws(shapes: str, value: str, forget: Callable[[Arrays, int], Arrays | None]) -> tuple[Law, ...]:
    """What holds for those that list states and decay: `forget` makes all decays of one token 0."""
    return (
        Law("the states listed are the states left behind", partial(listed, starting_with("b t", shapes))),
        Law("decay zero forgets the past", partial(forgotten, value, forget), exact=True),
    )


def real_lengths(times: tuple[str, ...], arrays: Arrays) -> np.ndarray:
    """The lengths [b] given, or all of t."""
    b, t = arrays[times[0]].shape[:2]
    return arrays.get("lengths", np.full(b, t, np.int32))


def last_only(options: Options) -> Options:
    """The same options, for the last state."""
    return {name: value for name, value in options.items() if name != "return_states"}


def two_parts(times: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """Up to a cut, then the rest moved to the front, with the state handed on."""
    lengths, t = real_lengths(times, arrays), arrays[times[0]].shape[1]
    cut, options = int(rng.integers(t + 1)), last_only(options)
    first, state = call(**arrays | {"lengths": np.minimum(lengths, cut)}, **options)
    moved = {name: np.roll(arrays[name], -cut, axis=1) for name in times}
    then, state = call(**arrays | moved | {"lengths": np.maximum(lengths - cut, 0), "state": state}, **options)
    y = np.concatenate([first[:, :cut], then[:, : t - cut]], axis=1)
    return call(**arrays, **options), (y, state)


def token_by_token(times: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """From some token on, up to four steps of one token, as in decoding."""
    lengths, t = real_lengths(times, arrays), arrays[times[0]].shape[1]
    start, options = int(rng.integers(t)), last_only(options)
    stop, ys = min(start + 4, t), []
    whole, end = call(**arrays | {"lengths": np.minimum(lengths, stop)}, **options)
    _, state = call(**arrays | {"lengths": np.minimum(lengths, start)}, **options)
    for now in range(start, stop):
        token = {name: arrays[name][:, now : now + 1] for name in times}
        real = (now < lengths).astype(np.int32)
        y, state = call(**arrays | token | {"lengths": real, "state": state}, **options)
        ys.append(y)
    return (whole[:, start:stop], end), (np.concatenate(ys, axis=1), state)


def listed(times: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """The state listed for a token is the one left behind by a text that ends there."""
    lengths, now = real_lengths(times, arrays), int(rng.integers(arrays[times[0]].shape[1]))
    y, states = call(**arrays, **{**options, "return_states": True})
    ended, state = call(**arrays | {"lengths": np.minimum(lengths, now + 1)}, **last_only(options))
    return (y[:, : now + 1], states[:, now]), (ended[:, : now + 1], state)


def halved_future(times: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """Halving everything from a token on is legal in every op, and must not show before it."""
    t = arrays[times[0]].shape[1]
    if t == 1:
        return None
    now = int(rng.integers(1, t))
    half = {name: np.concatenate([arrays[name][:, :now], arrays[name][:, now:] / 2], axis=1) for name in times}
    return (call(**arrays, **options)[0][:, :now],), (call(**arrays | half, **options)[0][:, :now],)


def poisoned(times: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """NaN against zeros where no token is."""
    lengths = np.minimum(real_lengths(times, arrays), rng.integers(arrays[times[0]].shape[1] + 1))
    lengths = lengths.astype(np.int32)
    zeros, nans = ({name: fill_padding(arrays[name], lengths, value) for name in times} for value in (0, np.nan))
    arrays = arrays | {"lengths": lengths}
    return call(**arrays | zeros, **options), call(**arrays | nans, **options)


def padded(times: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """The first row is empty, the others end anywhere."""
    b, t = arrays[times[0]].shape[:2]
    lengths = np.minimum(real_lengths(times, arrays), rng.integers(t + 1, size=b) * (np.arange(b) > 0))
    y, state = call(**arrays | {"lengths": lengths.astype(np.int32)}, **last_only(options))
    before = arrays.get("state", np.zeros_like(state))
    padding, empty = np.arange(t) >= lengths[:, None], lengths == 0
    return (y[padding], state[empty]), (np.zeros_like(y[padding]), before[empty])


def superposed(
    linear: str, unset: tuple[str, ...], call: Call, arrays: Arrays, options: Options, rng: Rng
) -> Sides:
    """Split the inputs at random, so that each number is in one part or in the other."""
    zeros = {name: np.zeros_like(arrays[name]) for name in ("state", *unset) if name in arrays}
    mine = rng.random(arrays[linear].shape) < 0.5
    one, other = ({linear: np.where(part, arrays[linear], 0)} for part in (mine, ~mine))
    both = zip(call(**arrays | one, **options), call(**arrays | zeros | other, **options), strict=True)
    return call(**arrays, **options), tuple(a + b for a, b in both)


def mirrored(
    shapes: str, letters: str, like_y: str, call: Call, arrays: Arrays, options: Options, rng: Rng
) -> Sides:
    """Reversing dimensions of the inputs reverses them in the outputs; y has those of the argument `like_y`."""
    dims = {name: contract.dims for name, contract in parse(shapes).items()}

    def flipped(name: str, x: np.ndarray) -> np.ndarray:
        here = dims[name]
        return np.flip(x, tuple(axis - len(here) for axis, letter in enumerate(here) if letter in letters))

    y, state = call(**{name: flipped(name, x) for name, x in arrays.items()}, **options)
    return call(**arrays, **options), (flipped(like_y, y), flipped("state", state))


def forgotten(
    value: str,
    forget: Callable[[Arrays, int], Arrays | None],
    call: Call,
    arrays: Arrays,
    options: Options,
    rng: Rng,
) -> Sides:
    """After a token with decay 0, other values and another state before it make no difference at all."""
    now = int(rng.integers(arrays[value].shape[1]))
    changed = forget(arrays, now)
    if changed is None:
        return None
    arrays = arrays | changed
    past = {"state": -arrays["state"]} if "state" in arrays else {}
    past[value] = np.concatenate([-arrays[value][:, :now], arrays[value][:, now:]], axis=1)
    alive = real_lengths((value,), arrays) > now
    sides = [call(**arrays | other, **last_only(options)) for other in ({}, past)]
    one, other = ((y[alive, now:], state[alive]) for y, state in sides)
    return one, other


def forget_by_step(arrays: Arrays, now: int) -> Arrays | None:
    """A step so long that exp(dt A) is 0; None where something hardly decays."""
    slowest = -np.max(arrays["A"])
    if slowest < 0.02:
        return None
    dt = np.array(arrays["dt"])
    dt[:, now] = -FORGET / slowest
    return {"dt": dt}


def forget_by_decay(arrays: Arrays, now: int) -> Arrays:
    """The same for decays given as logarithms."""
    log_decay = np.array(arrays["log_decay"])
    log_decay[:, now] = FORGET
    return {"log_decay": log_decay}


def repeated_groups(call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """A head reads of its group what it would read if B and C were written out for every head."""
    r = arrays["x"].shape[2] // arrays["B"].shape[2]
    if r == 1:
        return None
    repeated = {name: np.repeat(arrays[name], r, axis=2) for name in ("B", "C")}
    return call(**arrays, **options), call(**arrays | repeated, **options)


def overwritten(call: Call, arrays: Arrays, options: Options, rng: Rng) -> Sides:
    """With beta 1 and keys of length exactly 1, the memory answers a key with the value written last under it."""
    width = arrays["k"].shape[-1]
    keys = np.eye(width)[rng.integers(width, size=arrays["k"].shape[:3])]
    arrays = arrays | {"q": keys, "k": keys, "beta": np.ones_like(arrays["beta"])}
    lengths = real_lengths(("v",), arrays)
    y, _ = call(**arrays, **{**options, "scale": 1.0})
    return (y,), (fill_padding(arrays["v"], lengths, 0),)
