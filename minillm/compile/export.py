"""A generation as a file that runs where minillm is not installed.

`FILE` is a zip: the two programs as `jax.export` writes them, the weights, a description of what goes in, and a
short script that Python finds by itself, so that

    python FILE 12,7,301 --tokens 20

continues a text of these token ids and prints the ids that follow (`runner.py`). It needs jax, numpy and
flatbuffers. Weights lie beside the programs and not in them, for a program cannot be larger than 2 GB. Programs are
for one platform and one size of batch and context; the next token is the likeliest one.
"""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..folders import whole
from ..generate import advance
from ..sampling import Sampler
from .steps import Work, state_of

RUNNER = Path(__file__).with_name("runner.py")


def check_exportable() -> None:
    """UserError if a package that writes programs is not installed."""
    if find_spec("flatbuffers") is None:
        raise UserError("--export needs a package more; pip install 'minillm[export]'")


def export(model: Any, work: Work, platform: str, path: Path) -> None:
    """Write a model with its weights for one platform: cpu, cuda or tpu."""
    leaves, tree = jax.tree.flatten(model)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    state, memory = jax.tree.flatten(state_of(model, work, None))
    row = jax.ShapeDtypeStruct((work.batch,), np.int32)

    def step(weights: list[Any], state: list[Any], tokens: jax.Array, start: jax.Array, n: jax.Array) -> Any:
        sampler = Sampler(*[None] * 7, seed=jnp.zeros(work.batch, jnp.uint32))
        model, before = tree.unflatten(weights), memory.unflatten(state)
        after, _, token = advance(model, before, None, sampler, tokens, start, n)
        return jax.tree.leaves(after), token

    about = {
        "batch": work.batch,
        "context": work.context,
        "chunk": work.chunk,
        "platform": platform,
        "weights": [[leaf.shape, leaf.dtype.name] for leaf in leaves],
        "state": [[leaf.shape, leaf.dtype.name] for leaf in state],
    }
    with whole(path) as part, zipfile.ZipFile(part, "w") as file:
        for name, tokens in (("prefill", work.chunk), ("decode", 1)):
            block = jax.ShapeDtypeStruct((work.batch, tokens), np.int32)
            made = jax.export.export(jax.jit(step), platforms=[platform])(shapes, state, block, row, row)
            file.writestr(f"{name}.jax", made.serialize())
        file.writestr("about.json", json.dumps(about, indent=1))
        file.writestr("__main__.py", RUNNER.read_text(encoding="utf-8"))
        for i, leaf in enumerate(leaves):
            file.writestr(f"weights/{i}", np.asarray(leaf).tobytes())
