"""Checkpoints of transformers as llama.cpp's converter makes GGUF files of them, written with the `gguf` package.

It shares nothing with the reader: names of tensors are those of the package, the metadata goes through its writer,
and what happens to the rows of a tensor on the way is said here once more, after llama.cpp's own conversion. A
matrix may come as rows of bytes, uint8, of the type that `forms` has for its name: rows of either kind are put in
order alike.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHS = {
    "bamba": "granitehybrid",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "falcon_mamba": "mamba",
    "gemma3_text": "gemma3",
    "gpt_oss": "gpt-oss",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
}
TURNS_PAIRS = ("bamba", "llama", "mistral", "mixtral", "smollm3")  # rows of queries and keys, to interleaved RoPE
SHIFTS_NORMS = ("gemma", "gemma2", "gemma3_text", "qwen3_next")  # which transformers has less one
WITH_MAMBA2 = ("bamba", "mamba2")

Tensors = dict[str, np.ndarray]
PLAIN: Mapping[str, str] = {}


def convert(path: Path, values: dict, tensors: Tensors, forms: Mapping[str, str] = PLAIN, **options: Any) -> Path:
    """Write the tensors of a folder with these values in its config.json; options are GGUFWriter's."""
    kind: str = values["model_type"]
    name = ARCHS.get(kind, kind)
    arch = next(number for number, one in gguf.MODEL_ARCH_NAMES.items() if one == name)
    names = gguf.get_tensor_name_map(arch, values.get("num_hidden_layers") or values["n_layer"])
    writer = gguf.GGUFWriter(path, name, **options)
    add_metadata(writer, values)
    for source, name, x in changed(values, tensors):
        new = names.get_name(name, (".weight", ".bias"))
        assert new, name
        coded = gguf.GGMLQuantizationType[forms[source]] if x.dtype == np.uint8 else None
        writer.add_tensor(new, np.ascontiguousarray(x), raw_dtype=coded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def is_turned(name: str) -> bool:
    """Whether transformers has a matrix of this name as [in, out]; rows of bytes are those of [out, in]."""
    return re.search(r"\.c_(attn|proj|fc)\.weight$|experts\.(gate_up|down)_proj$", name) is not None


def changed(values: dict, tensors: Tensors) -> Iterator[tuple[str, str, np.ndarray]]:
    """The tensors as the file has them: what each is made of, or the first of these; a name the package knows."""
    kind, experts = values["model_type"], defaultdict(dict)
    for name, x in tensors.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        one = re.search(r"\.experts\.(\d+)\.(\w+)\.weight$", name)
        if one and layer:
            matrix = ("layers.{}.feed_forward" if kind == "mixtral" else "model.layers.{}.mlp").format(layer[1])
            experts[f"{matrix}.experts.{one[2]}.weight"][int(one[1])] = name
            continue
        if is_turned(name) and x.dtype != np.uint8:
            x = x.swapaxes(-1, -2)
        yield from ((name, new, y) for new, y in changed_one(kind, values, name, x))
    for new, names in experts.items():
        yield names[0], new, np.stack([tensors[names[e]] for e in range(len(names))])


def changed_one(kind: str, values: dict, name: str, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A tensor that is none of an expert alone."""
    last = re.sub(r"\.(weight|bias)$", "", name).rpartition(".")[2]
    if last in ("q_proj", "k_proj") and kind in TURNS_PAIRS:
        heads = values["num_attention_heads" if last == "q_proj" else "num_key_value_heads"]
        yield name, x.reshape(heads, 2, len(x) // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)
    elif last == "A_log":
        yield name, -np.exp(x[:, None] if kind in WITH_MAMBA2 else x)
    elif last == "D" and kind in WITH_MAMBA2:
        yield name, x[:, None]
    elif last == "dt_bias":
        yield name.replace("dt_bias", "dt_proj.bias"), x
    elif last == "conv1d" and x.ndim == 3:
        yield name, x[:, 0]
    elif re.search(r"(mixer|mamba)\.norm\.weight$", name):
        yield name, x.reshape(values["mamba_n_groups" if kind == "bamba" else "n_groups"], -1)
    elif name.endswith("norm.weight") and kind in SHIFTS_NORMS and "linear_attn" not in name:
        yield name, x + 1
    elif last == "shared_expert_gate":
        yield name, x[0]
    elif last == "in_proj_qkvz":
        k, g = values["linear_key_head_dim"], values["linear_num_key_heads"]
        rows = values["linear_num_value_heads"] // g * values["linear_value_head_dim"]
        parts = np.split(x.reshape(g, -1, x.shape[-1]), [k, 2 * k, 2 * k + rows], axis=1)
        *qkv, z = (part.reshape(-1, x.shape[-1]) for part in parts)
        yield name.replace("in_proj_qkvz", "in_proj_qkv"), np.concatenate(qkv)
        yield name.replace("in_proj_qkvz", "in_proj_z"), z
    elif last == "kv_b_proj":
        heads = x.reshape(values["num_attention_heads"], -1, x.shape[-1])
        k, v = np.split(heads, [values["qk_nope_head_dim"]], axis=1)
        yield name.replace("kv_b_proj", "k_b_proj"), k.swapaxes(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), v
    elif last == "e_score_correction_bias":
        yield name.replace("_bias", ".bias"), x
    elif last in ("gate_up_proj", "gate_up_proj_bias") and kind == "gpt_oss":
        axis, suffix = (1, "bias") if last.endswith("bias") else (-2, "weight")
        for i, part in enumerate(("gate", "up")):
            rows = np.arange(i, x.shape[axis], 2)
            yield name.replace(last, f"{part}_proj.{suffix}"), np.take(x, rows, axis)
    elif last in ("down_proj", "down_proj_bias") and kind == "gpt_oss":
        yield name.replace(last, f"down_proj.{'bias' if last.endswith('bias') else 'weight'}"), x
    elif last == "sinks":
        yield f"{name}.weight", x
    else:
        yield name, x


def add_metadata(writer: gguf.GGUFWriter, values: dict) -> None:
    """What the converter says of a family, and as many tokens as there are."""
    kind = values["model_type"]
    v = {**values, "kind": kind, "n_layers": values.get("num_hidden_layers") or values.get("n_layer")}
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(v["n_layers"])
    writer.add_tokenizer_model("none")
    writer.add_token_list([f"t{i}" for i in range(v["vocab_size"])])
    if kind in ("mamba", "falcon_mamba", "mamba2"):
        add_recurrent(writer, v)
    elif kind in ("jamba", "bamba"):
        add_hybrid(writer, v)
    elif kind == "gpt2":
        writer.add_context_length(v["n_positions"])
        writer.add_embedding_length(v["n_embd"])
        writer.add_feed_forward_length(4 * v["n_embd"])
        writer.add_head_count(v["n_head"])
        writer.add_layer_norm_eps(v["layer_norm_epsilon"])
    else:
        add_transformer(writer, v)


def add_transformer(writer: gguf.GGUFWriter, v: dict) -> None:
    """Sizes, rotary positions, experts; then what is a family's own."""
    kind, rope = v["kind"], v.get("rope_parameters", {})
    writer.add_context_length(v["max_position_embeddings"])
    writer.add_embedding_length(v["hidden_size"])
    writer.add_feed_forward_length(v["intermediate_size"])
    writer.add_head_count(v["num_attention_heads"])
    writer.add_head_count_kv(1 if kind.startswith("deepseek") else v["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(v["rms_norm_eps"])
    if kind not in ("gemma", "gemma2"):
        writer.add_rope_freq_base(rope.get("full_attention", rope).get("rope_theta") or v["rope_theta"])
    if "head_dim" in v:
        writer.add_key_length(v["head_dim"])
        writer.add_value_length(v["head_dim"])
    count = v.get("num_local_experts") or v.get("num_experts") or v.get("n_routed_experts")
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(v["num_experts_per_tok"])
    if "moe_intermediate_size" in v or kind == "gpt_oss":
        writer.add_expert_feed_forward_length(v.get("moe_intermediate_size") or v["intermediate_size"])
    if kind in TURNS_PAIRS:
        writer.add_vocab_size(v["vocab_size"])
        writer.add_rope_dimension_count(v["head_dim"])
    if kind in ("gemma2", "gemma3_text", "gpt_oss"):
        writer.add_sliding_window(v["sliding_window"])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if kind == "gemma3_text":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if kind == "phi3":
        writer.add_rope_scaling_orig_ctx_len(v["max_position_embeddings"])
        writer.add_rope_dimension_count(v["hidden_size"] // v["num_attention_heads"])
        writer.add_sliding_window(0)
    if kind == "qwen3_next":
        writer.add_expert_shared_feed_forward_length(v["shared_expert_intermediate_size"])
        writer.add_ssm_conv_kernel(v["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(v["linear_key_head_dim"])
        writer.add_ssm_group_count(v["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(v["linear_num_value_heads"])
        writer.add_ssm_inner_size(v["linear_num_value_heads"] * v["linear_value_head_dim"])
        writer.add_full_attention_interval(v["full_attention_interval"])
        writer.add_rope_dimension_count(v["head_dim"] // 4)
    if kind.startswith("deepseek"):
        add_deepseek(writer, v)


def add_deepseek(writer: gguf.GGUFWriter, v: dict) -> None:
    """Latent attention as one head over the latent, and experts in groups."""
    turned = v["qk_rope_head_dim"]
    writer.add_vocab_size(v["vocab_size"])
    writer.add_leading_dense_block_count(v["first_k_dense_replace"])
    writer.add_q_lora_rank(v["q_lora_rank"])
    writer.add_kv_lora_rank(v["kv_lora_rank"])
    writer.add_key_length(v["kv_lora_rank"] + turned)
    writer.add_value_length(v["kv_lora_rank"])
    writer.add_key_length_mla(v["qk_nope_head_dim"] + turned)
    writer.add_value_length_mla(v["v_head_dim"])
    writer.add_rope_dimension_count(turned)
    writer.add_expert_shared_count(v["n_shared_experts"])
    writer.add_expert_weights_scale(v["routed_scaling_factor"])
    if v["kind"] == "deepseek_v3":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(True)
        writer.add_expert_group_count(v["n_group"])
        writer.add_expert_group_used_count(v["topk_group"])


def add_recurrent(writer: gguf.GGUFWriter, v: dict) -> None:
    """Mamba and Mamba-2; the context and the zeros are there for llama.cpp."""
    inner = 2 * v["hidden_size"]
    writer.add_context_length(2**20)
    writer.add_embedding_length(v["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(v.get("conv_kernel", 4))
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(v["state_size"])
    writer.add_layer_norm_rms_eps(v["layer_norm_epsilon"])
    if v["kind"] == "mamba2":
        writer.add_ssm_time_step_rank(v["num_heads"])
        writer.add_ssm_group_count(v["n_groups"])
    else:
        writer.add_ssm_time_step_rank(-(-v["hidden_size"] // 16))
        writer.add_ssm_dt_b_c_rms(v["kind"] == "falcon_mamba")


def add_hybrid(writer: gguf.GGUFWriter, v: dict) -> None:
    """Jamba and Bamba: layers of Mamba are those without heads for keys."""
    writer.add_context_length(v["max_position_embeddings"])
    writer.add_embedding_length(v["hidden_size"])
    writer.add_feed_forward_length(v["intermediate_size"])
    writer.add_head_count(v["num_attention_heads"])
    writer.add_ssm_conv_kernel(v["mamba_d_conv"])
    writer.add_ssm_inner_size(v["mamba_expand"] * v["hidden_size"])
    writer.add_ssm_state_size(v["mamba_d_state"])
    writer.add_layer_norm_rms_eps(v["rms_norm_eps"])
    if v["kind"] == "jamba":
        period, offset = v["attn_layer_period"], v["attn_layer_offset"]
        attends = [i for i in range(v["n_layers"]) if i >= offset and (i - offset) % period == 0]
        writer.add_ssm_time_step_rank(v["mamba_dt_rank"])
        writer.add_expert_count(v["num_experts"])
        writer.add_expert_used_count(v["num_experts_per_tok"])
    else:
        attends = v["attn_layer_indices"]
        writer.add_vocab_size(v["vocab_size"])
        writer.add_ssm_time_step_rank(v["mamba_n_heads"])
        writer.add_ssm_group_count(v["mamba_n_groups"])
        writer.add_rope_freq_base(v["rope_parameters"]["rope_theta"])
        writer.add_rope_dimension_count(v["hidden_size"] // v["num_attention_heads"] // 2)
        writer.add_rope_scaling_finetuned(True)
    writer.add_head_count_kv([v["num_key_value_heads"] if i in attends else 0 for i in range(v["n_layers"])])
