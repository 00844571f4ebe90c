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


# By transformers' model_type: settings of its config; `shard` and `dtype` say how the checkpoint is written.
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
}


def write_tiny(folder: Path, family: str, case: int, seed: int) -> np.ndarray:
    """Save a checkpoint of FAMILIES[family][case] with random weights; random tokens i32 [t] to try it on."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    settings = dict(FAMILIES[family][case])
    shard, dtype = settings.pop("shard", "1GB"), settings.pop("dtype", None)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms start as ones and biases as zeros: that hides it if one is left out
                weight.add_(torch.rand_like(weight) - 0.5)
            weight.copy_(weight.bfloat16())  # the rest of the digits compress to nothing
    if dtype:
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard)
    return np.random.default_rng(seed).integers(0, settings["vocab_size"], TOKENS).astype(np.int32)


def reference_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits float32 [t, v] of tokens i32 [t], computed in float32 whatever the weights are stored in."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(tokens[None], dtype=torch.long), use_cache=False).logits[0].numpy()


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
