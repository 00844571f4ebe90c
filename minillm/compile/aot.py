"""What the compiler says of a program for a device that is not there."""

from collections import Counter
from typing import Any, NamedTuple

import jax

from ..errors import UserError
from .collectives import collectives
from .plan import LESS, Plan, check_fits
from .topology import compiled

FULL = "RESOURCE_EXHAUSTED: "


class Program(NamedTuple):
    """A compiled program. Bytes on each device: of temporaries, of all it holds at once, and of what it updates in
    place; collectives by kind, how often and the bytes that a device receives; and the HLO.
    """

    temporaries: int
    peak: int
    in_place: int
    calls: Counter[str]
    received: Counter[str]
    hlo: str


def compile_step(model: str, name: str, traced: Any, made: Plan) -> Program:
    """Compile one of a plan's programs; UserError if the compiler refuses it, or a device has less memory."""
    try:
        program = compiled(traced.lower(), made.device.platform)
    except jax.errors.JaxRuntimeError as error:
        detail = str(error).partition("\n")[0].rstrip(".")
        where = f"{made.devices} {made.device.name}"
        if not detail.startswith(FULL):
            raise UserError(f"{model}: {name} does not compile for {where}: {detail}") from None
        reason = detail.removeprefix(FULL)
        raise UserError(f"{model}: {name} does not fit on {where}: the compiler says {reason}; {LESS}") from None
    memory, hlo = program.memory_analysis(), program.as_text()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    calls, received = collectives(hlo)
    peak = held + memory.temp_size_in_bytes
    check_fits(f"{model}: {name}", made.weights, made.state, made.work, made.device, made.devices, peak)
    return Program(memory.temp_size_in_bytes, peak, memory.alias_size_in_bytes, calls, received, hlo)
