# %% [markdown]
# # 5. The KV cache, and why decoding waits for memory
#
# What a model remembers of a text, what that costs, and how fast this machine can write at best.
#
# In lesson 4 every new token meant a forward over the whole text, though only its last row was wanted. This lesson
# removes the work that is done twice. What is left turns out to be bound not by arithmetic but by reading: for
# every token all weights pass through the processor once. You will measure the two limits of your own machine and
# see how close a model comes. (Close other programs for it: they would be measured, too.)

# %%
import time

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.cache import StateSpec
from minillm.lessons import expect, picture
from minillm.ops import attention_ref, naive_attention
from minillm.span import Span
from minillm.xla import memory_bandwidth

lm = minillm.load("tiny-transformer")
ids = lm.tokenizer.encode(texts.held_out("recipes")[0].text)[:48]
rng = np.random.default_rng(0)

# %% [markdown]
# ## What is done twice
#
# A token sees only what came before it, so its vectors in all layers do not change when the text goes on. We
# compute the keys of the third layer for a text of 40 tokens, and for the same text with eight more: the first 40
# must be the same. A new token needs the others' keys and values, and nothing else of them.


# %%
def keys_of(tokens: list[int], n_block: int = 4) -> jax.Array:
    """The keys [b, t, h, k] that attention block n_block makes of a text, before they are turned (lesson 3)."""
    at = Span.chain(jnp.array([0]), jnp.array([len(tokens)]), len(tokens))
    x = lm.model.embed.rows(jnp.asarray([tokens]))
    for block in lm.model.blocks[:n_block]:
        x, _ = block(x, None, at)
    block = lm.model.blocks[n_block]
    return jnp.split((block.norm(x) @ block.qkv).reshape(1, len(tokens), -1, block.spec.k), 3, axis=2)[1]


shorter, longer = keys_of(ids[:40]), keys_of(ids)
print(f"largest difference of the first 40 tokens' keys: {jnp.abs(shorter - longer[:, :40]).max():.1e}")
assert np.allclose(shorter, longer[:, :40], atol=1e-4)

# %% [markdown]
# ## A cache by hand
#
# So we keep the keys and values, in what is called the KV cache, and let each token come alone: it puts its own
# key and value behind the others, and its query attends to all that is there. In this order nothing needs to be
# hidden: what is later is not there yet. The answers must be those of the whole text at once.


# %%
def step(q: np.ndarray, k: np.ndarray, v: np.ndarray, cache: list[np.ndarray]) -> np.ndarray:
    """One token's q, k, v [h k] -> y [h k]; cache holds keys and values [s h k] and grows."""
    cache[:] = [np.concatenate([old, new[None]]) for old, new in zip(cache, (k, v), strict=True)]
    keys, values = cache
    score = np.einsum("hk,shk->hs", q, keys) / np.sqrt(q.shape[1])
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return np.einsum("hs,shk->hk", weight / weight.sum(axis=1, keepdims=True), values)


q, k, v = rng.normal(size=(3, 1, 10, 2, 8)).astype(np.float32)  # b t h k
cache = [np.zeros((0, 2, 8), np.float32)] * 2
alone = np.stack([step(q[0, t], k[0, t], v[0, t], cache) for t in range(10)])
print("the cache's shapes:", [one.shape for one in cache])

assert np.allclose(alone, attention_ref(q, k, v)[0], atol=1e-5)
last = naive_attention(jnp.asarray(q[:, -1:]), jnp.asarray(k), jnp.asarray(v))  # one query, ten keys
assert np.allclose(alone[-1], last[0, 0], atol=1e-5)

# %% [markdown]
# ## In the model
#
# Arrays that grow are no good in compiled code, where every shape is a program of its own. minillm makes room for
# a number of tokens at first (`StateSpec`) and writes into it. What a forward is to do is said by a `Span`: each
# sequence has `start` tokens in memory, and here come `n` more. The model gives logits, and *proposes* what to
# remember; `commit` says which of the new tokens are to stay (all, as long as nobody guesses ahead: lesson 12).
#
# First the prompt, the text that is given, in one go: the prefill. Then one token after the other: decoding.


# %%
@jax.jit
def advance(model, state, tokens, start):
    """Take in tokens i32 [b, t], the first of them number start [b] -> logits [b, t, v], and the memory after."""
    b, t = tokens.shape
    at = Span.chain(start, jnp.full(b, t, jnp.int32), t)
    logits, pending = model(tokens, state, at)
    keep = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))  # all of them
    return logits, model.commit(pending, at, keep, at.n)


state = lm.model.init_state(StateSpec(slots=1, max_len=64))
logits, state = advance(lm.model, state, jnp.asarray([ids[:40]]), jnp.array([0]))
rows = [*logits[0]]
for place in range(40, len(ids)):
    logits, state = advance(lm.model, state, jnp.asarray([ids[place : place + 1]]), jnp.array([place]))
    rows.append(logits[0, 0])

whole = lm.logits([ids])[0]
print(f"largest difference from the whole text at once: {np.abs(np.stack(rows) - whole).max():.1e}")
assert np.allclose(np.stack(rows), whole, atol=1e-3)
assert state[0].keys.shape == (1, 8, 64, 32)  # slots, heads, room for tokens, k; and values likewise

# %% [markdown]
# ## What memory costs
#
# A key and a value for each token, layer and KV head (lesson 2), `k` numbers each: `2 · layers · g · k` numbers a
# token. For a Llama of 8 billion parameters (32 layers, 8 KV heads of 128) in 16 bits that is 131 kB a token. A
# text of 8,192 tokens needs 1 GB, and eight such texts half as much as the weights. With a KV head for each of its
# 32 query heads it would be four times that, which is why heads are grouped. There are other ways to keep less:
# fewer bits a number (lesson 13), only the last tokens (exercise 1), or a memory of fixed size (lesson 8).


# %%
def cache_bytes(layers: int, g: int, k: int, tokens: int, bytes_each: int) -> int:
    """Bytes of a KV cache."""
    return 2 * layers * g * k * tokens * bytes_each


print(f"tiny-transformer, 512 tokens, float32: {cache_bytes(6, 8, 32, 512, 4) / 1e6:.1f} MB")
print(f"Llama 3.1 8B, 8,192 tokens, bfloat16:  {cache_bytes(32, 8, 128, 8192, 2) / 1e9:.2f} GB")
assert cache_bytes(32, 8, 128, 1, 2) == 131_072
assert cache_bytes(6, 8, 32, 512, 4) == lm.model.state_bytes(StateSpec(slots=1, max_len=512))

# %% [markdown]
# ## Two limits
#
# A processor can do so many operations a second, and read so many bytes of memory a second (its bandwidth). Which
# of the two limits a program meets first depends on how many operations it does with each byte. A matrix product
# of `m` rows with `n x n` weights does `2 m n²` operations, one multiplication and one addition for each weight
# and row, and reads `4 n²` bytes of float32 weights: `m / 2` operations a byte. Decoding one sequence is m = 1,
# prefill m = hundreds.
#
# We count first, and have XLA, JAX's compiler, count too: for a matrix product, and for a decoding step of the
# model, where each token should cost two operations for each parameter, and attention a little more.


# %%
def counted(f, *arguments) -> float:
    """Operations of a compiled function, as XLA counts them."""
    return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


n = 4096
square = jax.ShapeDtypeStruct((n, n), jnp.float32)
rows_16 = jax.ShapeDtypeStruct((16, n), jnp.float32)
parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.model))
of_step = counted(advance, lm.model, state, jnp.asarray([[1]]), jnp.array([48]))
print(
    f"a decoding step: {of_step / 1e6:.1f} million operations, {2 * parameters / 1e6:.1f} million are 2 a parameter"
)

assert counted(lambda x, w: x @ w, rows_16, square) == 2 * 16 * n * n
assert 1 < of_step / (2 * parameters) < 1.1

# %% [markdown]
# Now the machine. For growing m we measure how many operations a second it does, and draw the two limits, each the
# best that was seen. Together they are called the roofline (Williams et al. 2009). On its slope the time is that
# of reading the weights, however many rows there are; under its flat part arithmetic is the limit. Points may lie
# below the lines, and far below while something else is running, but not above. (On a CPU, two rows can even be
# slower than one, since XLA has a program of its own for a lone row.)


# %%
def seconds(run) -> float:
    """The best of four times that run() takes, after one that may compile."""
    jax.block_until_ready(run())
    times = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


weights = jnp.ones((n, n), jnp.float32)
product = jax.jit(lambda x, w: x @ w)
speeds = {}
for m in 2 ** np.arange(8):
    x = jnp.ones((m, n), jnp.float32)
    speeds[m] = 2 * m * n * n / seconds(lambda x=x: product(x, weights))
peak = max(speeds.values())  # operations a second
bandwidth = max(memory_bandwidth(), *(2 * speed / m for m, speed in speeds.items()))  # bytes a second
print(f"reads {bandwidth / 1e9:.1f} GB/s, computes {peak / 1e9:.0f} billion operations a second")
print(f"so the two limits meet at {2 * peak / bandwidth:.0f} rows")


# %%
def draw_roofline(figure):
    axes = figure.subplots()
    m = np.geomspace(1, 128, 200)
    limit = np.minimum(m / 2 * bandwidth, peak) / 1e9
    axes.plot(m, limit, color="C1", label="roofline: bandwidth, then arithmetic")
    axes.plot([*speeds], np.array([*speeds.values()]) / 1e9, "o", label="measured")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="rows m (operations a byte: m / 2)", ylabel="billion operations a second")
    axes.legend(loc="lower right")


picture("05_roofline", draw_roofline)

# %%
assert all(speed < 1.001 * min(m / 2 * bandwidth, peak) for m, speed in speeds.items())
assert np.allclose(product(jnp.ones((2, n)), weights), n)  # what was timed was the product

# %% [markdown]
# ## The speed limit of a model
#
# Decoding one sequence reads every matrix once a token. So no program can write more tokens a second than the
# bandwidth divided by the bytes of the weights; fewer bits for each weight (lesson 13) raise that limit, faster
# arithmetic does not. Here is a model of 47 million parameters in float32, more bytes than most processors keep in
# their own caches. (On one that does keep them, the limit of memory may be broken.) Nobody trained the model: how
# long a product takes does not depend on what the numbers are.

# %%
big = minillm.init(
    {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 2048,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
)
nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(big.model))
speed = big.generate([1, 2, 3], max_tokens=33, temperature=0.0).timings["decode_tok_s"] or float("nan")
print(f"weights: {nbytes / 1e6:.0f} MB, so at most {bandwidth / nbytes:.0f} tokens a second; measured {speed:.0f}")

# %% [markdown]
# There is a way around: several sequences at once share one reading of the weights. We let the model take a step
# with 1, 4 and 16 sequences. On a machine with nothing else to do the time of a step grows far more slowly than
# their number. Servers live on this (lesson 11), and it is why checking eight guessed tokens costs hardly more
# than writing one (lesson 12).

# %%
times = {}
for b in (1, 4, 16):
    state = big.model.init_state(StateSpec(slots=b, max_len=256))
    arguments = big.model, state, jnp.ones((b, 1), jnp.int32), jnp.zeros(b, jnp.int32)
    times[b] = seconds(lambda arguments=arguments: advance(*arguments)[0])
limit = min(nbytes / bandwidth, times[1])  # the best that was seen


def draw_batches(figure):
    left, right = figure.subplots(1, 2)
    left.plot([*times], [1e3 * one for one in times.values()], "o-", label="measured")
    left.axhline(1e3 * limit, color="C1", linestyle="--", label="reading the weights once")
    left.set(xlabel="sequences", ylabel="ms a step", ylim=(0, None))
    left.legend()
    right.plot([*times], [b / one for b, one in times.items()], "o-")
    right.set(xlabel="sequences", ylabel="tokens a second, all together", ylim=(0, None))


picture("05_batches", draw_batches, width=9)

# %%
for b, one in times.items():
    print(f"{b:>2} sequences: {1e3 * one:.1f} ms a step, {b / one:.0f} tokens a second")

prompts = np.array([ids[:12], ids[12:24]])
both, _ = advance(lm.model, lm.model.init_state(StateSpec(2, 64)), jnp.asarray(prompts), jnp.array([0, 0]))
for row, prompt in enumerate(prompts):  # company changes how long it takes, not what is said
    assert np.allclose(both[row], lm.logits(prompt[None])[0], atol=1e-3)

# %% [markdown] exercise
# ## Exercises
#
# **1.** With a window (exercise 1 of lesson 2; 4,096 tokens in the first Mistral), the cache need not be longer
# than the window. How many bytes has the cache of a text of so many tokens? Without a window, `window` is None.


# %% exercise
def window_cache_bytes(layers: int, g: int, k: int, tokens: int, bytes_each: int, window: int | None) -> int:
    """Bytes of keys and values that must be kept."""
    raise NotImplementedError


def mark_window_cache_bytes(answer):
    expect(answer(6, 8, 32, 512, 4, None), lm.model.state_bytes(StateSpec(1, 512)), "the bytes without a window")
    expect(answer(32, 8, 128, 8192, 2, 4096), 536_870_912, "the bytes of 8,192 tokens with a window of 4,096")
    expect(answer(32, 8, 128, 100, 2, 4096), 13_107_200, "the bytes of 100 tokens with a window of 4,096")


# %% [markdown] exercise
# **2.** A step of decoding with grouped queries: h query heads, g KV heads in the cache. Query head i reads KV
# head `i // (h // g)`. Write it without copying keys or values.


# %% exercise
def grouped_step(q, keys, values):
    """One token's q [h k], keys and values [s g k], its own among them -> y [h k]."""
    raise NotImplementedError


def mark_grouped_step(answer):
    rng = np.random.default_rng(6)
    for h, g in ((4, 4), (6, 2), (4, 1)):
        q, keys, values = rng.normal(size=(h, 8)), rng.normal(size=(5, g, 8)), rng.normal(size=(5, g, 8))
        truth = attention_ref(q[None, None], keys[None], values[None])[0, 0]
        expect(answer(q, keys, values), truth, f"y for h={h}, g={g}")


# %% [markdown] exercise
# **3.** At most how many tokens a second can a machine write with b sequences at once? A step reads the weights
# once and each sequence's cache once, and does two operations for each parameter and sequence (leave out those of
# attention); reading and computing go on at the same time, so that a step lasts as long as the slower of the two.


# %% exercise
def most_tokens_a_second(
    b: int, parameters: int, bytes_each: int, cache_bytes: int, bandwidth: float, peak: float
) -> float:
    """Tokens a second, all b sequences together; cache_bytes is that of one; bytes/s and operations/s."""
    raise NotImplementedError


def mark_most_tokens_a_second(answer):
    eight, h100 = (8_030_261_248, 2, 1_073_741_824), (3.35e12, 989e12)  # Llama 3.1 8B; NVIDIA's data sheet
    for b in (1, 32, 1024):
        seconds = max((eight[0] * 2 + b * eight[2]) / h100[0], 2 * eight[0] * b / h100[1])
        expect(answer(b, *eight, *h100), b / seconds, f"tokens a second with b={b}")
    expect(answer(1000, 10**9, 2, 0, 1e12, 1e14), 50_000.0, "tokens a second when arithmetic is the limit")
