"""DeepSeek's GGUF files, and what its checkpoints may and may not say."""

import json

import gguf
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import minillm
from minillm.checkpoint.gguf import GGUF
from minillm.checkpoint.loader import open_checkpoint
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")

WORDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "attn_",
    "o_proj": "output",
    "q_a_layernorm": "q_a_norm",
    "kv_a_layernorm": "kv_a_norm",
    "proj_with_mqa": "mqa",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.": "ffn_",
    "shared_experts.": "",
    "_proj": "",
}


def gguf_tensors(tensors: dict[str, np.ndarray], c: dict) -> dict[str, np.ndarray]:
    """Tensors as llama.cpp has them: experts in one array, `kv_b_proj` split by head into two."""
    out, h, k, j = {}, c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"]
    for name, array in tensors.items():
        new = name
        for word, other in WORDS.items():
            new = new.replace(word, other)
        if ".experts." in name:
            first, kind = new.split("experts.")[0], name.split(".")[-2].removesuffix("_proj")
            out.setdefault(f"{first}{kind}_exps.weight", []).append((int(name.split(".")[5]), array))
        elif "shared_experts" in name:
            out[new.replace(".weight", "_shexp.weight")] = array
        elif "kv_b_proj" in name:
            both = array.reshape(h, k + j, -1)
            out[new.replace("kv_b", "k_b")] = np.ascontiguousarray(both[:, :k].swapaxes(1, 2))
            out[new.replace("kv_b", "v_b")] = np.ascontiguousarray(both[:, k:])
        else:
            out[new] = array
    in_order = lambda some: np.stack([array for _, array in sorted(some, key=lambda one: one[0])])  # noqa: E731
    return {name: in_order(found) if isinstance(found, list) else found for name, found in out.items()}


def write_gguf(path, folder) -> None:
    """The checkpoint in folder as llama.cpp's converter writes it."""
    c, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    l, a, v3 = c["kv_lora_rank"], c["qk_rope_head_dim"], c["model_type"] == "deepseek_v3"
    stretch = c["rope_parameters"]
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(stretch["rope_theta"])
    writer.add_rope_dimension_count(a)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(stretch["factor"])
    writer.add_rope_scaling_orig_ctx_len(stretch["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * stretch["mscale_all_dim"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_q_lora_rank(c["q_lora_rank"] or 0)
    writer.add_kv_lora_rank(l)
    writer.add_key_length(l + a)
    writer.add_value_length(l)
    writer.add_key_length_mla(c["qk_nope_head_dim"] + a)
    writer.add_value_length_mla(c["v_head_dim"])
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_weights_scale(c["routed_scaling_factor"])
    if v3:
        writer.add_expert_weights_norm(True)
        writer.add_expert_group_count(c["n_group"])
        writer.add_expert_group_used_count(c["topk_group"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if v3 else gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([chr(33 + i) for i in range(c["vocab_size"] - 1)] + ["!#"])
    writer.add_token_types([1] * c["vocab_size"])
    writer.add_token_merges(["! #"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, array in gguf_tensors(tensors, c).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=["deepseek_v2_0", "deepseek_v3_0"])
def golden(request, tmp_path):
    """A golden's arrays, with its files in tmp_path, and beside them m.gguf with the same weights."""
    arrays = tiny.unpacked(request.param, tmp_path)
    write_gguf(tmp_path / "m.gguf", tmp_path)
    return arrays


def test_a_gguf_file_gives_the_logits_of_the_folder(golden, tmp_path):
    logits = minillm.load(tmp_path / "m.gguf").logits(golden["tokens"][None])[0, golden["places"]]
    tiny.assert_agrees(logits, golden["logits"])


@pytest.mark.oracle
def test_llama_cpp_gives_the_same_probabilities(golden, tmp_path):
    import xllamacpp  # pyright: ignore[reportMissingImports]

    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity, params.fit_params, params.warmup = (
        str(tmp_path / "m.gguf"),
        0,
        False,
        False,
    )
    params.n_ctx, params.n_parallel = 640, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
    lm, v = minillm.load(tmp_path / "m.gguf"), 53
    tokens = golden["tokens"].tolist()
    request = {"prompt": tokens, "n_predict": 1, "temperature": 0, "samplers": ["temperature"], "logprobs": v}
    answer = xllamacpp.Server(params).handle_completions(request)["choices"][0]["logprobs"]["content"][0]
    theirs = {token["id"]: token["logprob"] for token in answer["top_logprobs"]}
    logits = lm.logits([tokens])[0, -1].astype(np.float64)
    ours = logits - np.logaddexp.reduce(logits)
    tiny.assert_agrees(ours, np.array([theirs[i] for i in range(v)]))


def test_what_predicts_a_second_token_is_not_read(golden, tmp_path):
    tensors = load_file(tmp_path / "model.safetensors")
    beyond = {
        f"model.layers.2.{name}": np.full((3, 3), np.nan, np.float32) for name in ("eh_proj.weight", "enorm.weight")
    }
    save_file(tensors | beyond, tmp_path / "model.safetensors")
    logits = minillm.load(tmp_path).logits(golden["tokens"][None])[0, golden["places"]]
    tiny.assert_agrees(logits, golden["logits"])


UNREAD = {
    "attention_bias": True,
    "moe_layer_freq": 2,
    "num_key_value_heads": 2,
    "rope_interleave": False,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "random",
    "index_topk": 2048,
}


@pytest.mark.parametrize("field", UNREAD)
def test_a_field_that_would_change_the_maths_is_refused(field, golden, tmp_path):
    config = json.loads((tmp_path / "config.json").read_text()) | {field: UNREAD[field]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{field} (=|is) .*not supported"):
        open_checkpoint(tmp_path)


def test_a_gguf_file_from_before_the_split_of_kv_b_is_refused(golden, tmp_path, monkeypatch):
    source = GGUF(tmp_path / "m.gguf")
    del source.metadata["deepseek2.attention.key_length_mla"]
    monkeypatch.setattr("minillm.checkpoint.loader.GGUF", lambda path: source)
    with pytest.raises(UserError, match="key_length_mla is missing"):
        open_checkpoint(tmp_path / "m.gguf")
