"""What a block's pass costs: shapes by letter, bytes moved, floating-point operations; and the code that did it.

Bytes are what must be moved: every weight that is used once, the memory's rows that are looked at, those that are
written. Operations are those of matrix products, of attention (a multiplication and an addition for each channel of
each visible key, and again of each value), and six for each number of a recurrence's state and token. Norms, gates
and the like are left out: they are few beside these.
"""

import inspect
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..blocks import MLP, Attention, GatedDeltaNet, LatentAttention, Mamba, Mamba2, MoE
from ..quant import is_weight
from .record import Pass

PACKAGE = Path(__file__).parents[1]

# The arrays that a reader of each block meets, in the letters of `minillm.ops`.
SHAPES: dict[type, dict[str, str]] = {
    Attention: {"q": "b t h k", "keys, values": "b s g k", "weights": "b h t s"},
    LatentAttention: {"q": "b t h k", "latents": "b s l", "weights": "b h t s"},
    MLP: {"inside": "b t f"},
    MoE: {"scores": "b t e", "experts, weights": "b t m", "inside one": "t f"},
    Mamba: {"dt": "b t i", "B, C": "b t n", "state": "b n i"},
    Mamba2: {"x": "b t h k", "dt": "b t h", "B, C": "b t g n", "state": "b h k n"},
    GatedDeltaNet: {"q, k": "b t g k", "v": "b t h j", "decay, beta": "b t h", "state": "b h k j"},
}


def sizes(block: Any, one: Pass) -> dict[str, int]:
    """What each letter is in a pass: b, t, s, d, and those of the block's own description."""
    own = {name: value for name, value in vars(block.spec).items() if len(name) == 1}
    own |= {"m": block.spec.top_k} if isinstance(block, MoE) else {}
    x = one.blocks[0]["x"]
    return {"b": 1, "t": len(x), "s": one.start + len(x), "d": x.shape[1], **own}


def bytes_moved(block: Any, one: Pass, place: int) -> dict[str, int]:
    """Bytes of weights, and of memory read and written, by the block at a place of the model."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(block))
    if isinstance(block, MoE):
        used = len(np.unique(one.blocks[place]["chosen"])) / block.spec.e
        experts = sum(leaf.nbytes for leaf in jax.tree.leaves((block.up, block.down)))
        weights -= round((1 - used) * experts)
    total = sum(array.nbytes for array in one.state[place].values())
    if "weights" not in one.blocks[place]:  # a recurrence reads and writes all of its state
        return {"weights": weights, "read": total, "written": total}
    rows = one.state[place]["values"].shape[1]
    read = min(one.start + len(one.tokens), rows)
    return {"weights": weights, "read": total * read // rows, "written": total * min(one.n_kept, rows) // rows}


def operations(block: Any, one: Pass, place: int) -> int:
    """Floating-point operations of the block at a place of the model."""
    seen, t, spec = one.blocks[place], len(one.tokens), block.spec
    if isinstance(block, MoE):
        routed = spec.top_k * products((block.up, block.down), t)
        return routed + products([block.router, block.shared_up, block.shared_down, block.shared_gate], t)
    count = products(block, t)
    if "weights" in seen:
        visible = int(np.count_nonzero(np.any(seen["weights"] > 0, axis=0)))
        channels = 2 * spec.l + spec.a if isinstance(block, LatentAttention) else 2 * spec.k
        count += 2 * spec.h * channels * visible
    elif "gates" in seen:
        state = {Mamba: "ssm", Mamba2: "ssm", GatedDeltaNet: "delta"}[type(block)]
        count += 6 * t * one.state[place][state].size
    return count


def products(parts: Any, t: int) -> int:
    """Operations of t rows through every matrix of some parts of a block, one matrix of a stack of experts."""
    weights = [leaf for leaf in jax.tree.leaves(parts, is_leaf=is_weight) if is_weight(leaf)]
    return sum(2 * t * weight.shape[0] * weight.shape[1] for weight in weights)


def source_of(function: Any) -> dict[str, Any]:
    """Where a function stands, and its lines."""
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
    return {
        "file": f"minillm/{file.relative_to(PACKAGE)}",
        "line": first,
        "text": textwrap.dedent("".join(lines)).rstrip(),
    }
