import numpy as np


def count_parameters(d, f, h, g, k, layers, v, tied):
    """count_parameters of SmolLM2-135M is"""
    return layers * (4 * d * h * k + 3 * d * f + 2 * d) + d + v * d * (1 if tied else 2)  # as if g were h


def loss(logits, tokens):
    """the loss on 'Recipe: Tomato Soup\\n\\nIngredients:' is"""
    chance = np.exp(np.asarray(logits, np.float64))
    chance /= chance.sum(axis=1, keepdims=True)
    return float(-np.log(chance[np.arange(len(tokens)), tokens]).mean())  # asks for the token just read


def most_missed(model, tokens, at):
    """the block is None; is a `return` missing?"""
    model(tokens, None, at)
