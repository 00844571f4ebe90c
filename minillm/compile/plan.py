"""What a model needs on some devices, and the most that their data sheets would allow it to do there.

The roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): a program is no faster than its products at the
device's peak, its bytes at the memory's bandwidth, and its messages at that of the links; that all three overlap is
the best that can happen. So times are "at least", tokens a second "at most".
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .cost import Cost, count
from .devices import Device
from .steps import Work, bytes_a_device, state_of, traced

LESS = "spread it over more devices (--mesh), or give a smaller --batch or --context, or --quant"


@dataclass(frozen=True)
class Plan:
    """A model on `devices` of a kind. weights and state are bytes on each; of the two programs, `prefill` reads a
    chunk of each prompt, the last one of the context, `decode` adds the context's last token to each sequence.
    prompt is what reading whole prompts of that length costs; the `Traced`s are the programs themselves.
    """

    device: Device
    devices: int
    work: Work
    weights: int
    state: int
    prefill: Cost
    decode: Cost
    prompt: Cost
    programs: dict[str, Any]

    @property
    def tokens_a_second(self) -> float:
        """Of all sequences together, at most."""
        return self.work.batch / max(roofline(self.decode, self.device).values())

    @property
    def prompt_tokens_a_second(self) -> float:
        """Of all prompts together, at most."""
        return self.work.batch * self.work.context / max(roofline(self.prompt, self.device).values())

    def dollars(self, tokens_a_second: float, price: float) -> float:
        """A million tokens at that speed, if a device costs `price` an hour and all are busy."""
        return price * self.devices / 3600 / tokens_a_second * 1e6


def plan(name: str, model: Any, work: Work, device: Device, devices: int, sharding: Any) -> Plan:
    """The plan for a model of shapes that lie on some devices; `sharding` is where tokens go, `name` for errors.

    UserError, before anything is traced, if weights and memory do not fit.
    """
    weights, remembered = bytes_a_device(model), bytes_a_device(state_of(model, work, sharding))
    check_fits(name, weights, remembered, work, device, devices)
    read, step = (traced(model, work, tokens, sharding) for tokens in (work.chunk, 1))
    last = count_at(read, work, work.context - work.chunk, work.chunk)
    prompt = Cost()
    for one in (count_at(read, work, 0, work.chunk), last):  # in between it grows evenly, or less and less
        prompt.add(one, work.context / work.chunk / 2)
    decode = count_at(step, work, work.context - 1, 1)
    return Plan(device, devices, work, weights, remembered, last, decode, prompt, {"prefill": read, "decode": step})


def count_at(program: Any, work: Work, start: int, n: int) -> Cost:
    """What a program costs that takes in n tokens of each sequence at a place."""
    arguments = len(program.jaxpr.jaxpr.invars)
    where = {arguments - 2: start, arguments - 1: n}
    return count(program.jaxpr, {i: np.full(work.batch, value, np.int32) for i, value in where.items()})


def check_fits(
    what: str, weights: int, state: int, work: Work, device: Device, devices: int, peak: float = 0
) -> None:
    """UserError with the numbers if a device cannot hold weights and state, or the compiler's word on its peak."""
    if max(weights + state, peak) <= device.memory:
        return
    more = f", {size(peak)} with temporaries" if peak else ""
    least = math.ceil(devices * max(weights + state, peak) / device.memory)
    raise UserError(
        f"{what} does not fit on {devices} {device.name}: each would hold {size(weights)} of weights and "
        f"{size(state)} of memory for {work.batch} x {work.context} tokens{more}, and has {size(device.memory)}. "
        f"It takes {least} devices at least: {LESS}"
    )


def roofline(cost: Cost, device: Device) -> dict[str, float]:
    """Seconds that each part takes at least."""
    return {
        "products": sum(flops / device.peak[width] for width, flops in cost.products.items()),
        "memory": (cost.read + cost.written) / device.bandwidth,
        "links": sum(cost.received.values()) / (device.links / 2),  # half of it comes in
    }


def size(nbytes: float) -> str:
    """Bytes for people."""
    return f"{nbytes / 1e9:,.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.2f} MB"
