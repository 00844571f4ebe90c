"""Families that do not stand in minillm/archs, and what minillm/archs/README.md says about both kinds.

Run as a script it writes the README's table of families.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest

import minillm
from minillm import laws
from minillm.archs import all_archs
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")

README = Path(minillm.__file__).parent / "archs" / "README.md"
WRITE = "PYTHONPATH=tests python tests/minillm/archs/test_outside.py writes the table anew"
HEAD = "|---|---|---|---|\n"

# A whole family: its feed-forward layer squares, which no block of minillm does.
SQUARING = '''
"""Llama whose MLP is (x @ up)^2 @ down."""
from dataclasses import dataclass
import jax.numpy as jnp
from flax import struct
from minillm.archs.from_hf import attention_from_hf, decoder_from_hf
from minillm.archs.llama import GGUF_TENSORS, HARMLESS_TENSORS, HF_TENSORS, config_from_gguf
from minillm.archs.tensors import Tensor

HF, GGUF = ("squaring",), ()
HF_TENSORS = {
    **HF_TENSORS,
    "square.norm": Tensor("model.layers.{i}.post_attention_layernorm.weight"),
    "square.up": Tensor("model.layers.{i}.mlp.up_proj.weight"),
    "square.down": Tensor("model.layers.{i}.mlp.down_proj.weight"),
}
HARMLESS_TENSORS = (*HARMLESS_TENSORS, "model.layers.{i}.mlp.gate_proj.weight")


@dataclass(frozen=True)
class SquareSpec:
    f: int

    def build(self, params):
        p, d = params.under("square"), params.config.d
        return Square(p.norm("norm"), p.linear("up", d, self.f), p.linear("down", self.f, d))


@struct.dataclass
class Square:
    norm: object
    up: object
    down: object

    def init_state(self, spec):
        return ()

    def __call__(self, x, state, at):
        return x + jnp.square(self.norm(x) @ self.up) @ self.down, ()

    def commit(self, pending, at, keep, n_keep):
        return ()


def config_from_hf(fields):
    fields.only("hidden_act", "square")
    blocks = attention_from_hf(fields), SquareSpec(fields.integer("intermediate_size"))
    return decoder_from_hf(fields, lambda i: blocks)
'''


SEED_OSS = {"model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False, "mlp_bias": False}
SEED_OSS |= {"residual_dropout": 0.1}


def module_of(source: str, folder: Path) -> Any:
    """The module that a file with this source is."""
    path = folder / "family.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("family", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snippet() -> str:
    (source,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    return source


def seed_oss_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """A checkpoint as Seed-OSS has it, which under the name qwen2 is one of Qwen2."""
    tensors, rng = files.hf_tensors(), np.random.default_rng(1)
    for name in [name for name in tensors if re.search(r"[qkv]_proj\.weight", name)]:
        tensors[name.replace("weight", "bias")] = rng.normal(size=len(tensors[name])).astype(np.float32)
    return files.write_folder(folder, files.CONFIG | settings, tensors)


def test_the_readmes_family_loads_and_generates(tmp_path):
    folder, arch = seed_oss_folder(tmp_path / "seed", SEED_OSS), module_of(snippet(), tmp_path)
    lm = minillm.load(folder, arch=arch)
    twin = minillm.load(seed_oss_folder(tmp_path / "qwen2", {"model_type": "qwen2"}))
    tokens = np.random.default_rng(0).integers(0, 272, (1, 40))
    assert np.array_equal(lm.logits(tokens), twin.logits(tokens))
    assert lm.generate([3, 4, 5], max_tokens=5, temperature=0.0).prompt_tokens == 3
    for field in ("attention_out_bias", "mlp_bias"):
        with pytest.raises(UserError, match=f"{field} is True"):
            minillm.load(seed_oss_folder(tmp_path / field, SEED_OSS | {field: True}), arch=arch)


def test_without_its_module_the_family_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="model_type is 'seed_oss'"):
        minillm.load(seed_oss_folder(tmp_path, SEED_OSS))


def test_a_family_may_bring_a_block_of_its_own(tmp_path):
    config = files.CONFIG | {"model_type": "squaring", "hidden_act": "square"}
    lm = minillm.load(files.write_folder(tmp_path, config), arch=module_of(SQUARING, tmp_path))
    assert len(lm.generate([3, 4, 5], max_tokens=5, temperature=0.0).tokens) >= 1
    laws.check_causality(lm.model, lambda rng, shape: rng.integers(0, 272, shape).astype(np.int32))


def test_a_family_that_forgets_a_parameter_is_refused_by_its_name(tmp_path):
    without = SQUARING.replace('    "square.up": Tensor("model.layers.{i}.mlp.up_proj.weight"),\n', "")
    config = files.CONFIG | {"model_type": "squaring", "hidden_act": "square"}
    with pytest.raises(UserError, match=r"squaring architecture names no tensor for square\.up"):
        minillm.load(files.write_folder(tmp_path, config), arch=module_of(without, tmp_path))


def table() -> str:
    """A row for each family: its file, its names in both kinds of checkpoints, and what it says about itself."""
    rows = []
    for arch in all_archs():
        module: Any = arch
        name, title = module.__name__.rpartition(".")[2], module.__doc__.splitlines()[0]
        names = (", ".join(f"`{one}`" for one in kind) for kind in (arch.HF, arch.GGUF))
        rows.append(f"| [{name}]({name}.py) | {' | '.join(names)} | {title} |\n")
    return "".join(rows)


def test_the_readme_lists_the_families_there_are():
    assert README.read_text().partition(HEAD)[2] == table(), WRITE


def test_every_family_is_held_to_another_implementation():
    goldens = Path(files.__file__).parent / "goldens"
    held = {json.loads(str(np.load(path)["provenance"]))["family"] for path in goldens.glob("tiny_*.npz")}
    for arch in all_archs():
        assert held & set(arch.HF), f"no golden for {arch.HF}"


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(text.partition(HEAD)[0] + HEAD + table())
