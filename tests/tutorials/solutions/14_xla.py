import math
import re

import jax.numpy as jnp


def bucket_sizes(longest, waste):
    sizes = [longest]
    while (shortest := math.ceil(sizes[0] / waste)) > 1:  # that may use the smallest size so far
        sizes.insert(0, shortest - 1)
    return sizes


def last_rows(x, n):
    return jnp.take_along_axis(x, (n - 1)[:, None, None], axis=1)[:, 0]


def written_bytes(text):
    total = 0
    for shape, opcode in re.findall(r"= f32\[([\d,]*)\]\S* ([\w-]+)\(", text[text.index("ENTRY") :]):
        if opcode not in ("parameter", "constant", "bitcast"):
            total += 4 * math.prod(int(n) for n in shape.split(",") if n)
    return total
