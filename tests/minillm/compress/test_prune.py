"""What contributes nothing goes first, and nothing is missed; what is saved is what was pruned."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import lm as language_model
from minillm.archs import find_hf
from minillm.checkpoint.folder_writer import write_folder
from minillm.compress import calibration, prune
from minillm.compress.calibration import calibrated
from minillm.compress.prune import (
    best_inputs,
    described,
    influence,
    without_channels,
    without_heads,
    without_layers,
)
from minillm.errors import UserError
from minillm.quant import Dense
from minillm.span import Span

SEEDS = st.integers(0, 2**32 - 1)
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}
QWEN2 = LLAMA | {"model_type": "qwen2"}  # with biases
SMOLLM3 = LLAMA | {
    "model_type": "smollm3",
    "pad_token_id": 0,
    "no_rope_layers": [1, 0, 1],
    "layer_types": ["full_attention"] * 3,
}
TOKENS = np.random.default_rng(0).integers(0, 30, (2, 32)).astype(np.int32)


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Unoptimised programs: what they give is compared with each other."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((calibration, "read"), (prune, "cosines"), (language_model, "score")):
            program = jax.jit(cast(Any, getattr(module, name)).__wrapped__, compiler_options=QUICK)
            patch.setattr(module, name, program)
        yield


def inputs_of(model):
    (inputs,) = calibrated(model, iter([TOKENS]))
    return inputs


def silenced(linear, rows):
    """The layer with some of its inputs unheard."""
    weight = getattr(linear, "weight", linear)
    w = np.asarray(weight.dense()).copy()
    w[rows] = 0
    new = Dense(jnp.asarray(w.T)).T
    return linear.replace(weight=new) if linear is not weight else new


def with_biases(lm):
    """Biases of a fresh model are zero; here they are not."""
    rng = np.random.default_rng(3)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
            if jax.tree_util.keystr(path).endswith(".bias")
            else leaf
        ),
        lm.model,
    )


def with_blocks(model, change):
    return model.replace(blocks=tuple(change(i, block) for i, block in enumerate(model.blocks)))


def assert_same_logits(one, other):
    found, expected = calibration.read(one, TOKENS), calibration.read(other, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("values", [LLAMA, QWEN2], ids=["plain", "biased"])
def test_channels_that_nobody_hears_go_first_and_the_model_is_the_same(values):
    lm, rng = minillm.init(values), np.random.default_rng(1)
    unheard = [rng.permutation(24)[:12] for _ in lm.model.blocks]
    full = with_blocks(
        with_biases(lm), lambda i, b: b.replace(down=silenced(b.down, unheard[i])) if hasattr(b, "down") else b
    )
    less, config = without_channels(full, lm.config, 0.5, inputs_of(full))
    assert [layer[1].f for layer in config.layers] == [12] * 3
    assert less.blocks[1].down.shape == (12, 16)
    assert_same_logits(less, full)


@pytest.mark.parametrize("values", [LLAMA, QWEN2], ids=["plain", "biased"])
def test_heads_that_nobody_hears_go_first_with_their_keys_and_values(values):
    lm, rng = minillm.init(values), np.random.default_rng(2)
    unheard = [rng.integers(3) for _ in lm.model.blocks]
    full = with_blocks(
        with_biases(lm),
        lambda i, b: (
            b.replace(out=silenced(b.out, slice(8 * unheard[i], 8 * unheard[i] + 8))) if hasattr(b, "out") else b
        ),
    )
    less, config = without_heads(full, lm.config, 1 / 3, inputs_of(full))
    assert [(layer[0].h, layer[0].g, layer[0].k) for layer in config.layers] == [(4, 2, 4)] * 3
    assert {leaf.shape for leaf in jax.tree.leaves(less.blocks[0].qkv)} <= {(32, 16), (32,)}
    assert_same_logits(less, full)


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_layer_that_does_nothing_goes_first(silent):
    lm = minillm.init(LLAMA)

    def change(i, block):
        if i // 2 != silent:
            return block
        name = "down" if i % 2 else "out"
        return block.replace(**{name: silenced(getattr(block, name), slice(None))})

    full = with_blocks(lm.model, change)
    scores = influence(full, lm.config, [TOKENS])
    assert abs(scores[silent]) < 1e-6
    assert np.delete(scores, silent).min() > 1e-3
    less, config, kept = without_layers(full, lm.config, 1, [TOKENS])
    assert kept == [i for i in range(3) if i != silent]
    assert len(config.layers) == 2
    assert_same_logits(less, full)


def test_influence_is_one_less_the_cosine_of_what_a_layer_gets_and_gives():
    lm = minillm.init(LLAMA)
    streams = []
    for n in range(4):
        some = cast(Any, lm.model).replace(blocks=lm.model.blocks[: 2 * n], norm=lambda x: x)
        at = Span.chain(jnp.zeros(2, jnp.int32), jnp.full(2, 32, jnp.int32), 32)
        streams.append(np.asarray(some.hidden(TOKENS, None, at)[0], np.float64))
    scores = influence(lm.model, lm.config, [TOKENS])
    for x, y, score in zip(streams, streams[1:], scores, strict=False):
        cosine = np.sum(x * y, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        np.testing.assert_allclose(score, 1 - cosine.mean(), rtol=1e-5)


@settings(max_examples=25)
@given(SEEDS, st.sampled_from([1, 2]))
def test_rows_that_stay_make_up_for_those_that_go(seed, size):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(100, 5)) @ rng.normal(size=(5, 12)) + 0.2 * rng.normal(size=(100, 12))
    w, n = rng.normal(size=(12, 7)), 6 // size
    kept, rows = best_inputs(w, x.T @ x, n, size)
    stay = (kept[:, None] * size + np.arange(size)).ravel()
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == n
    assert np.linalg.norm(x @ w - x[:, stay] @ rows) < np.linalg.norm(x @ w - x[:, stay] @ w[stay])


@settings(max_examples=25)
@given(SEEDS)
def test_of_inputs_that_are_not_related_the_weakest_go_and_the_rows_stay_as_they_are(seed):
    rng = np.random.default_rng(seed)
    w, power = rng.normal(size=(8, 3)).astype(np.float32), rng.uniform(0.1, 2, 8)
    kept, rows = best_inputs(w, np.diag(power), 4)
    energy = power * np.sum(w.astype(np.float64) ** 2, axis=1)
    assert kept.tolist() == sorted(np.argsort(-energy)[:4].tolist())
    np.testing.assert_array_equal(rows, w[kept])


def smaller(values, layers=1, heads=1 / 3, ffn=0.5):
    lm = minillm.init(values)
    less, config, kept = without_layers(lm.model, lm.config, layers, [TOKENS])
    less, config = without_heads(less, config, heads, inputs_of(less))
    less, config = without_channels(less, config, ffn, inputs_of(less))
    return less, config, kept, described(values, lm.config, config, kept, find_hf(values["model_type"], ""))


@pytest.mark.parametrize("values", [LLAMA, QWEN2, SMOLLM3], ids=lambda values: values["model_type"])
def test_a_pruned_model_is_saved_and_loaded_as_it_is(values, tmp_path):
    less, config, kept, new = smaller(values)
    write_folder(tmp_path / "m", less, new, dtype="F32")
    again = minillm.load(tmp_path / "m")
    assert again.config == config
    np.testing.assert_array_equal(
        again.logits(TOKENS), language_model.score(less, TOKENS, np.full(2, 32, np.int32))
    )
    assert new["intermediate_size"] == 12
    assert (new["num_attention_heads"], new["num_key_value_heads"], new["head_dim"]) == (4, 2, 4)
    if "no_rope_layers" in values:
        assert new["no_rope_layers"] == [values["no_rope_layers"][i] for i in kept]


def test_sizes_that_did_not_change_are_not_written():
    lm = minillm.init(values := {key: one for key, one in LLAMA.items() if key != "head_dim"} | {"hidden_size": 24})
    _, config = without_channels(lm.model, lm.config, 0.5, inputs_of(lm.model))
    new = described(values, lm.config, config, [0, 1, 2], find_hf("llama", ""))
    assert new == values | {"intermediate_size": 12}


def test_what_a_config_has_no_words_for_is_refused():
    values = LLAMA | {"model_type": "gemma2", "sliding_window": 8}  # in every second layer, the first among them
    lm = minillm.init(values)
    config = replace(lm.config, layers=lm.config.layers[1:])
    words = r"gemma2 pruned like this cannot be saved: in its config\.json, layers\[0\]\[0\]\.window is None"
    with pytest.raises(UserError, match=words):
        described(values, lm.config, config, [1, 2], find_hf("gemma2", ""))
    kept = replace(lm.config, layers=lm.config.layers[:2])
    assert described(values, lm.config, kept, [0, 1], find_hf("gemma2", ""))["num_hidden_layers"] == 2


def test_models_without_what_is_to_go_are_refused_by_family(tmp_path):
    experts = minillm.init(LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2})
    with pytest.raises(UserError, match=r"mixtral is made of Attention, MoE; what can be pruned is MLP"):
        without_channels(experts.model, experts.config, 0.5, {})
    norms = minillm.init(tiny.settings("olmoe_0", tmp_path))
    with pytest.raises(
        UserError, match=r"heads of olmoe cannot be pruned: its attention has a norm over all heads"
    ):
        without_heads(norms.model, norms.config, 0.5, cast(Any, defaultdict(lambda: SimpleNamespace(gram=None))))


def test_shares_that_leave_nothing_or_take_nothing_are_refused():
    lm = minillm.init(LLAMA)
    inputs = inputs_of(lm.model)
    for share in (0.1, 1.0, -0.5):
        with pytest.raises(UserError, match="of 3 groups of heads a layer"):
            without_heads(lm.model, lm.config, share, inputs)
    for n in (0, 3):
        with pytest.raises(UserError, match=f"{n} of 3 layers cannot go, expected 1 to 2"):
            without_layers(lm.model, lm.config, n, [TOKENS])
    with pytest.raises(UserError, match=r"stored as \w+, expected plain numbers"):
        without_channels(lm.quantize("w8a8")[0].model, lm.config, 0.5, inputs)


@pytest.mark.oracle
@pytest.mark.parametrize("values", [LLAMA, QWEN2, SMOLLM3], ids=lambda values: values["model_type"])
def test_transformers_runs_the_pruned_model(values, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    less, _, _, new = smaller(values)
    write_folder(tmp_path / "m", less, new, dtype="F32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    tiny.assert_agrees(minillm.load(tmp_path / "m").logits(TOKENS), expected)
