"""Continue texts of token ids with an exported model: python FILE 12,7,301 [9,4 …] [--tokens N].

One argument a text, as many as the model was exported for or fewer; a line for each with the ids that follow, the
likeliest one after the other. This file lies in FILE and imports JAX and NumPy only.
"""

import argparse
import json
import sys
import zipfile
from typing import Any

import jax
import jax.export
import numpy as np


def main() -> None:
    """Read the arguments, and print the ids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+", metavar="ID,ID,…", help="one text each")
    parser.add_argument("--tokens", type=int, default=16, help="how many to add (default: 16)")
    asked = parser.parse_args()
    texts = [[int(token) for token in text.split(",")] for text in asked.texts]
    with zipfile.ZipFile(sys.argv[0]) as file:
        about = json.loads(file.read("about.json"))
        if len(texts) > about["batch"]:
            parser.error(f"{len(texts)} texts, expected at most {about['batch']}")
        if max(map(len, texts)) + asked.tokens > about["context"]:
            parser.error(f"a text and what follows have more than {about['context']} tokens together")
        prefill, decode = (program(file.read(f"{name}.jax")) for name in ("prefill", "decode"))
        weights = [jax.device_put(array(file.read(f"weights/{i}"), *one)) for i, one in enumerate(about["weights"])]
    for line in continued(about, prefill, decode, weights, texts, asked.tokens).T[: len(texts)]:
        print(*line)


def continued(
    about: dict, prefill: Any, decode: Any, weights: list, texts: list[list[int]], count: int
) -> np.ndarray:
    """The ids that follow, i32 [count, batch]; rows that nobody uses hold anything."""
    b, chunk = about["batch"], about["chunk"]
    state = [np.zeros(shape, jax.numpy.dtype(dtype)) for shape, dtype in about["state"]]
    lengths = np.array([len(text) for text in texts] + [0] * (b - len(texts)), np.int32)
    token = np.zeros((b, 1), np.int32)
    for start in range(0, lengths.max(), chunk):
        tokens = np.zeros((b, chunk), np.int32)
        for row, text in enumerate(texts):
            piece = text[start : start + chunk]
            tokens[row, : len(piece)] = piece
        begin = np.minimum(start, lengths)
        n = np.minimum(lengths - begin, chunk)
        state, new = prefill(weights, state, tokens, begin, n)
        token = np.where(n[:, None] > 0, new, token)  # shorter texts have ended before
    found = [token]
    for more in range(count - 1):
        state, token = decode(weights, state, token, lengths + more, np.ones(b, np.int32))
        found.append(np.asarray(token))
    return np.concatenate(found, axis=1).T


def program(data: bytes) -> Any:
    """What was exported, as a function that updates the state in place."""
    return jax.jit(jax.export.deserialize(bytearray(data)).call, donate_argnums=1)


def array(data: bytes, shape: list[int], dtype: str) -> np.ndarray:
    """An array from its bytes."""
    return np.frombuffer(data, jax.numpy.dtype(dtype)).reshape(shape)


if __name__ == "__main__":
    main()
