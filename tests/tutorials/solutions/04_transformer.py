import jax.numpy as jnp
import numpy as np

from minillm.ops import cross_entropy


def count_parameters(d, f, h, g, k, layers, v, tied):
    attention = d * (h + 2 * g) * k + h * k * d
    layer = attention + 3 * d * f + 2 * d
    return layers * layer + d + v * d * (1 if tied else 2)


def loss(logits, tokens):
    said, came = np.asarray(logits[:-1], np.float64), np.asarray(tokens[1:])
    peak = said.max(axis=1)
    total = peak + np.log(np.exp(said - peak[:, None]).sum(axis=1))
    return float(np.mean(total - said[np.arange(len(came)), came]))


def most_missed(model, tokens, at):
    harm = []
    for i in range(len(model.blocks)):
        logits, _ = model.replace(blocks=model.blocks[:i] + model.blocks[i + 1 :])(tokens, None, at)
        harm.append(float(cross_entropy(logits[:, :-1], tokens[:, 1:]).mean()))
    return int(jnp.argmax(jnp.array(harm)))
