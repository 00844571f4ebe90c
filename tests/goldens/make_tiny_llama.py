"""Writes tiny_llama_*.npz: random Llama checkpoints as transformers saves them, and its logits for them.

    python tests/goldens/make_tiny_llama.py     (needs the `oracle` extra)

SmolLM2 has one shape only. These have the others: tied or not, grouped queries or not, a head dimension that is
not d / h, odd sizes, other constants, shards and bfloat16. Each .npz holds the files of a checkpoint as bytes.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 544

CASES: list[dict[str, Any]] = [
    {
        "vocab_size": 61,
        "hidden_size": 40,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    },
    {
        "vocab_size": 53,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
        "initializer_range": 0.15,
    },
    {
        "vocab_size": 47,
        "hidden_size": 35,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    },
    {
        "vocab_size": 59,
        "hidden_size": 24,
        "intermediate_size": 31,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rms_norm_eps": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 123456.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    },
]
SHARDED, BFLOAT16 = 1, 2  # the seeds of those two


def write_tiny_llama(folder: Path, seed: int, case: int) -> np.ndarray:
    """Save a checkpoint of CASES[case] with random weights; random tokens i32 [t] to try it on."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=1024, **CASES[case]))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms start as ones, which would hide that one is left out
                weight.uniform_(0.5, 1.5)
    if case == BFLOAT16:
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="40KB" if case == SHARDED else "1GB")
    return np.random.default_rng(seed).integers(0, CASES[case]["vocab_size"], TOKENS).astype(np.int32)


def reference_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits float32 [t, v] of tokens i32 [t], computed in float32 whatever the weights are stored in."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(tokens[None], dtype=torch.long), use_cache=False).logits[0].numpy()


def main() -> None:
    for seed in range(len(CASES)):
        provenance = {
            "script": Path(__file__).name,
            "seed": seed,
            **{package: version(package) for package in ("torch", "transformers", "safetensors")},
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokens = write_tiny_llama(folder, seed, case=seed)
            files = {f"files/{file.name}": np.frombuffer(file.read_bytes(), np.uint8) for file in folder.iterdir()}
            arrays = {"tokens": tokens, "logits": reference_logits(folder, tokens), **files}
        out = Path(__file__).with_name(f"tiny_llama_{seed}.npz")
        np.savez_compressed(out, provenance=json.dumps(provenance), **arrays)


if __name__ == "__main__":
    main()
