"""Writes smollm2_logits.npz: what transformers computes, in float32, for a text of over 600 tokens.

    python tests/goldens/make_smollm2_logits.py PATH/smollm2-135m.gguf     (needs the `oracle` extra)

Nothing of minillm is used: the `gguf` package decodes the blocks, the rows of the queries and keys are put into
transformers' order here, and transformers does the rest. All logits would be 180 MB, so for each position the
file keeps the best 8, 8 drawn at random, their logsumexp, and 8 random projections, in which every logit counts.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SEED, BEST, DRAWN = 0, 8, 8
SAFE_GAP = 2e-3  # between the best two logits: an error of half of this cannot change the argmax

TEXT = '''The lighthouse at Corran Point was built in 1874, after three ships were lost in a single winter. Its
lamp burned 2,500 litres of oil a year and could be seen from 19 miles away on a clear night. When the last keeper,
Agnes Muir, left in 1983, she locked the door, put the key under a stone, and told nobody where it was. "If they
want the light," she said, "they can climb up and ask it themselves."

## A sourdough loaf

1. Feed the starter the evening before: 50 g flour, 50 g water.
2. Mix 350 g strong flour, 245 g water (70%), and 7 g salt; rest for 40 minutes at about 24 °C.
3. Fold four times, every half hour, then leave it overnight in the fridge.
4. Bake at 240 °C for 25 min with the lid on, 15–20 min without. Don't cut it while it's hot!

def collatz(n: int) -> list[int]:
    """The numbers from n down to 1, halving even ones and taking 3n + 1 of odd ones."""
    path = [n]
    while path[-1] != 1:
        last = path[-1]
        path.append(last // 2 if last % 2 == 0 else 3 * last + 1)
    return path

assert collatz(6) == [6, 3, 10, 5, 16, 8, 4, 2, 1]

Why does ice float? Most liquids shrink as they freeze, but water does not. Its molecules settle into an open
lattice in which each one holds four neighbours at a distance, so a litre of ice weighs only 917 grams. Lakes
therefore freeze from the top down, and the fish below survive the winter under a lid of ice.

From: p.okafor@example.com
Subject: Re: invoice #20417 (overdue??)

Hi Lena,

I've checked again: we were billed $1,380.50 on 03/11 and $1,380.50 on 03/12, i.e. twice. Could you cancel the
second one? My number is +44 20 7946 0018, or see https://example.com/billing?id=20417&lang=en.

Thanks a lot,
Peter

| city      | country | founded | people    |
|-----------|---------|---------|-----------|
| Trondheim | Norway  | 997     | 212,660   |
| Cusco     | Peru    | 1100    | 428,450   |
| Timbuktu  | Mali    | 1100    | 32,460    |

In chess, a pawn that reaches the far side of the board becomes another piece, nearly always a queen. A rook moves
along ranks and files; a bishop stays on its colour for the whole game. The café's owner, señor Núñez, plays
1. e4 c5 2. Nf3 d6 3. d4 cxd4 4. Nxd4 Nf6 and smiles: "Let's see if you know what comes next..."

SELECT name, COUNT(*) AS n FROM orders WHERE total >= 99.95 GROUP BY name ORDER BY n DESC LIMIT 10;

Once upon a time a tortoise asked a heron to teach her to fly. "You would need feathers," said the heron. "Then I
shall walk," said the tortoise, "and arrive before you have found where to land." And so she did, one hundred and
twelve years later, on a Tuesday. The end.
'''


def reference_model(path: str | Path) -> Any:
    """The checkpoint as a transformers model in float32."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

    file = gguf.GGUFReader(path)
    field = {name: entry.contents() for name, entry in file.fields.items() if name.startswith("llama.")}
    heads, kv_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field["llama.context_length"],
        rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    weights = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in file.tensors}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in range(config.num_hidden_layers):
        block, layer = f"blk.{i}.", f"model.layers.{i}."
        names |= {block + "attn_norm": layer + "input_layernorm"}
        names |= {block + f"attn_{x}": layer + f"self_attn.{x}_proj" for x in "qkv"}
        names |= {block + "attn_output": layer + "self_attn.o_proj"}
        names |= {block + "ffn_norm": layer + "post_attention_layernorm"}
        names |= {block + f"ffn_{x}": layer + f"mlp.{x}_proj" for x in ("gate", "up", "down")}
        for name, count in ((block + "attn_q.weight", heads), (block + "attn_k.weight", kv_heads)):
            weights[name] = half_split(weights[name], count)
    state = {names[name.removesuffix(".weight")] + ".weight": torch.tensor(x) for name, x in weights.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    return model


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads k, d], pair j of a head in rows 2j and 2j + 1, brought to rows j and j + k/2."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(rows.shape)


def reference_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits float32 [t, v] of tokens int [t]."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return model(torch.tensor(tokens[None], dtype=torch.long), use_cache=False).logits[0].numpy()


def main() -> None:
    from make_smollm2_tokens import llama_cpp_tokens

    path = sys.argv[1]
    provenance = {
        "script": Path(__file__).name,
        **{package: version(package) for package in ("torch", "transformers", "gguf", "xllamacpp")},
        "gguf_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
    }
    tokens = np.array(llama_cpp_tokens(path, [TEXT])[0], np.int32)
    logits = reference_logits(reference_model(path), tokens)
    t, v = logits.shape
    best = np.argsort(-logits, axis=1)[:, :BEST]
    rng = np.random.default_rng(SEED)
    ids = np.concatenate([best, rng.integers(0, v, (t, DRAWN))], axis=1).astype(np.int32)
    kept = np.take_along_axis(logits, ids, axis=1)
    gap = kept[:, 0] - kept[:, 1]
    if t < 600 or gap.min() < SAFE_GAP:
        raise SystemExit(
            f"{t} tokens, and after {gap.argmin()} the best two are {gap.min()} apart: change the text"
        )
    signs = rng.integers(0, 256, v).astype(np.uint8)  # bit j of entry i is the sign of logit i in projection j
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    np.savez_compressed(
        Path(__file__).with_name("smollm2_logits.npz"),
        provenance=json.dumps(provenance),
        tokens=tokens,
        argmax=ids[:, 0],
        ids=ids,
        logits=kept,
        logsumexp=(top + np.log(np.exp(wide - top[:, None]).sum(axis=1))).astype(np.float32),
        signs=signs,
        projections=(wide @ (2.0 * np.unpackbits(signs[:, None], axis=1) - 1) / np.sqrt(v)).astype(np.float32),
    )


if __name__ == "__main__":
    main()
