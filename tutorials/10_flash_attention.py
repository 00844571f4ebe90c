# %% [markdown]
# # 10. FlashAttention: the online softmax
#
# Attention without its matrix of scores: a softmax that takes its numbers as they come, in tiles that fit a cache.
#
# The scores of lesson 2 are a matrix `[t, s]` for every head. For 8,192 tokens in float32 that is 268 MB a head,
# written to memory, read for the softmax, written, and read again for the weighted sum, while the queries, keys and
# values themselves have 2 MB each (k = 64). So attention waits for memory (lesson 5), and needs much of it. The way
# out is to make a few scores, use them and forget them. What stands in the way is the softmax, which seems to need
# all of them first.

# %%
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.blocks import Attention
from minillm.cache import StateSpec
from minillm.lessons import expect, picture
from minillm.ops import attention_ref, blocked_attention, merge_attention, naive_attention, split_attention
from minillm.span import Span

lm = minillm.load("tiny-transformer")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A softmax that does not wait
#
# The denominator is the sum of `exp(score - peak)`, where the peak is the largest score of all. Suppose we have
# only seen some of them. We keep the largest so far, and the sum so far, taken with it. When a larger score comes,
# every term of that sum should have been smaller by the same factor, `exp(old peak - new peak)`. So we need not
# have kept the terms: we multiply the sum (Milakov and Gimelshein 2018, arXiv:1805.02867). This is the online
# softmax; below it reads 120 scores that tend to rise.

# %%
score = rng.normal(size=120) * 2 + np.linspace(-2, 4, 120)
peak, total, peaks, totals = -np.inf, 0.0, [], []
for one in score:
    higher = max(peak, one)
    total = total * np.exp(peak - higher) + np.exp(one - higher)  # exp(-inf) is 0: the first one needs no rule
    peak = higher
    peaks.append(peak)
    totals.append(total)
print(f"peak {peak:.3f}, total {total:.3f}, so the log of the denominator is {peak + np.log(total):.3f}")


def draw_running(figure):
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    above.plot(score, ".", color="grey", label="scores")
    above.step(range(120), peaks, where="post", label="peak so far")
    above.plot(np.array(peaks) + np.log(totals), color="C1", label="log of the sum of exp(score) so far")
    above.set_ylabel("score")
    above.legend(fontsize=8, loc="lower right")
    below.step(range(120), totals, where="post", color="C2")
    below.set(xlabel="scores read", ylabel="total, taken\nwith the peak", ylim=(0, None))


picture("10_running", draw_running, height=4.5)

# %% [markdown]
# The total falls wherever the peak rises by much, and yet the orange line only ever goes up: `peak + log(total)` is
# the log of the true sum so far, whatever the peak. It is called the log-sum-exp, `lse`, and every form of
# attention in `ops` returns it if asked. A query of one number 1 and the scores as keys make attention of our list.

# %%
keys = score[None, :, None, None]  # b s g k, all 1 but s
_, lse = attention_ref(np.ones((1, 1, 1, 1)), keys, keys, scale=1.0, return_lse=True)
assert np.isclose(peak + np.log(total), lse.item())

# %% [markdown]
# ## The weighted sum as well
#
# What we want is the average of values. Its numerator is a sum of `exp(score - peak) v`, and shrinks by the same
# factor. Now for many queries at once, and a block of keys at a time, since processors like matrices: `fold` takes
# in one block. Only in the end is y divided by the total.


# %%
def fold(running, score, v):
    """Take in a block: peak [t], total [t], y [t j], and its score [t s], v [s j] -> the same three."""
    peak, total, y = running
    higher = np.maximum(peak, score.max(axis=1))
    shrink, weight = np.exp(peak - higher), np.exp(score - higher[:, None])
    return higher, total * shrink + weight.sum(axis=1), y * shrink[:, None] + weight @ v


def nothing_yet(t: int, j: int):
    """Before the first block."""
    return np.full(t, -np.inf), np.zeros(t), np.zeros((t, j))


q, k, v = rng.normal(size=(3, 48, 16))  # t k
running = nothing_yet(48, 16)
for s in range(0, 48, 8):
    running = fold(running, q @ k[s : s + 8].T / 4, v[s : s + 8])  # 4 is √16
    print(f"{s + 8:>2} keys: y of the first query begins with {(running[2][0] / running[1][0])[:3].round(3)}")
by_blocks = running[2] / running[1][:, None]

one_head = [array[None, :, None] for array in (q, k, v)]  # b t h k
assert np.allclose(by_blocks, attention_ref(*one_head, causal=False)[0, :, 0])

# %% [markdown]
# ## Tiles
#
# FlashAttention (Dao et al. 2022, arXiv:2205.14135) cuts the queries, too. A block of queries stays in the fast
# memory next to the arithmetic units, and blocks of keys pass by. What is large, the scores, is made tile by tile,
# a block of queries times a block of keys, and never leaves that memory. Queries are read once, keys and values
# once for each block of queries. With a causal mask, tiles that lie wholly above the diagonal need not be visited
# at all, and only those that it cuts need a mask.


# %%
def flash(q, k, v, rows: int, columns: int):
    """Causal attention of q, k, v [t k], tile by tile -> y [t k], and how each tile was done {(t, s): kind}."""
    y, kinds = np.zeros_like(v), {}
    for t in range(0, len(q), rows):
        last, running = min(t + rows, len(q)), nothing_yet(min(rows, len(q) - t), v.shape[1])
        for s in range(0, last, columns):  # what begins behind the last query is not visited
            score = q[t:last] @ k[s : s + columns].T / np.sqrt(q.shape[1])
            where = np.arange(s, s + score.shape[1])
            hidden = where > np.arange(t, last)[:, None]
            running = fold(running, np.where(hidden, -np.inf, score), v[s : s + columns])
            kinds[t // rows, s // columns] = "cut" if hidden.any() else "whole"
        y[t:last] = running[2] / running[1][:, None]
    return y, kinds


by_tiles, kinds = flash(q, k, v, 6, 8)
print(f"{len(kinds)} of {8 * 6} tiles visited, {sum(kind == 'cut' for kind in kinds.values())} of them with a mask")
assert np.allclose(by_tiles, attention_ref(*one_head)[0, :, 0])

# %% [markdown]
# In JAX the loop over blocks is a `lax.scan`; `ops.blocked_attention` is this with more options.


# %%
def blocked(q, k, v, block: int = 64):
    """Causal attention of q, k, v [t k], a block of keys at a time; t is a multiple of the block."""
    place = jnp.arange(len(q))

    def step(running, keys):
        (peak, total, y), (k, v, where) = running, keys
        score = jnp.where(where > place[:, None], -jnp.inf, q @ k.T / np.sqrt(q.shape[1]))
        higher = jnp.maximum(peak, score.max(axis=1))
        shrink, weight = jnp.exp(peak - higher), jnp.exp(score - higher[:, None])
        return (higher, total * shrink + weight.sum(axis=1), y * shrink[:, None] + weight @ v), None

    start = jnp.full(len(q), -jnp.inf), jnp.zeros(len(q)), jnp.zeros_like(v)
    cut = [array.reshape(-1, block, *array.shape[1:]) for array in (k, v, place)]
    (_, total, y), _ = jax.lax.scan(step, start, cut)
    return y / total[:, None]


float32 = [jnp.asarray(array, jnp.float32) for array in rng.normal(size=(3, 128, 16))]
shaped = [array[None, :, None] for array in float32]
assert np.allclose(blocked(*float32), blocked_attention(*shaped, block=64)[0, :, 0], atol=1e-5)
assert np.allclose(blocked(*float32), attention_ref(*shaped)[0, :, 0], atol=1e-5)

# %% [markdown]
# There is no fast memory to command from Python, but what counts can be seen: how much room XLA sets aside for what
# it makes on the way. We ask it, compiling for texts of growing length and running none of them.


# %%
def room(attention, t: int) -> int:
    """Bytes that a compiled attention needs besides its arguments and result, for one head of 64."""
    array = jax.ShapeDtypeStruct((1, t, 1, 64), jnp.float32)
    return jax.jit(attention).lower(array, array, array).compile().memory_analysis().temp_size_in_bytes


lengths = [512, 1024, 2048, 4096]
needs = {form.__name__: [room(form, t) for t in lengths] for form in (naive_attention, blocked_attention)}
for name, sizes in needs.items():
    print(
        f"{name:>17}:", ", ".join(f"{t} tokens {size / 1e6:.1f} MB" for t, size in zip(lengths, sizes, strict=True))
    )


def draw_tiles(figure):
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    colours = {"whole": "#4477aa", "cut": "#ddaa33"}
    for (t, s), kind in kinds.items():
        left.broken_barh([(s * 8, 7.7)], (t * 6, 5.7), color=colours[kind])
    left.plot([0, 48], [0, 48], color="black", linewidth=1)
    left.set(xlim=(0, 48), ylim=(48, 0), xlabel="key", ylabel="query", aspect="equal")
    left.set_title("blue: whole, yellow: cut, white: never", fontsize=9)
    for name, sizes in needs.items():
        right.plot(lengths, np.array(sizes) / 1e6, "o-", label=name)
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    right.xaxis.set_major_formatter("{x:.0f}")
    right.yaxis.set_major_formatter("{x:g}")
    right.set(xlabel="tokens", ylabel="MB besides arguments and result")
    right.legend(fontsize=8)


picture("10_tiles", draw_tiles, width=9)

# %% [markdown]
# On the left the 48 tiles of above: those on the diagonal need the mask, those right of it are not visited. On the
# right a line's steepness is what matters: twice the tokens, four times the room for the one, twice for the other.

# %%
assert needs["naive_attention"][3] > 3.5 * needs["naive_attention"][2]
assert needs["blocked_attention"][3] < 2.5 * needs["blocked_attention"][2]

# %% [markdown]
# ## In any order, in any place
#
# A block was folded into all that came before it. But two parts that know nothing of each other can be joined as
# well, if each comes with its lse: its y counts `exp(lse)`, which is its denominator. So parts may be worked on at
# once, on several cores, for one long text and a single query (FlashDecoding, Dao et al. 2023), or on several
# devices that hold a part of the keys each; and a cache may keep its old tokens in few bits and its new ones as
# they are, and attend to both. Here the parts are the first 20 keys and the 108 others, nothing hidden.


# %%
def part(first: int, last: int):
    """Attention of all queries over some of the keys -> y [b t h k], lse [b t h]."""
    queries, keys, values = shaped
    keys, values, where = keys[:, first:last], values[:, first:last], np.arange(128)[None]
    return attention_ref(queries, keys, values, q_pos=where, causal=False, return_lse=True)


(y_few, lse_few), (y_many, lse_many) = part(0, 20), part(20, 128)
lse = np.logaddexp(lse_few, lse_many)
joined = np.exp(lse_few - lse)[..., None] * y_few + np.exp(lse_many - lse)[..., None] * y_many
print(f"the 20 keys weigh {np.exp(lse_few - lse).mean():.3f} on average, which is about 20 / 128 = {20 / 128:.3f}")
assert np.allclose(joined, attention_ref(*shaped, causal=False))
merged, _ = merge_attention(
    *(jnp.asarray(np.stack(two), jnp.float32) for two in ((y_few, y_many), (lse_few, lse_many)))
)
assert np.allclose(joined, merged, atol=1e-5)

# %% [markdown]
# The same, then? In real numbers, yes. In float32 each form adds in another order, and the last bits differ. We
# count in how many of the results. No form is wrong, and all are about as far from float64; but whoever promises
# the same text from two programs must know this (lesson 12).

# %%
forms = {
    "naive": naive_attention(*shaped),
    "blocks of 16": blocked_attention(*shaped, block=16),
    "blocks of 64": blocked_attention(*shaped, block=64),
    "4 parts": split_attention(*shaped, splits=4),
}
truth, differ, error = attention_ref(*shaped), {}, {}
for name, y in forms.items():
    differ[name], error[name] = np.mean(np.asarray(y) != np.asarray(forms["naive"])), np.abs(y - truth).max()
    print(f"{name:>12}: error {error[name]:.1e}, {differ[name]:.0%} of the numbers differ from naive's bits")
assert min(differ["blocks of 16"], differ["blocks of 64"], differ["4 parts"]) > 0
assert max(error.values()) < 4 * min(error.values())

# %% [markdown]
# ## In the model
#
# A chapter of scripture goes through `tiny-transformer`, and from each of its six attention blocks we take what
# enters attention. Tile by tile, by hand, head by head, must give what the block gives.

# %%
ids = lm.tokenizer.encode(texts.held_out("scripture")[0].text)[:384]
at = Span.chain(jnp.array([0]), jnp.array([len(ids)]), len(ids))


def heads_of(block, x):
    """The queries, keys and values [h t k] of an attention block, from what enters it."""
    h, width = block.spec.h, block.spec.k
    q, k, v = jnp.split((block.norm(x) @ block.qkv).reshape(1, -1, 3 * h, width), 3, axis=2)
    q, k = block.spec.rope.turn(q, at.pos), block.spec.rope.turn(k, at.pos)
    return [np.moveaxis(np.asarray(array[0], np.float64), 1, 0) for array in (q, k, v)]


x, inside = lm.model.embed.rows(jnp.asarray([ids])), []
for block in lm.model.blocks:
    after, _ = block(x, None, at)
    if isinstance(block, Attention):
        inside.append(heads_of(block, x))
        y = np.stack([flash(*head, 128, 64)[0] for head in zip(*inside[-1], strict=True)], axis=1)  # t h k
        by_hand = x + jnp.asarray(y.reshape(1, len(ids), -1), jnp.float32) @ block.out
        assert np.allclose(by_hand, after, atol=1e-3)
    x = after
print(f"{len(inside)} blocks of {len(inside[0][0])} heads, {len(ids)} tokens: by hand as by the block")

# %% [markdown]
# How often does a peak really rise, so that what was summed must shrink? If keys came in random order, the j-th of
# equal blocks would hold the largest score so far with probability 1/j, and 16 blocks would raise it 1 + 1/2 + … +
# 1/16 = 3.4 times. A text is not in random order. In the picture each row is a head of the model; a column is a
# block of 16 keys, and bright means: for many queries this block raises the peak. Queries are taken from the last
# third of the text, so that all see all 16 blocks.


# %%
def rises(q, k, block: int = 16) -> np.ndarray:
    """By block of keys: for which part of the last third of the queries it raises the peak."""
    late, n = q[2 * len(q) // 3 :], 2 * len(q) // 3 // block
    best = (late @ k[: n * block].T).reshape(len(late), n, block).max(axis=2)  # t n
    before = np.maximum.accumulate(np.pad(best, [(0, 0), (1, 0)], constant_values=-np.inf), axis=1)[:, :-1]
    return np.mean(best > before, axis=0)


share = np.array([rises(q, k) for layer in inside for q, k in zip(*layer[:2], strict=True)])  # layers x h, blocks
by_chance = 1 / np.arange(1, share.shape[1] + 1)


def draw_rises(figure):
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    ends = (0.5, 16.5, len(share) - 0.5, -0.5)
    image = left.imshow(share, aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest", extent=ends)
    left.set(xlabel="block j of 16 keys", ylabel="head, layer by layer", yticks=range(0, len(share), 8))
    figure.colorbar(image, label="share of queries whose peak it raises")
    right.plot(range(1, 17), share.mean(axis=0), "o-", label="mean of all heads")
    right.plot(range(1, 17), by_chance, "--", label="in random order: 1/j")
    right.set(xlabel="block j of 16 keys", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.set_xticks(range(1, 17, 3))


picture("10_rises", draw_rises, width=10, height=4)

# %% [markdown]
# On the whole the text is like a pack of shuffled cards. Single heads are not: those that are bright in a column
# have found something there, and at the right end are heads that look at what is near. Most blocks raise no peak,
# so the factor is 1 and the multiplication by it for nothing; there are kernels that leave it out.
#
# In the library the model's memory is read in the same way. One with room for 2,048 tokens is taken in blocks,
# which are merged by their lse (`minillm/cache/rows.py`), and the logits are those of the whole text at once.

# %%
print(f"peaks rise {share.sum(axis=1).mean():.1f} times in 16 blocks, in random order {by_chance.sum():.1f} times")
print(f"by head {share.sum(axis=1).min():.1f} to {share.sum(axis=1).max():.1f} times")
assert abs(share.sum(axis=1).mean() - by_chance.sum()) < 1
state = lm.model.init_state(StateSpec(slots=1, max_len=2048))
logits, _ = lm.model(jnp.asarray([ids]), state, at)
assert np.allclose(logits[0], lm.logits([ids])[0], atol=2e-3)

# %% [markdown] exercise
# ## Exercises
#
# **1.** The log of the sum of `exp` of numbers that come one by one, from an iterator that can be read only once.
# They may be as large as 1000, and some, but not all, minus infinity: the first, perhaps.


# %% exercise
def log_sum_exp(numbers) -> float:
    """An iterator of floats -> log(sum(exp(number))), in a constant amount of memory."""
    raise NotImplementedError


def mark_log_sum_exp(answer):
    expect(float(answer(iter([0.0, np.log(3.0)]))), float(np.log(4)), "of [0, log 3]")
    expect(float(answer(iter([1.0, 1000.0, 999.0]))), float(1000 + np.log1p(np.exp(-1))), "of [1, 1000, 999]")
    with np.errstate(invalid="ignore"):
        expect(float(answer(iter([-np.inf, 2.0, -np.inf]))), 2.0, "of [-inf, 2, -inf]")


# %% [markdown] exercise
# **2.** How many tiles must a kernel visit? Queries and keys are the same t tokens, a query sees itself and what
# came before, and with a window only the last `window` tokens, itself included. Tiles begin at multiples of `rows`
# and `columns`. Try to do it without looking at every pair of tokens.


# %% exercise
def visited(t: int, rows: int, columns: int, window: int | None) -> int:
    """How many tiles have a query that sees a key."""
    raise NotImplementedError


def mark_visited(answer):
    for t, rows, columns, window in ((48, 6, 8, None), (64, 16, 16, 1), (100, 16, 8, 20), (30, 7, 11, 4)):
        seen = np.tri(t, dtype=bool) & ~np.tri(t, k=-(window or t), dtype=bool)
        tiles = product(range(0, t, rows), range(0, t, columns))
        truth = sum(bool(seen[i : i + rows, j : j + columns].any()) for i, j in tiles)
        expect(answer(t, rows, columns, window), truth, f"visited({t}, {rows}, {columns}, {window})")
