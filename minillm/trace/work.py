"""What a block's pass costs: shapes by letter, bytes moved, floating-point operations; and the code that did it.

Bytes are what must be moved: every weight that is used, once; the memory's rows that are looked at, and those that
are written. Operations are those of matrix products, of attention (a multiplication and an addition for each
channel of each visible key, and again of each value), and six for each number of a recurrence's state and token.
Norms, gates and the like are left out: they are few beside these.
"""

import inspect
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..blocks import MLP, Attention, GatedDeltaNet, LatentAttention, Mamba, Mamba2, MoE
from ..cache.paged import Paged
from ..generate import advance
from ..model import Model
from ..quant import is_weight
from ..runner import read
from ..sampling import Sampler
from ..speculative.verify import kept_path, verify
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

PROGRAMS = {"advance": advance, "read": read, "verify": verify}  # that a pass can run

# Which line did what a part of the page shows: a function, and words that only one of its lines has.
LINES: dict[str, dict[str, tuple[Any, str]]] = {
    "Attention": {
        "attention": (Attention.__call__, "memory.attend("),
        "rope": (Attention.__call__, "s.rope.turn("),
        "cache": (Attention.__call__, "state.append("),
    },
    "LatentAttention": {
        "attention": (LatentAttention.__call__, "memory.attend("),
        "rope": (LatentAttention.__call__, "s.rope.turn(q_rope"),
        "cache": (LatentAttention.__call__, "state.append("),
    },
    "MLP": {"inside": (MLP.__call__, "@ self.up")},
    "MoE": {"routes": (MoE.__call__, "self.route("), "load": (MoE.__call__, "through_experts(")},
    "Mamba": {"gates": (Mamba.step, "self.normed("), "state": (Mamba.step, "selective_scan(")},
    "Mamba2": {"gates": (Mamba2.__call__, "@ self.z_xBC_dt"), "state": (Mamba2.step, "ssd(\n")},
    "GatedDeltaNet": {
        "gates": (GatedDeltaNet.__call__, "log_decay = "),
        "state": (GatedDeltaNet.step, "rule("),
    },
    "embed": {"rows": (Model.hidden, "self.embed.rows(")},
    "head": {"logits": (Model.logits, "@ head")},
    "choice": {
        "temperature": (Sampler.filtered, "scale_temperature("),
        "top_k": (Sampler.filtered, "keep_top_k("),
        "top_p": (Sampler.filtered, "keep_top_p("),
        "min_p": (Sampler.filtered, "keep_min_p("),
        "greedy": (Sampler.__call__, "return jnp.argmax("),
        "drawn": (Sampler.__call__, "jax.random.categorical("),
        "draft": (kept_path, "agrees = "),
    },
    "pages": {"places": (Paged.append, "self._places(")},
    "commit": {name: (function, "model.commit(") for name, function in PROGRAMS.items()},
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


def at_the_ends(model: Model, one: Pass) -> dict[str, dict[str, Any]]:
    """The same of what stands in front of the blocks and behind them: shapes, sizes, bytes, operations by name.

    The head is asked about the last token only, or about all where a draft is to be checked.
    """
    (v, d), t = model.embed.shape, len(one.tokens)
    n = t if one.drafted else 1
    embed, head = (sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (model.embed, model.head))
    head = (head or embed) + sum(leaf.nbytes for leaf in jax.tree.leaves(model.norm))
    asked = "b t" if one.drafted else "b"
    shapes = {
        "embed": {"token ids": "b t", "x": "b t d"},
        "head": {"hidden": f"{asked} d", "logits": f"{asked} v"},
        "choice": {"logits": f"{asked} v", "token": asked},
    }
    moved = {"embed": {"weights": t * embed // v}, "head": {"weights": head}, "choice": {"logits": 4 * n * v}}
    work = {"embed": 0, "head": 2 * n * d * v, "choice": 0}
    letters = {"b": 1, "t": t, "d": d, "v": v}
    return {
        name: {"shapes": shapes[name], "sizes": letters, "bytes": moved[name], "flops": work[name]} for name in work
    }


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


def code_of(blocks: set[str]) -> dict[str, Any]:
    """By kind of step, these blocks' and all others, the lines by what they did; and the functions around them."""
    kinds = {kind: places for kind, places in LINES.items() if kind in blocks or kind[0].islower()}
    functions = list(dict.fromkeys(function for places in kinds.values() for function, _ in places.values()))
    lines = {
        kind: {name: {**line_of(*where), "function": functions.index(where[0])} for name, where in places.items()}
        for kind, places in kinds.items()
    }
    return {"lines": lines, "functions": [source_of(function) for function in functions]}


def line_of(function: Any, words: str) -> dict[str, Any]:
    """The one line of a function that has these words: where it stands, and what it says."""
    source = source_of(function)
    lines = source["text"].splitlines(keepends=True)
    (place,) = [i for i, line in enumerate(lines) if words in line]
    return {"file": source["file"], "line": source["line"] + place, "text": lines[place].strip()}


def source_of(function: Any) -> dict[str, Any]:
    """What a function is called, where it stands, and its lines."""
    plain = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(plain)
    file = Path(inspect.getsourcefile(plain) or "").relative_to(PACKAGE)
    text = textwrap.dedent("".join(lines)).rstrip()
    return {"name": plain.__qualname__, "file": f"minillm/{file}", "line": first, "text": text}
