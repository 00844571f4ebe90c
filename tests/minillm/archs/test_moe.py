"""What config files of models with experts say in more than one way, and where tokens go."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import config, settings, without

import minillm
from minillm.blocks import MLPSpec, MoE, MoESpec
from minillm.errors import UserError
from minillm.span import Span


def test_experts_may_be_counted_by_either_name(tmp_path):
    values = settings("qwen3_moe_0", tmp_path)
    e = values["num_local_experts"]  # as transformers 5 writes it
    assert config(without(values, "num_local_experts", num_experts=e)) == config(values)
    assert config(values | {"num_experts": e}) == config(values)


def test_a_qwen3_moe_has_plain_layers_where_it_says_so(tmp_path):
    values = settings("qwen3_moe_1", tmp_path) | {"num_hidden_layers": 6, "mlp_only_layers": [3]}
    kinds = [type(layer[1]) for layer in config(values).layers]  # every second one, but not the fourth
    assert kinds == [MLPSpec, MoESpec, MLPSpec, MLPSpec, MLPSpec, MoESpec]


def test_a_qwen3_moe_may_bring_the_fields_of_a_window_that_it_does_not_use(tmp_path):
    values = settings("qwen3_moe_0", tmp_path)
    assert config(values | {"max_window_layers": 48, "sliding_window": 4096}) == config(values)


def test_a_gpt_oss_looks_back_a_window_in_every_other_layer_unless_it_lists_them(tmp_path):
    values = settings("gpt_oss_0", tmp_path)
    assert config(without(values, "layer_types")) == config(values)
    listed = config(settings("gpt_oss_2", tmp_path))
    assert [layer[0].window for layer in listed.layers] == [None, 8]


def test_a_gpt_oss_may_have_the_fields_of_its_first_release(tmp_path):
    values = settings("gpt_oss_0", tmp_path)
    scaling = values["rope_parameters"]
    old = without(values, "rope_parameters", "swiglu_alpha", rope_theta=scaling["rope_theta"])
    old |= {"rope_scaling": scaling | {"rope_theta": None}, "experts_per_token": 2, "initial_context_length": 4096}
    assert config(old) == config(values)


REFUSED = {
    "num_experts_per_tok is 9, expected at most the number of experts, 5": (
        "mixtral_0",
        {"num_experts_per_tok": 9},
    ),
    "num_local_experts is missing": ("mixtral_0", {"num_local_experts": None}),
    "num_local_experts is 8, which is not supported; expected 7": ("qwen3_moe_0", {"num_experts": 7}),
    "norm_topk_prob is 1": ("qwen3_moe_0", {"norm_topk_prob": 1}),
    "max_window_layers = 1": ("qwen3_moe_1", {"max_window_layers": 1}),
    "mlp_only_layers is .2., expected a list of whole numbers from 0 to 1": (
        "qwen3_moe_0",
        {"mlp_only_layers": [2]},
    ),
    "num_experts_per_tok is 9, expected at most the number of experts, 8": (
        "deepseek_v2_0",
        {"num_experts_per_tok": 9},
    ),
    "n_group is 3, expected a divisor of the number of experts, 8": ("deepseek_v3_0", {"n_group": 3}),
    "topk_group is 5, expected a whole number from 2 to n_group = 4": ("deepseek_v3_0", {"topk_group": 5}),
    "topk_group is 1, expected a whole number from 2 to n_group = 4": ("deepseek_v3_0", {"topk_group": 1}),
    "qk_rope_head_dim is 5, expected an even number": (
        "deepseek_v2_0",
        {"qk_rope_head_dim": 5, "head_dim": 5, "qk_head_dim": 9},
    ),
    "clip_qkv is 8.0": ("olmoe_0", {"clip_qkv": 8.0}),
    "swiglu_alpha is 1.5": ("gpt_oss_0", {"swiglu_alpha": 1.5}),
    "swiglu_limit is 0": ("gpt_oss_0", {"swiglu_limit": 0}),
    "experts_per_token is 3": ("gpt_oss_0", {"experts_per_token": 3}),
    "attention_bias is False": ("gpt_oss_0", {"attention_bias": False}),
    "rope_parameters is None, expected an object": ("gpt_oss_0", {"rope_parameters": None}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_by_field(message, tmp_path):
    name, change = REFUSED[message]
    with pytest.raises(UserError, match=message):
        config(settings(name, tmp_path) | change)


def chosen_here(model, tokens: np.ndarray) -> list[np.ndarray]:
    """The experts i32 [t, m] of each token i32 [t] in each layer that has some, best first."""
    n = jnp.full(1, len(tokens), jnp.int32)
    at, x, chosen = Span.chain(jnp.zeros_like(n), n, len(tokens)), model.embed.rows(jnp.asarray(tokens)[None]), []
    for block in model.blocks:
        if isinstance(block, MoE):
            chosen.append(np.asarray(block.route(block.norm(x)[0])[1]))
        x, _ = block(x, None, at)
    return chosen


def chosen_by_transformers(folder, tokens: np.ndarray) -> list[np.ndarray]:
    """The same, as its routers return them."""
    import torch  # pyright: ignore[reportMissingImports]

    model, chosen = tiny.SCRIPT["reference_model"](folder), []
    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(lambda module, x, y: chosen.append(y[2].numpy()))
    model(torch.tensor(tokens[None]).long(), use_cache=False)
    return chosen


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])
def test_every_token_goes_to_the_experts_that_transformers_chooses_live(family, tmp_path):
    tokens = tiny.SCRIPT["write_tiny"](tmp_path, family, 0, seed=300)
    ours, theirs = chosen_here(minillm.load(tmp_path).model, tokens), chosen_by_transformers(tmp_path, tokens)
    assert len(ours) == len(theirs) > 0
    for here, there in zip(ours, theirs, strict=True):
        assert here.shape == (len(tokens), here.shape[1])
        assert np.array_equal(here, there)
