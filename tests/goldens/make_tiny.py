"""Writes tiny_FAMILY_CASE.npz: small random checkpoints as transformers saves them, and its logits for them.

    python tests/goldens/make_tiny.py [FAMILY …]     (needs the `oracle` extra; all families by default)

Real models have one shape each. These have the others: tied or not, grouped queries or not, a head dimension that
is not d / h, odd sizes and constants, windows shorter than the text, shards and bfloat16. Each .npz holds the files
of a checkpoint as bytes, the tokens, and the logits [t, v] at `places`.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 544
PLACES = np.unique(
    np.r_[np.arange(0, TOKENS, 11), np.arange(TOKENS - 24, TOKENS)]
)  # enough of them, and all the late

SMALL = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
UNTIED = SMALL | {
    "vocab_size": 53,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
ODD = SMALL | {
    "vocab_size": 47,
    "hidden_size": 35,
    "intermediate_size": 50,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "tie_word_embeddings": False,
}


def rope(kind: str = "default", theta: float = 10000.0, **options: Any) -> dict[str, Any]:
    """Rotary positions as transformers 5 writes them."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


def longrope(original: int, **options: Any) -> dict[str, Any]:
    """LongRoPE for heads of 16 channels, half of which turn."""
    factors = {"long_factor": [1.0, 1.5, 4.0, 9.0], "short_factor": [1.0, 1.25, 1.5, 2.0]}
    return rope("longrope", **factors, **options) | {"original_max_position_embeddings": original}


FULL, SLIDING = "full_attention", "sliding_attention"
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
NO_CAPS = dict.fromkeys(CAPS)
TURNS = {"rope_type": "default", "rope_theta": 100.0}
SLOWLY = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # where the defaults lie outside small vocabularies
GPT2 = IDS | {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 560}
GPT2 |= {"initializer_range": 0.2}
PHI3 = {k: v for k, v in UNTIED.items() if k != "head_dim"} | IDS | {"hidden_size": 32, "num_attention_heads": 2}
PHI3 |= {"num_key_value_heads": 2}
MAMBA = {"vocab_size": 61, "hidden_size": 24, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2}
PLAIN_CONV = {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}
LATENT = {k: v for k, v in UNTIED.items() if k != "head_dim"} | IDS
LATENT |= {"hidden_size": 40, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}
LATENT |= {"q_lora_rank": None, "kv_lora_rank": 24, "qk_nope_head_dim": 4, "qk_rope_head_dim": 6, "v_head_dim": 4}
LATENT |= {"first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 10}
LATENT |= {"n_shared_experts": 2, "routed_scaling_factor": 1.75, "num_hidden_layers": 2}
FEW_LATENTS = {"q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 5}
GROUPS = {"n_group": 4, "topk_group": 2}
LATENT_YARN = rope("yarn", factor=8.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=0.7)
UNEQUAL = rope("yarn", 300.0, factor=5.0, original_max_position_embeddings=110, mscale=0.5, mscale_all_dim=1.2)
MIXTRAL = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 24}
SMALL_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 10}
OLMOE = {k: v for k, v in UNTIED.items() if k != "head_dim"} | IDS | {"num_experts": 7, "intermediate_size": 10}
OSS = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 14, "eos_token_id": 2}
OSS_YARN = {"factor": 8.0, "original_max_position_embeddings": 128, "truncate": False}
NEXT = SMALL | {"layer_types": ["linear_attention", FULL], "linear_num_key_heads": 2, "linear_num_value_heads": 4}
NEXT |= {"linear_key_head_dim": 6, "linear_value_head_dim": 5, "num_experts": 5, "num_experts_per_tok": 2}
NEXT |= {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 10, "slow": 4.0}
NEXT |= {"rms_norm_eps": 0.02}  # with a small one, the norm behind the delta rule blows up rounding, theirs to 3e-5
JAMBA = {k: v for k, v in SMALL.items() if k != "head_dim"} | {"attn_layer_period": 2, "attn_layer_offset": 1}
JAMBA |= {"hidden_size": 32, "mamba_d_state": 6, "mamba_dt_rank": 3, "num_experts": 4, "intermediate_size": 20}
BAMBA = {k: v for k, v in SMALL.items() if k != "head_dim"} | {"attn_layer_indices": [1], "mamba_n_heads": 8}
BAMBA |= {"hidden_size": 32, "intermediate_size": 20, "mamba_d_state": 6, "mamba_n_groups": 2, "slow": 5.0}

# By transformers' model_type: settings of its config; `shard` and `dtype` say how the checkpoint is written,
# `context` for how many tokens it is to be opened, and `slow` by how much a recurrence's time is slowed down.
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "llama": [
        SMALL | {"rms_norm_eps": 1e-5},
        UNTIED | rope(theta=500000.0) | {"shard": "40KB"},
        ODD | rope(theta=777.0) | {"rms_norm_eps": 1e-3, "dtype": "bfloat16"},
        SMALL | rope("linear", factor=3.0) | {"rms_norm_eps": 0.02, "num_hidden_layers": 3},
        SMALL
        | rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
        ),
        SMALL | rope("yarn", factor=4.0, original_max_position_embeddings=256),
    ],
    "mistral": [
        SMALL | {"sliding_window": 7, "rms_norm_eps": 1e-5},
        UNTIED | rope(theta=1e6) | {"sliding_window": None},
        ODD | {"sliding_window": 100, "rms_norm_eps": 1e-3},
    ],
    "qwen2": [
        SMALL | {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
        UNTIED | rope(theta=1e6) | {"sliding_window": 50, "max_window_layers": 0},
        ODD | {"use_sliding_window": True, "sliding_window": 250, "layer_types": [SLIDING, FULL]},
    ],
    "qwen3": [
        SMALL | rope(theta=1e6) | {"use_sliding_window": True, "sliding_window": 200, "max_window_layers": 0},
        UNTIED | {"rms_norm_eps": 0.01},
        ODD | rope("yarn", factor=4.0, original_max_position_embeddings=128) | {"layer_types": [FULL, FULL]},
    ],
    "gemma": [
        SMALL,
        UNTIED | rope(theta=500.0) | {"rms_norm_eps": 0.01, "hidden_act": "gelu"},
        ODD | {"dtype": "bfloat16"},
    ],
    "gemma2": [
        SMALL | CAPS | {"sliding_window": 40, "query_pre_attn_scalar": 24},
        UNTIED | NO_CAPS | {"sliding_window": 200, "layer_types": [FULL, SLIDING], "num_hidden_layers": 2},
        ODD | CAPS | {"sliding_window": 8, "num_hidden_layers": 3, "rms_norm_eps": 0.01},
    ],
    "gemma3_text": [
        SMALL
        | {"rope_parameters": {SLIDING: TURNS, FULL: SLOWLY}}
        | {"sliding_window": 4, "layer_types": [SLIDING, FULL], "query_pre_attn_scalar": 24},
        UNTIED | {"sliding_window": 60, "sliding_window_pattern": 2, "final_logit_softcapping": 6.0},
        ODD | {"sliding_window": 8, "num_hidden_layers": 6, "intermediate_size": 30},
    ],
    "gpt2": [
        GPT2,
        GPT2 | {"n_inner": 50, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        GPT2 | {"n_embd": 25, "n_head": 5, "scale_attn_weights": False, "layer_norm_epsilon": 0.01},
    ],
    "phi3": [
        PHI3 | {"sliding_window": 13, "num_key_value_heads": 1},
        PHI3 | longrope(original=256, partial_rotary_factor=0.5),
        PHI3 | longrope(original=600, partial_rotary_factor=0.5) | {"context": 600, "tie_word_embeddings": True},
    ],
    "mamba": [
        MAMBA,
        MAMBA
        | PLAIN_CONV
        | {"tie_word_embeddings": False, "expand": 3, "time_step_rank": 5, "layer_norm_epsilon": 0.01},
        MAMBA | {"hidden_size": 35, "state_size": 5, "conv_kernel": 5, "expand": 1, "dtype": "bfloat16"},
    ],
    "falcon_mamba": [
        MAMBA | {"tie_word_embeddings": False, "mixer_rms_eps": 0.01},
        MAMBA | {"mixer_rms_eps": 1e-4, "use_bias": True, "time_step_rank": 7, "layer_norm_epsilon": 0.01},
    ],
    "mamba2": [
        MAMBA | {"num_heads": 8, "head_dim": 6, "n_groups": 2, "chunk_size": 64},
        MAMBA
        | PLAIN_CONV
        | {"tie_word_embeddings": True, "num_heads": 9, "head_dim": 8, "n_groups": 1, "expand": 3},
        MAMBA | {"num_heads": 6, "head_dim": 8, "n_groups": 3, "chunk_size": 7, "layer_norm_epsilon": 0.01},
    ],
    "smollm3": [
        SMALL | IDS | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 60},
        UNTIED | IDS | rope(theta=50.0) | {"no_rope_layers": [0, 1]},
    ],
    "deepseek_v2": [
        LATENT | LATENT_YARN | {"topk_method": "greedy"},
        LATENT | FEW_LATENTS | GROUPS | UNEQUAL | {"topk_method": "group_limited_greedy", "rms_norm_eps": 0.01},
        LATENT
        | rope(theta=9.0)
        | {"first_k_dense_replace": 0, "num_hidden_layers": 1, "tie_word_embeddings": True},
    ],
    "deepseek_v3": [
        LATENT | FEW_LATENTS | GROUPS | LATENT_YARN,
        LATENT | GROUPS | UNEQUAL | {"norm_topk_prob": False, "rms_norm_eps": 0.01, "num_nextn_predict_layers": 0},
        LATENT | FEW_LATENTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2, "num_hidden_layers": 3},
    ],
    "mixtral": [
        SMALL | MIXTRAL | {"sliding_window": 60},
        UNTIED | rope(theta=50.0) | MIXTRAL | {"num_experts_per_tok": 4, "intermediate_size": 12, "shard": "60KB"},
        ODD | MIXTRAL | {"num_experts_per_tok": 1, "hidden_act": "gelu", "rms_norm_eps": 1e-3, "dtype": "bfloat16"},
    ],
    "qwen3_moe": [
        SMALL | SMALL_EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1]},
        UNTIED | SMALL_EXPERTS | {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 70},
        ODD | SMALL_EXPERTS | rope(theta=1e6) | {"num_experts_per_tok": 8, "rms_norm_eps": 0.01},
    ],
    "olmoe": [
        OLMOE | {"num_experts_per_tok": 3, "num_key_value_heads": 2},
        OLMOE | rope(theta=500.0) | {"num_experts_per_tok": 2, "norm_topk_prob": True, "rms_norm_eps": 0.01},
    ],
    "gpt_oss": [
        SMALL | OSS | rope("yarn", 150000.0, **OSS_YARN) | {"sliding_window": 30, "swiglu_limit": 0.8},
        UNTIED | OSS | rope("yarn", 300.0, **OSS_YARN) | {"swiglu_limit": 0.2, "num_experts_per_tok": 4},
        ODD | OSS | rope(theta=50.0) | {"sliding_window": 8, "layer_types": [FULL, SLIDING], "dtype": "bfloat16"},
    ],
    "qwen3_next": [
        NEXT,
        NEXT
        | rope(theta=1e6, partial_rotary_factor=0.5)
        | {"layer_types": None, "full_attention_interval": 2, "mlp_only_layers": [1], "num_hidden_layers": 3}
        | {"linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_conv_kernel_dim": 2, "slow": 2.0}
        | {"norm_topk_prob": False, "tie_word_embeddings": False, "intermediate_size": 24, "rms_norm_eps": 0.05},
        NEXT
        | {"hidden_size": 35, "head_dim": 8, "decoder_sparse_step": 2, "rms_norm_eps": 0.01, "dtype": "bfloat16"},
    ],
    "jamba": [
        JAMBA,
        JAMBA
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_d_conv": 3, "mamba_expand": 1}
        | {"attn_layer_offset": 0, "expert_layer_period": 3, "expert_layer_offset": 2, "num_hidden_layers": 3}
        | {"tie_word_embeddings": False},
        JAMBA | {"num_experts": 1, "mamba_dt_rank": "auto", "rms_norm_eps": 0.01, "dtype": "bfloat16"},
    ],
    "bamba": [
        BAMBA,
        BAMBA
        | rope(theta=77.0)
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_n_groups": 1, "mamba_expand": 1, "slow": 2.0}
        | {"attn_layer_indices": [0, 2], "num_hidden_layers": 3, "tie_word_embeddings": False},
        BAMBA | {"mamba_d_conv": 3, "mamba_n_groups": 4, "rms_norm_eps": 0.01, "dtype": "bfloat16"},
    ],
}


def write_tiny(folder: Path, family: str, case: int, seed: int) -> np.ndarray:
    """Save a checkpoint of FAMILIES[family][case] with random weights; random tokens i32 [t] to try it on."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    settings = dict(FAMILIES[family][case])
    slow = settings.pop("slow", 0.0)
    shard, dtype, _ = settings.pop("shard", "1GB"), settings.pop("dtype", None), settings.pop("context", None)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith("dt_bias"):  # as it starts, nothing is remembered for long
                weight.sub_(slow)
            if weight.ndim == 1 or name.endswith("bias"):  # ones and zeros would hide it if one is left out
                weight.add_(torch.rand_like(weight) - 0.5)
            weight.copy_(weight.bfloat16())  # the rest of the digits compress to nothing
    if dtype:
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard)
    return np.random.default_rng(seed).integers(0, settings["vocab_size"], TOKENS).astype(np.int32)


def reference_model(folder: Path):
    """The checkpoint as transformers opens it, in float32 whatever the weights are stored in."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **plain).eval()


def reference_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Its logits float32 [t, v] for tokens i32 [t]."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return reference_model(folder)(torch.tensor(tokens[None]).long(), use_cache=False).logits[0].numpy()


def main(families: list[str]) -> None:
    """Write the goldens of these families; a case's number is its seed."""
    for family in families:
        for case in range(len(FAMILIES[family])):
            provenance = {
                "script": Path(__file__).name,
                "family": family,
                "case": case,
                **{package: version(package) for package in ("torch", "transformers", "safetensors")},
            }
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                tokens = write_tiny(folder, family, case, seed=case)
                files = {
                    f"files/{file.name}": np.frombuffer(file.read_bytes(), np.uint8) for file in folder.iterdir()
                }
                logits = reference_logits(folder, tokens)[PLACES]
            out = Path(__file__).with_name(f"tiny_{family}_{case}.npz")
            arrays = {"tokens": tokens, "places": PLACES, "logits": logits, **files}
            np.savez_compressed(out, provenance=json.dumps(provenance), **arrays)


if __name__ == "__main__":
    main(sys.argv[1:] or list(FAMILIES))
