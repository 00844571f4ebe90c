# %% [markdown]
# # 2. Attention by hand, then in one einsum
#
# How a token reads the tokens before it: scores, a softmax, a weighted sum; and how loops become one line.
#
# In the last lesson every token became a vector, each for itself. But what follows `200 g` depends on what the
# recipe is about. Attention is the one part of a transformer in which tokens see each other. We write it three
# times: as loops, as matrix products, and for many heads and sequences at once, and then find it in the model.

# %%
import jax.numpy as jnp
import numpy as np

import minillm
from minillm.lessons import expect, picture
from minillm.ops import attention_ref, naive_attention, rms_norm
from minillm.span import Span

lm = minillm.load("tiny-transformer")
rng = np.random.default_rng(0)


def close(a, b) -> bool:
    """Equal but for float32 rounding: sums of such numbers in another order differ by about 1e-6."""
    return np.allclose(a, b, rtol=1e-5, atol=1e-5)


# %% [markdown]
# ## A look-up that is soft
#
# A Python dictionary compares a query with its keys, finds the one that is equal, and returns its value. Attention
# is this with vectors. The comparison is a dot product, which is large where query and key point the same way. And
# since no key ever is quite equal, the answer is an average of all values, those of better keys weighing more.
#
# Here are four keys `[s, k]` with a value `[s, j]` each: `s` remembered tokens, `k` numbers in a key, `j` in a
# value. The query resembles the third key, and a little the fourth. Three steps follow. First the scores, one for
# each key: the dot product, divided by `√k`. A sum of k products, each around 1 or -1, is around √k in size, and a
# score should not be larger only because vectors are longer.

# %%
keys = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0.6, 0.8]], np.float64)  # [s, k]
values = np.array([[1, 0], [0, 1], [5, 5], [-5, 5]], np.float64)  # [s, j]
query = np.array([0, 0, 8, 1], np.float64)  # [k]

scores = np.array([sum(query * key) / np.sqrt(len(query)) for key in keys])  # [s]
print("scores", scores)

# %% [markdown]
# Second the softmax: `e` to the score, divided by the sum over all keys, so that the weights are positive and add
# up to 1. The largest score is taken away first. That changes nothing, since numerator and denominator shrink by
# the same factor, but e^1000 is too large for any float and e^0 is not.
#
# Third the average of the values, by these weights. It must be what `ops.attention_ref` gives, the definition that
# all attention in minillm is held to. Its queries are `[b, t, h, k]`, for `b` sequences, `t` queries and `h` heads
# (of which more below); here there is one of each.

# %%
weights = np.exp(scores - scores.max())
weights = weights / weights.sum()  # [s]
answer = weights @ values  # [j]
print("weights", weights.round(3), "\nanswer ", answer.round(3))

defined = attention_ref(query[None, None, None], keys[None, :, None], values[None, :, None])
assert np.isclose(weights.sum(), 1)
assert np.allclose(answer, defined[0, 0, 0])

# %% [markdown]
# ## Every token asks, none looks ahead
#
# Now `t` tokens ask at once, each about all tokens up to itself. Later ones are hidden; such attention is called
# causal. It is what makes a transformer a model of the next token: whatever it says after the fifth token, it must
# say without the sixth, which in use is not yet written. As loops first: they are the definition.


# %%
def attention_by_loops(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [t k], k [s k], v [s j], t = s -> y [t j]."""
    y = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        seen = range(t + 1)  # itself and what came before
        score = [q[t] @ k[s] / np.sqrt(q.shape[1]) for s in seen]
        weight = np.exp(np.array(score) - max(score))
        for s in seen:
            y[t] += weight[s] / weight.sum() * v[s]
    return y


q, k, v = rng.normal(size=(3, 6, 4))  # queries, keys and values of six tokens
y = attention_by_loops(q, k, v)
assert np.allclose(y, attention_ref(q[None, :, None], k[None, :, None], v[None, :, None])[0, :, 0])

# %% [markdown]
# ## The same as two matrix products
#
# All scores together are `q @ k.T`, a matrix `[t, s]`. Row t holds the scores of query t with every key. What it
# must not see gets the score minus infinity, and so the weight 0. Then the softmax of each row, and the weighted
# sums are the product with `v`. Processors are good at matrix products, and in this form there is little else. We
# write it in JAX, and hold it to the loops and to `ops.naive_attention`, which computes so. In the weights that
# are printed, a row for each query, nothing stands above the diagonal.


# %%
def attention_by_matrices(q, k, v):
    """The same in jnp: q [t k], k [s k], v [s j] -> weights [t s], y [t j]."""
    score = q @ k.T / np.sqrt(q.shape[1])  # t s
    score = jnp.where(jnp.tril(jnp.ones(score.shape, bool)), score, -jnp.inf)
    weight = jnp.exp(score - score.max(axis=1, keepdims=True))
    weight = weight / weight.sum(axis=1, keepdims=True)
    return weight, weight @ v


weight, y_matrices = attention_by_matrices(*(jnp.asarray(array, jnp.float32) for array in (q, k, v)))
print(np.asarray(weight).round(2))
assert close(y_matrices, y)
assert close(y_matrices, naive_attention(*(one[None, :, None].astype(np.float32) for one in (q, k, v)))[0, :, 0])
assert np.all(np.triu(weight, 1) == 0)

# %% [markdown]
# ## Heads
#
# One softmax makes one choice of where to look. A token that wants to know several things, the amount before it
# and the title far back, needs several. So queries, keys and values are cut into `h` heads of `k` numbers each,
# which attend on their own. `einsum`, in NumPy and JAX alike, says it in a line: each letter is a dimension,
# letters that are missing on the right are summed over, and all others stay.
#
# - `bthk,bshk->bhts`: for every sequence b and head h, compare query t with key s, summing over k;
# - `bhts,bshj->bthj`: sum the values over s, by the weights.
#
# Many models also let several query heads share a head of keys and values, a KV head ("grouped queries", Ainslie
# et al. 2023, arXiv:2305.13245), for the memory that this saves (lesson 5). Then the `h` query heads are `g`
# groups of `r`, one for each KV head. And there may be more keys than queries: s of them, of which the last t
# belong to the tokens that ask.


# %%
def attention_by_einsum(q, k, v):
    """q [b t h k], k [b s g k], v [b s g j] -> y [b t h j]; the last t of s tokens ask."""
    (b, t, h, width), (s, g) = q.shape, k.shape[1:3]
    q = q.reshape(b, t, g, h // g, width)
    score = jnp.einsum("btgrk,bsgk->bgrts", q, k) / np.sqrt(width)
    seen = jnp.arange(s)[None, :] <= jnp.arange(s - t, s)[:, None]  # t s
    score = jnp.where(seen, score, -jnp.inf)
    weight = jnp.exp(score - score.max(axis=-1, keepdims=True))
    weight = weight / weight.sum(axis=-1, keepdims=True)
    return jnp.einsum("bgrts,bsgj->btgrj", weight, v).reshape(b, t, h, -1)


grouped_q = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)  # b t h k: six heads of queries
grouped_k, grouped_v = jnp.asarray(rng.normal(size=(2, 2, 9, 2, 4)), jnp.float32)  # b s g k: two of keys and values
grouped_y = attention_by_einsum(grouped_q, grouped_k, grouped_v)
assert close(grouped_y, attention_ref(grouped_q, grouped_k, grouped_v))
assert close(grouped_y, naive_attention(grouped_q, grouped_k, grouped_v))

# %% [markdown]
# (`ops/attention/naive.py` is these lines with a few options more; it is short, and a good thing to read next.)
#
# ## In the model
#
# Where do queries, keys and values come from? Each token's vector x `[d]` is normalised, that is brought to a
# common length (lesson 4), and multiplied by three learned matrices; the model keeps them side by side in one,
# `qkv`. What attention gives is multiplied by a fourth, `out`, and added to x. That makes an attention block.
# `tiny-transformer` has six layers, each an attention block and a feed-forward block (lesson 4). We take the first
# block, and write out what it does. One thing comes from the next lesson: `rope.turn`, which tells queries and
# keys where they stand.

# %%
text = "Recipe: Tomato Soup\n\nIngredients:\n- 200 g tomatoes\n- 100 g onion\n- 5 g salt\n\nSteps:\n1. Chop the"
ids = lm.tokenizer.encode(text)
block = lm.model.blocks[0]
pos = jnp.arange(len(ids))[None]  # [b, t]
x = lm.model.embed.rows(jnp.asarray([ids]))  # [b, t, d]

normed = rms_norm(x, block.norm.weight, block.norm.eps)
h, width = block.spec.h, block.spec.k
q, k, v = ((normed @ part).reshape(1, -1, h, width) for part in jnp.split(block.qkv.dense(), 3, axis=1))
q, k = block.spec.rope.turn(q, pos), block.spec.rope.turn(k, pos)
y = attention_by_einsum(q, k, v)  # [b, t, h, k]
by_hand = x + y.reshape(1, len(ids), h * width) @ block.out.dense()

at = Span.chain(start=jnp.array([0]), n=jnp.array([len(ids)]), t=len(ids))  # one text, from its start: lesson 5
by_model, _ = block(x, None, at)
print(f"largest difference from the model's own block: {np.abs(by_hand - by_model).max():.1e}")
assert close(by_hand, by_model)

# %% [markdown]
# ## What do heads look at?
#
# Nobody tells a head what to look for, so let us see what it found. The text ends with `Chop the`. What can come
# next depends on the dish, and that stands far back, in the title. Is there a head that looks there from here? We
# run the model block by block, and compute the weights of each attention block from the vectors that enter it.


# %%
def attention_weights(block, x, at):
    """The weights [h, t, s] of an attention block, from what enters it, x [1, t, d]."""
    h, width = block.spec.h, block.spec.k
    q, k, _ = jnp.split((block.norm(x) @ block.qkv).reshape(1, -1, 3 * h, width), 3, axis=2)
    q, k = block.spec.rope.turn(q, at.pos), block.spec.rope.turn(k, at.pos)
    score = jnp.einsum("bthk,bshk->bhts", q, k)[0] / np.sqrt(width)
    score = jnp.where(jnp.tril(jnp.ones(score.shape[1:], bool)), score, -jnp.inf)
    weight = jnp.exp(score - score.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


seen, stream = [], x
for block in lm.model.blocks:
    if hasattr(block, "qkv"):
        seen.append(np.asarray(attention_weights(block, stream, at)))
    stream, _ = block(stream, None, at)
names = [lm.tokenizer.decode([i]).replace("\n", "↵") for i in ids]
title = next(t for t, name in enumerate(names) if "Tomato" in name)
fetches = np.array([one[:, -1, title] for one in seen])  # [layers, h]: how much weight `the` gives to `Tomato`
layer, head = (int(i) for i in np.unravel_index(fetches.argmax(), fetches.shape))
print(
    f"in layer {layer}, head {head}, `the` gives {fetches[layer, head]:.0%} of its weight to the title's `Tomato`"
)

# %% [markdown]
# The picture shows that head, and small all eight of its layer: a row for each token that looks, and in it how the
# token shares its weight among itself and those before it. Follow the last row to the left, and then see in which
# other rows the same column is bright: `g` is one of them, each time, and what comes next there is an ingredient.
# A bright line beside the diagonal would be a head that looks at the token before. Most heads are not so tidy.


# %%
def draw_heads(figure):
    left, right = figure.subfigures(1, 2, width_ratios=[2, 1])
    axes = left.subplots()
    axes.imshow(seen[layer][head] ** 0.5, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(title=f"layer {layer}, head {head}", ylabel="who looks")
    axes.set_xlabel("at what (brightness: square root of the weight)")
    for n, axes in enumerate(right.subplots(4, 2).flat):
        axes.imshow(seen[layer][n] ** 0.5, cmap="viridis", vmin=0, vmax=1)
        axes.set_title(f"head {n}", fontsize=9)
        axes.set(xticks=[], yticks=[])


picture("02_heads", draw_heads, width=10, height=6.6)

# %% [markdown]
# Was this the computation that really goes on in the model? The weights of each row must add up to 1, and what
# came out of the last block, through the last norm and the head (lesson 1), must be the model's logits.

# %%
logits = lm.model.logits(lm.model.norm(stream))[0]  # [t, v]
print(f"after `Chop the`: {lm.tokenizer.decode([int(logits[-1].argmax())])!r}")

looking_for_one = [t for t, name in enumerate(names) if name == " g"]
assert np.all(seen[layer][head][[*looking_for_one, -1], title] > 0.5)
assert all(np.allclose(one.sum(axis=2), 1, atol=1e-5) for one in seen)
assert np.allclose(logits, lm.logits([ids])[0], atol=1e-3)  # rounding adds up over twelve blocks

# %% [markdown] exercise
# ## Exercises
#
# **1.** Mistral's models let a token see only the last `window` tokens, itself included (Beltagy et al. 2020,
# arXiv:2004.05150). Write attention so, with loops or without.


# %% exercise
def window_attention(q, k, v, window: int):
    """q [t k], k [t k], v [t j] -> y [t j]: token t sees tokens t - window + 1 … t."""
    raise NotImplementedError


def mark_window_attention(answer):
    q, k, v = np.random.default_rng(1).normal(size=(3, 7, 4)).astype(np.float32)
    for window in (1, 3, 7):
        truth = attention_ref(*(one[None, :, None] for one in (q, k, v)), window=window)[0, :, 0]
        expect(answer(q, k, v, window), truth, f"y with window={window}")


# %% [markdown] exercise
# **2.** Write the softmax of each row so that large scores do not overflow, and scores of minus infinity weigh
# nothing.


# %% exercise
def safe_softmax(score):
    """score [t s], perhaps with -inf, but not in all of a row -> weights [t s]."""
    raise NotImplementedError


def mark_safe_softmax(answer):
    expect(answer(np.array([[0.0, np.log(3.0)]])), np.array([[0.25, 0.75]]), "the weights of [0, log 3]")
    expect(answer(np.array([[1000.0, 1000.0]])), np.array([[0.5, 0.5]]), "the weights of [1000, 1000]")
    masked = np.array([[2.0, -np.inf, 2.0], [-900.0, -np.inf, -np.inf]])
    expect(
        answer(masked), np.array([[0.5, 0, 0.5], [1, 0, 0]]), "the weights of [2, -inf, 2] and [-900, -inf, -inf]"
    )


# %% [markdown] exercise
# **3.** Does attention know in which order the keys stand, each with its value? Find out, then return, for any
# number of tokens, an order of the rows of `k` and `v`, other than 0, 1, 2 …, that leaves the answer of the *last*
# token of a causal attention as it is. (This is why the next lesson is about positions.)


# %% exercise
def harmless_order(t: int) -> np.ndarray:
    """A permutation of 0 … t - 1, not the identity, for t > 1: `k[order]` and `v[order]` serve as well."""
    raise NotImplementedError


def mark_harmless_order(answer):
    for t in (2, 5, 8):
        order = np.asarray(answer(t))
        expect(sorted(order.tolist()), list(range(t)), f"harmless_order({t}), sorted,")
        assert order.tolist() != list(range(t)), f"harmless_order({t}) leaves everything in its place"
        q, k, v = np.random.default_rng(t).normal(size=(3, 1, t, 1, 4)).astype(np.float32)
        truth = attention_ref(q, k, v)[0, -1]
        expect(attention_ref(q, k[:, order], v[:, order])[0, -1], truth, "the last token's answer")
