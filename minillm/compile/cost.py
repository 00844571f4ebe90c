"""What a program must do, counted in its jaxpr: operations, bytes and messages, loops as often as they turn.

XLA's own `cost_analysis` counts a loop's body once, and some backends give none. Here every equation is looked at,
a loop's are multiplied by its turns, and turns are computed from the arguments whose values are `known` (where a
sequence stands). Experts are chosen by numbers that nobody knows beforehand, and are taken to be chosen evenly.

Bytes are those that must pass between memory and processor even if everything else stays on the chip: of each
argument what is looked at, once; what is written into arguments; and results. A slice counts with its own size. A
number counts with the bytes it is stored in, whatever it is widened to before it is multiplied.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from .collectives import received
from .equations import (
    ARITHMETIC,
    CALLS,
    MESSAGES,
    PLACES,
    PRODUCTS,
    REDUCTIONS,
    SAME,
    SLICES,
    VIEWS,
    counted,
    is_float,
    itemsize,
    nbytes,
    size,
)


@dataclass
class Cost:
    """What one device does.

    products  operations of matrix products, a multiplication and an addition each, by the bytes of a factor
    others    other operations on floating-point numbers, one for each number that comes out (of a sum: goes in)
    read      bytes of arguments; written: bytes of arguments and results
    calls     collectives by kind, and by kind the bytes that a device receives (`received`)
    """

    products: Counter[int] = field(default_factory=Counter)
    others: float = 0
    read: float = 0
    written: float = 0
    calls: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Cost", times: float = 1) -> None:
        """Add another, so many times."""
        for mine, theirs in (
            (self.products, other.products),
            (self.calls, other.calls),
            (self.received, other.received),
        ):
            for key, value in theirs.items():
                mine[key] += value * times  # pyright: ignore[reportArgumentType]
        self.others += times * other.others
        self.read += times * other.read
        self.written += times * other.written

    @property
    def flops(self) -> float:
        """All operations."""
        return sum(self.products.values()) + self.others


def count(program: ClosedJaxpr, known: Mapping[int, Any]) -> Cost:
    """What a program does, arguments at the places `known` having these values.

    NotImplementedError for a loop whose turns depend on anything else, or do not count up by one.
    """
    given = [Known.of(known[i]) if i in known else None for i in range(len(program.jaxpr.invars))]
    seen = Walk({}, {}).walk(program, given)
    cost = seen.cost
    cost.read = sum(seen.read)
    cost.written = sum(seen.written)
    for var, origin in zip(program.jaxpr.outvars, seen.origins, strict=True):
        cost.written += nbytes(var) if origin is None else 0
    return cost


class Known:
    """A value that can be computed, and is when somebody asks."""

    def __init__(self, compute: Callable[[], Any]):
        self.compute, self.done = compute, None

    @staticmethod
    def of(value: Any) -> "Known":
        return Known(lambda: value)

    def __call__(self) -> Any:
        if self.done is None:
            self.done = (self.compute(),)
        return self.done[0]


class Origin(NamedTuple):
    """The input that an array is a view of, and the bytes in which that stores a number."""

    input: int
    itemsize: int


class Seen(NamedTuple):
    """What was found in a jaxpr: its operations; bytes read and written of each input; and of each output."""

    cost: Cost
    read: list[float]
    written: list[float]
    origins: list[Origin | None]
    values: list[Known | None]


class Walk(NamedTuple):
    """One way through a program. axes: sizes of the mesh's; done: jaxprs that were seen with the same values."""

    axes: dict[str, int]
    done: dict[Any, tuple[Any, Seen]]

    def walk(self, program: ClosedJaxpr | Jaxpr, given: Sequence[Known | None]) -> Seen:
        """A jaxpr whose inputs have these values."""
        jaxpr, consts = (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())
        key = id(jaxpr), *(None if one is None else id(one) for one in given), *self.axes.items()
        if key not in self.done:
            self.done[key] = (jaxpr, *given), Frame(self, jaxpr, consts, given).run()
        return self.done[key][1]


class Frame:
    """The equations of one jaxpr, one after the other."""

    def __init__(self, walk: Walk, jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Known | None]):
        self.go, self.jaxpr = walk, jaxpr
        self.origins = {var: Origin(i, itemsize(var)) for i, var in enumerate(jaxpr.invars)}
        self.values = {var: one for var, one in zip(jaxpr.invars, given, strict=True) if one is not None}
        self.values |= {var: Known.of(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}
        self.cost, self.read, self.written = Cost(), [0.0] * len(jaxpr.invars), [0.0] * len(jaxpr.invars)

    def run(self) -> Seen:
        """All equations."""
        for eqn in self.jaxpr.eqns:
            self.equation(eqn)
        read = [min(read, nbytes(var)) for read, var in zip(self.read, self.jaxpr.invars, strict=True)]
        outs = self.jaxpr.outvars
        origins = [None if isinstance(var, Literal) else self.origins.get(var) for var in outs]
        return Seen(self.cost, read, self.written, origins, [self.value(var) for var in outs])

    def equation(self, eqn: Any) -> None:
        """What one equation costs, and what is known of its results."""
        name, ins, outs = eqn.primitive.name, eqn.invars, eqn.outvars
        if name in CALLS or name == "shard_map":
            self.call(eqn)
        elif name == "scan":
            self.scan(eqn)
        elif name == "while":
            self.fori(eqn)
        elif name == "cond":
            self.branches(eqn)
        elif name in VIEWS or name in SAME:
            self.see(ins[0], outs[0])
            self.compute(eqn, same=name in SAME)
        elif name in SLICES:
            self.looked_at(ins[0], sum(size(var) for var in outs))
            self.compute(eqn)
        elif name == "dynamic_update_slice" or name.startswith("scatter"):
            self.update(ins[0], outs[0], ins[1] if name == "dynamic_update_slice" else ins[2])
            self.compute(eqn)
        elif name in MESSAGES:
            self.message(eqn, MESSAGES[name])
        elif name == "top_k":
            self.whole(ins[0])
            self.values[outs[1]] = Known(
                lambda: np.arange(size(outs[1])).reshape(outs[1].aval.shape) % ins[0].aval.shape[-1]
            )
        elif name == "axis_index":
            self.values[outs[0]] = Known.of(np.int32(0))  # all devices do as much as the first
        else:
            self.plain(eqn)

    def plain(self, eqn: Any) -> None:
        """An equation that takes its arguments as a whole."""
        name, (out, *_) = eqn.primitive.name, eqn.outvars
        inner = [key for key, value in eqn.params.items() if isinstance(value, ClosedJaxpr | Jaxpr)]
        if inner:
            raise NotImplementedError(f"cost: {name} has a program of its own, which is not counted")
        for var in eqn.invars:
            self.whole(var)
        if name in PRODUCTS:
            self.cost.products[itemsize(eqn.invars[0])] += round(PRODUCTS[name](eqn))
        elif name in REDUCTIONS and is_float(eqn.invars[0]):
            self.cost.others += size(eqn.invars[0])
        elif name in ARITHMETIC and is_float(out):
            self.cost.others += size(out)
        self.compute(eqn)

    def call(self, eqn: Any) -> None:
        """A program in the program; under shard_map, that of the first device."""
        inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
        given = [self.value(var) for var in eqn.invars]
        walk = self.go
        if eqn.primitive.name == "shard_map":
            walk = walk._replace(axes=dict(eqn.params["mesh"].shape))
            given = [first_piece(one, var) for one, var in zip(given, inner.invars, strict=True)]
        seen = walk.walk(inner, given)
        self.cost.add(seen.cost)
        self.touch(eqn.invars, seen)
        for var, origin, value in zip(eqn.outvars, seen.origins, seen.values, strict=True):
            if origin is not None:
                self.see(eqn.invars[origin.input], var)
            if value is not None and eqn.primitive.name != "shard_map":
                self.values[var] = value

    def scan(self, eqn: Any) -> None:
        """A loop over the leading axis."""
        p = eqn.params
        consts, carried = p["num_consts"], p["num_consts"] + p["num_carry"]
        given = [self.value(var) if i < consts else None for i, var in enumerate(eqn.invars)]
        self.loop(eqn, self.go.walk(p["jaxpr"], given), p["length"], consts, carried)

    def fori(self, eqn: Any) -> None:
        """A loop of `lax.fori_loop`, from one number to another."""
        p = eqn.params
        first, consts = p["cond_nconsts"], p["body_nconsts"]
        body, carry = p["body_jaxpr"], eqn.invars[first + consts :]
        place, limit = counted(p["cond_jaxpr"].jaxpr, first, body.jaxpr, consts)
        bounds = [self.value(carry[place]), self.value(carry[limit])]
        if bounds[0] is None or bounds[1] is None:
            raise NotImplementedError("cost: how often a loop turns depends on numbers that are not known")
        turns = max(int(bounds[1]()) - int(bounds[0]()), 0)
        given = [self.value(var) for var in eqn.invars[first : first + consts]]
        given += [bounds[1] if i == limit else None for i in range(len(carry))]
        self.loop(eqn, self.go.walk(body, given), turns, consts, consts + len(carry), first)

    def loop(self, eqn: Any, seen: Seen, turns: int, consts: int, carried: int, first: int = 0) -> None:
        """The body's costs `turns` times; what it carries comes from memory once, if at all."""
        self.cost.add(seen.cost, turns)
        ins = eqn.invars[first:]
        times = [min(turns, 1) if consts <= i < carried else turns for i in range(len(ins))]
        self.touch(ins, seen, times)
        for i, var in enumerate(eqn.outvars[: carried - consts]):
            origin = seen.origins[i]
            if origin is not None and origin.input == consts + i:
                self.see(ins[consts + i], var)

    def branches(self, eqn: Any) -> None:
        """One of several programs: the dearest; of those for different platforms the one that is not for CPUs."""
        given, several = [self.value(var) for var in eqn.invars[1:]], eqn.params["branches"]
        if platforms := eqn.params.get("branches_platforms"):
            several = [one for one, named in zip(several, platforms, strict=True) if "cpu" not in (named or ())]
        seen = [self.go.walk(branch, given) for branch in several]
        dearest = max(seen, key=lambda one: (one.cost.flops, sum(one.read)))
        self.cost.add(dearest.cost)
        self.touch(eqn.invars[1:], dearest)

    def message(self, eqn: Any, kind: str) -> None:
        """A collective among the devices along some axes."""
        axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["axis_name"]
        groups = eqn.params.get("axis_index_groups")
        n = math.prod(self.go.axes[axis] for axis in ([axes] if isinstance(axes, str) else axes))
        n = len(groups[0]) if groups else n
        for var, out in zip(eqn.invars, eqn.outvars, strict=True):
            self.whole(var)
            self.cost.calls[kind] += n > 1
            self.cost.received[kind] += received(kind, n, nbytes(out))

    def touch(self, ins: Sequence[Any], seen: Seen, times: Sequence[int] | None = None) -> None:
        """What was read and written of the inputs of a program within."""
        for i, (var, read, written) in enumerate(zip(ins, seen.read, seen.written, strict=True)):
            origin = None if isinstance(var, Literal) else self.origins.get(var)
            if origin is not None:
                often = 1 if times is None else times[i]
                self.read[origin.input] += often * read * origin.itemsize / itemsize(var)
                self.written[origin.input] += often * written * origin.itemsize / itemsize(var)

    def whole(self, var: Any) -> None:
        """All of an array is looked at."""
        if not isinstance(var, Literal) and var in self.origins:
            source = self.origins[var].input
            self.read[source] = nbytes(self.jaxpr.invars[source])

    def looked_at(self, var: Any, numbers: float) -> None:
        """So many numbers of an array are looked at."""
        if not isinstance(var, Literal) and var in self.origins:
            self.read[self.origins[var].input] += numbers * self.origins[var].itemsize

    def see(self, var: Any, out: Any) -> None:
        """One array is a view of another."""
        if not isinstance(var, Literal) and var in self.origins:
            self.origins[out] = self.origins[var]

    def update(self, var: Any, out: Any, new: Any) -> None:
        """Part of an array is overwritten in place."""
        self.whole(new)
        self.see(var, out)
        if not isinstance(var, Literal) and var in self.origins:
            self.written[self.origins[var].input] += size(new) * self.origins[var].itemsize

    def value(self, var: Any) -> Known | None:
        """What can be known of a variable."""
        return Known.of(var.val) if isinstance(var, Literal) else self.values.get(var)

    def compute(self, eqn: Any, same: bool = False) -> None:
        """Results can be known if all arguments are."""
        ins = [self.value(var) for var in eqn.invars]
        if any(one is None for one in ins):
            return
        if same:
            self.values[eqn.outvars[0]] = ins[0]  # pyright: ignore[reportArgumentType]
            return

        def results() -> Sequence[Any]:
            params = {name: None if name in PLACES else value for name, value in eqn.params.items()}
            found = eqn.primitive.bind(*(one() for one in ins if one is not None), **params)
            return [np.asarray(one) for one in (found if eqn.primitive.multiple_results else [found])]

        every = Known(results)
        for i, var in enumerate(eqn.outvars):
            self.values[var] = Known(lambda i=i: every()[i])


def first_piece(value: Known | None, var: Any) -> Known | None:
    """The first device's piece of a value."""
    if value is None:
        return None
    return Known(lambda: value()[tuple(slice(0, length) for length in var.aval.shape)])
