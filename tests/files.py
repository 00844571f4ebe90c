"""Small checkpoint files for tests, written by hand or with the formats' own libraries."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "vocab_size": 272,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def hf_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights that fit CONFIG."""
    c, rng = CONFIG, np.random.default_rng(seed)
    d, f, q, kv = c["hidden_size"], c["intermediate_size"], 4 * c["head_dim"], 2 * c["head_dim"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {layer + f"self_attn.{n}_proj.weight": (o, d) for n, o in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {layer + "self_attn.o_proj.weight": (d, q), layer + "mlp.down_proj.weight": (d, f)}
        shapes |= {layer + f"mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")}
        shapes |= {layer + f"{n}_layernorm.weight": (d,) for n in ("input", "post_attention")}
    return {
        name: (1 + 0.1 * rng.normal(size=s) if len(s) == 1 else rng.normal(size=s) / 4).astype(np.float32)
        for name, s in shapes.items()
    }


def write_folder(folder: Path, config: dict | None = None, tensors: dict | None = None) -> Path:
    """A Hugging Face folder, by default a good one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(hf_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def byte_vocabulary() -> list[str]:
    """Byte-level BPE without merges: two control tokens, then the 256 bytes in GPT-2's alphabet, then padding."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    hidden = [b for b in range(256) if b not in shown]
    letters = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [
        "<|im_start|>",
        "<|im_end|>",
        *(letters[b] for b in range(256)),
        "ab",
        *(f"<pad{i}>" for i in range(13)),
    ]


TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}"


def write_gguf(path: Path, seed: int = 0) -> Path:
    """A GGUF file with the weights of `hf_tensors` (Q and K permuted as llama.cpp wants) and a byte tokenizer."""
    c = CONFIG
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    vocabulary = byte_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3] + [1] * (len(vocabulary) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, array in hf_tensors(seed).items():
        writer.add_tensor(gguf_name(name), permuted(name, array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """What llama.cpp calls a Hugging Face tensor."""
    renames = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "_proj": "",
    }
    for old, new in renames.items():
        name = name.replace(old, new)
    return name


def permuted(name: str, array: np.ndarray) -> np.ndarray:
    """Query and key rows from half-split to interleaved RoPE."""
    for part, heads in (("q_proj", CONFIG["num_attention_heads"]), ("k_proj", CONFIG["num_key_value_heads"])):
        if part in name:
            rows, d = array.shape
            return array.reshape(heads, 2, rows // heads // 2, d).swapaxes(1, 2).reshape(rows, d)
    return array
