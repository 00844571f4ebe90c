"""A small config.json of every family, as wide as blocks of every type of GGUF files need."""

import numpy as np

from minillm.archs import find_hf
from minillm.archs.tensors import View
from minillm.blocks.params import stacked
from minillm.checkpoint.folder_writer import NoTensors
from minillm.config import Fields
from minillm.model import Model

V, D = 64, 256
EPS = 2**-17  # about 1e-5, and the same in float32: so a model from either kind of file is one program
TURNS = {"rope_type": "default", "rope_theta": 5000.0}
SIZES = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": EPS,
    "rope_parameters": TURNS,
    "tie_word_embeddings": False,
}
NARROW = SIZES | {"head_dim": 32}  # d / h, as llama.cpp has it in some families
WIDE = SIZES | {"head_dim": 64}
TIED = WIDE | {"tie_word_embeddings": True}
GEMMA = {key: value for key, value in TIED.items() if key != "rope_parameters"}
GEMMA3 = {"full_attention": TURNS, "sliding_attention": TURNS | {"rope_theta": 100.0}}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
RECURRENT = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "layer_norm_epsilon": EPS}
MAMBA = RECURRENT | {"state_size": 16}
DEEPSEEK = NARROW | {
    "q_lora_rank": D,
    "kv_lora_rank": D,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": D,
    "routed_scaling_factor": 1.5,
    "num_key_value_heads": 8,
}
DEEPSEEK = {key: value for key, value in DEEPSEEK.items() if key != "head_dim"}

FAMILIES = {
    "bamba": {key: value for key, value in NARROW.items() if key != "head_dim"}
    | {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_expand": 2}
    | {"attn_layer_indices": [1]},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK | {"n_group": 4, "topk_group": 2},
    "falcon_mamba": MAMBA | {"mixer_rms_eps": EPS},
    "gemma": GEMMA,
    "gemma2": GEMMA | {"query_pre_attn_scalar": 64, "sliding_window": 10},
    "gemma3_text": GEMMA | {"query_pre_attn_scalar": 64, "sliding_window": 10, "rope_parameters": GEMMA3},
    "gpt2": {
        "vocab_size": V,
        "n_embd": D,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 64,
        "layer_norm_epsilon": EPS,
    },
    "gpt_oss": NARROW | LOCAL_EXPERTS | {"sliding_window": 10},
    "jamba": {key: value for key, value in NARROW.items() if key not in ("head_dim", "rope_parameters")}
    | EXPERTS
    | {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": 16, "mamba_expand": 2, "num_hidden_layers": 3}
    | {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "llama": TIED,
    "mamba": MAMBA,
    "mamba2": RECURRENT | {"num_heads": 8, "head_dim": 64, "n_groups": 2, "state_size": 16},
    "mistral": WIDE | {"sliding_window": None},
    "mixtral": NARROW | LOCAL_EXPERTS | {"sliding_window": None},
    "olmoe": {key: value for key, value in NARROW.items() if key != "head_dim"} | EXPERTS,
    "phi3": {key: value for key, value in NARROW.items() if key != "head_dim"},
    "qwen2": {key: value for key, value in NARROW.items() if key != "head_dim"},
    "qwen3": WIDE,
    "qwen3_moe": WIDE | EXPERTS | {"moe_intermediate_size": D, "norm_topk_prob": True},
    "qwen3_next": WIDE
    | EXPERTS
    | {
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "moe_intermediate_size": D,
        "shared_expert_intermediate_size": D,
    },
    "smollm3": TIED | {"num_hidden_layers": 4},
}
FAMILIES = {kind: {"model_type": kind, **values} for kind, values in FAMILIES.items()}


def shapes(values: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint of transformers."""
    arch, found = find_hf(values["model_type"], "test"), {}
    config = arch.config_from_hf(Fields(values, "config.json"))

    def get(name, layer, *shapes, init):
        whole = stacked(shapes)
        view = View(NoTensors(), config, layer)
        found.update(arch.HF_TENSORS[name].write(view, np.zeros(whole.shape, np.float32), *shapes))
        return whole

    Model.build(config, get)
    return {name: array.shape for name, array in found.items()}
