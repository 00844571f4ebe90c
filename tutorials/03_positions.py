# %% [markdown]
# # 3. Positions and RoPE
#
# How attention learns where tokens stand: pairs of numbers turned by an angle, and what goes wrong when they are
# not.
#
# Attention as we built it compares a query with every key, wherever they stand. `Add salt, not sugar` and `Add
# sugar, not salt` hold the same keys, only in another order. This lesson shows the hole, fills it with rotations,
# and then breaks them on purpose in a real model, in two ways that are met in practice.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.generate import Plan, generate_tokens
from minillm.lessons import expect, picture
from minillm.ops import apply_rope, apply_rope_ref, attention_ref, cross_entropy, rope_frequencies
from minillm.quant import Dense
from minillm.rope import Rope, linear
from minillm.sampling import new_sampler
from minillm.span import Span

lm = minillm.load("tiny-transformer")
rng = np.random.default_rng(0)

# %% [markdown]
# ## The hole
#
# We give attention a query and five keys with their values, and then the same in another order. The answer stays.
# It must, for a sum does not know in which order its terms came. (Causal attention has a faint hint: the later a
# token, the more of them it sees.)

# %%
query = rng.normal(size=(1, 1, 1, 8))  # b t h k
keys, values = rng.normal(size=(2, 1, 5, 1, 8))  # b s g k
order = np.array([3, 0, 4, 1, 2])

in_order = attention_ref(query, keys, values, causal=False)
shuffled = attention_ref(query, keys[:, order], values[:, order], causal=False)
print(in_order[0, 0, 0, :4].round(3), shuffled[0, 0, 0, :4].round(3))
assert np.allclose(in_order, shuffled)

# %% [markdown]
# ## Turn a pair by its position
#
# Take two numbers of a query as a point in the plane and turn it by an angle that grows with the position: one
# radian a token, say. Do the same to two numbers of a key. The dot product of two vectors depends on their lengths
# and on the angle between them. Turning both by the same angle changes none of these. So what counts is how much
# further one was turned than the other, and that is how far apart the tokens stand.
#
# This is rotary position embedding, RoPE (Su et al. 2021, arXiv:2104.09864). Nothing is learned, nothing added to
# the vectors, and only queries and keys are turned: values are what is fetched, wherever it stood.


# %%
def turned(pair: np.ndarray, angle: float) -> np.ndarray:
    """The point [2] after a turn, counterclockwise."""
    a, b = pair
    return np.array([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)])


q, k = np.array([1.0, 0.5]), np.array([0.8, -0.3])
for q_pos, k_pos in ((5, 3), (105, 103), (1005, 1003), (5, 4)):
    print(f"query at {q_pos}, key at {k_pos}: score {turned(q, q_pos) @ turned(k, k_pos):.6f}")

assert np.isclose(turned(q, 5) @ turned(k, 3), turned(q, 1005) @ turned(k, 1003))
by_ops = [apply_rope_ref(x.reshape(1, 1, 1, 2), np.array([[pos]]), np.ones(1)) for x, pos in ((q, 5), (k, 3))]
assert np.isclose(turned(q, 5) @ turned(k, 3), np.sum(by_ops[0] * by_ops[1]))

# %% [markdown]
# ## Fast hands and slow hands
#
# One pair is not enough. At one radian a token it has come round after 6.28 tokens, and what is 44 tokens away
# (seven rounds) looks as if it were here; at a thousandth of it, neighbours can hardly be told apart. A clock has
# the same trouble, and has several hands. A head of `k` numbers has `k/2` pairs, and pair j turns by
# `theta^(-2j/k)` radians a token, its frequency. With the usual theta of 10,000 and k = 32, the first turns by 1
# and the last by 1/5,600.
#
# Which numbers form a pair is a convention. Here number j goes with number `j + k/2`, the layout "half".


# %%
def rope(x: np.ndarray, pos: np.ndarray, theta: float = 10_000.0) -> np.ndarray:
    """x [t k] turned by positions pos [t] -> [t k]."""
    half = x.shape[1] // 2
    freqs = np.array([theta ** (-2 * j / x.shape[1]) for j in range(half)])
    angle = pos[:, None] * freqs  # t k/2
    a, b = x[:, :half], x[:, half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=1)


x, pos = rng.normal(size=(6, 32)), np.arange(6)
freqs = rope_frequencies(32, 10_000.0)
in_jax = apply_rope(jnp.asarray(x, jnp.float32)[None, :, None], jnp.asarray(pos)[None], jnp.asarray(freqs))
print("radians a token:", freqs.round(5))

assert np.allclose(rope(x, pos), apply_rope_ref(x[None, :, None], pos[None], freqs)[0, :, 0], atol=1e-6)
assert np.allclose(rope(x, pos), in_jax[0, :, 0], atol=1e-5)
assert np.allclose(rope(x, pos) @ rope(x, pos).T, rope(x, pos + 700) @ rope(x, pos + 700).T)

# %% [markdown]
# Left in the picture: a row for each pair, which starts as `(1, 0)`, and its first number after the turn, at each
# position. Fast pairs at the top tell neighbours apart, slow ones at the bottom hardly move in 200 tokens. Right:
# the score of a query with a key that is equal to it (all their pairs of the same length), by the distance between
# them. It is largest where they stand together and falls off in waves, as the pairs fall out of step. A head that
# is to like another distance best can have it: its learned matrices turn its keys against its queries beforehand.

# %%
distance = np.arange(200)
waves = np.cos(distance[None] * freqs[:, None].astype(np.float64))  # k/2 by distance


def draw_waves(figure):
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    image = left.imshow(waves, aspect="auto", cmap="RdBu_r", interpolation="nearest")
    left.set(xlabel="position [tokens]", ylabel="pair")
    figure.colorbar(image, ax=left, label="first number of the pair")
    right.plot(distance, waves.mean(axis=0))
    right.axhline(0, color="grey", linewidth=0.5)
    right.set(xlabel="distance [tokens]", ylabel="score of equal vectors of length 1")


picture("03_waves", draw_waves, width=10)

# %%
one = np.ones((1, 32)) / np.sqrt(32)  # a vector of length 1, each pair of it of the same length
scores = [(rope(one, np.array([n])) @ one.T).item() for n in distance]
assert np.allclose(scores, waves.mean(axis=0), atol=1e-6)
assert np.argmax(scores) == 0

# %% [markdown]
# ## In the model
#
# Every attention block of `tiny-transformer` turns its queries and keys so. If positions matter only by their
# difference, then the whole text may stand anywhere: at 0, or at 3,000, far beyond the 512 tokens of the longest
# text that the model was trained on. We let it read a recipe at both places, and measure how surprised it is by
# each token: the loss, minus the natural logarithm of the probability that it gave to the token. Its unit is the
# nat; at 0.7 nats the token had a chance of one half, at 7.6 one in 2,048, as if by blind guessing.
#
# (`jax.jit` has JAX compile a function when it is first called, and again for each new shape; lesson 14.)


# %%
@jax.jit
def losses(model, tokens, start):
    """Nats for each token but the first: tokens i32 [b, t], standing at start, start + 1 … -> [b, t - 1]."""
    b, t = tokens.shape
    at = Span.chain(jnp.full(b, start, jnp.int32), jnp.full(b, t, jnp.int32), t)
    logits, _ = model(tokens, None, at)  # None: nothing is remembered from before (lesson 5)
    return cross_entropy(logits[:, :-1], tokens[:, 1:])  # what token t + 1 cost, after the tokens up to t


rope_of_model = lm.model.blocks[0].spec.rope
recipe = jnp.asarray([lm.tokenizer.encode(texts.held_out("recipes")[2].text)])
here, there = losses(lm.model, recipe, 0), losses(lm.model, recipe, 3000)
print(f"{recipe.shape[1]} tokens, {here.mean():.4f} nats each from position 0 on, {there.mean():.4f} from 3,000 on")

assert np.allclose(rope_of_model.freqs, freqs)
assert np.allclose(here, there, atol=0.02)  # at 3,000 the angles themselves are rounded, to about 1e-4
assert np.isclose(here.mean(), there.mean(), atol=1e-3)

# %% [markdown]
# ## Broken: the wrong pairs
#
# Which numbers form a pair differs between the files that models come in. The paper, Meta's own files and GGUF
# pair neighbours, numbers 2j and 2j + 1 ("interleaved"); Hugging Face pairs j with j + k/2 ("half"). A model
# trained in one way and run in the other has its pairs torn apart. All shapes fit, nothing crashes, and the text
# is fluent for a while: an easy mistake to make, and a hard one to notice. So let us make it once. We reorder the
# columns of queries and keys as if a file of the one kind had been read as the other, and see what a recipe costs
# the model. A third model has no positions at all: its frequencies are 0.

# %%
h, k = lm.model.blocks[0].spec.h, lm.model.blocks[0].spec.k
interleaved = np.arange(k).reshape(2, k // 2).T.reshape(-1)  # 0, k/2, 1, k/2 + 1 …: pairs side by side

x = rng.normal(size=(1, 6, 1, k)).astype(np.float32)
at_half = apply_rope_ref(x, pos[None], freqs, "half")
at_pairs = apply_rope_ref(x[..., interleaved], pos[None], freqs, "interleaved")
assert np.allclose(at_half[..., interleaved], at_pairs)  # one rotation, written in two orders


def with_wrong_pairs(block):
    """The attention block as if its file's layout had been mistaken."""
    parts = np.split(np.asarray(block.qkv.dense()).reshape(-1, 3 * h, k), 3, axis=1)
    parts[:2] = [part[..., interleaved] for part in parts[:2]]
    matrix = np.concatenate(parts, axis=1).reshape(-1, 3 * h * k)
    return block.replace(qkv=Dense(jnp.asarray(matrix.T)).T)  # kept as [out, in], as it comes in files


def with_rope(rope, block):
    """The block with other frequencies."""
    return block.replace(spec=dataclasses.replace(block.spec, rope=rope))


def changed(change):
    """The model with its attention blocks changed."""
    return lm.model.replace(blocks=tuple(change(b) if hasattr(b, "qkv") else b for b in lm.model.blocks))


broken = changed(with_wrong_pairs)
without = changed(lambda block: with_rope(Rope((0.0,) * (k // 2)), block))
for name, model in (("as trained", lm.model), ("wrong pairs", broken), ("no positions", without)):
    by_token = np.asarray(losses(model, recipe, 0))[0]
    print(f"{name:<13} {by_token[:16].mean():.2f} nats a token in the first 16, {by_token[16:].mean():.2f} after")

# %% [markdown]
# The wrong pairs cost less at first than later. The model still writes: what it has learned of the order of
# lines and words needs no exact position. Read how both go on from the beginning of a recipe, always with the
# likeliest token. A glance at the first ten words would not have told that every position is wrong. This is why
# minillm's tests compare with other implementations over more than 500 tokens, and why the layout is written down
# for each kind of file and never guessed.

# %%
prompt = lm.tokenizer.encode("Recipe: Tomato Soup\n\nIngredients:\n- 200 g tomatoes\n")
for model in (lm.model, broken):
    plan = Plan.of(prompt, 40, lm.config.context)
    print("·", lm.tokenizer.decode(generate_tokens(model, plan, new_sampler(temperature=0.0))).replace("\n", " ↵ "))

right, wrong, none = (np.asarray(losses(model, recipe, 0))[0] for model in (lm.model, broken, without))
assert right[:16].mean() < wrong[:16].mean() < 2 * right[:16].mean()
assert wrong[16:].mean() > 3 * right[16:].mean()
assert none.mean() > 2 * right.mean()

# %% [markdown]
# ## Broken: longer than trained
#
# Slow pairs never come round in training: in 512 tokens the slowest has turned by 0.09 radians. Between tokens
# that are further apart it shows angles that the model has never seen, and the losses rise. Chen et al. (2023,
# arXiv:2306.15595) found a remedy that needs no training: squeeze the positions. Let all pairs turn half as fast,
# and 1,024 tokens show no angle that is new. The price is that neighbours differ by less than the model is used
# to. We measure both on chapters of scripture, joined into five texts of 800 tokens. (Models that read 100,000
# tokens and more treat each pair by its own frequency; `minillm/rope.py` has the methods.)

# %%
chapters = [lm.tokenizer.encode(document.text) for document in texts.held_out("scripture")]
joined = np.concatenate([np.array(chapter) for chapter in chapters])
long = jnp.asarray(joined[: 5 * 800].reshape(5, 800))
stretched = changed(lambda block: with_rope(linear(k, 10_000.0, factor=2.0), block))
by_position = {
    "as trained": np.asarray(losses(lm.model, long, 0)).mean(axis=0),
    "turning half as fast": np.asarray(losses(stretched, long, 0)).mean(axis=0),
}


def draw_losses(figure):
    axes = figure.subplots()
    for name, loss in by_position.items():
        axes.plot(np.arange(50, 750), np.convolve(loss, np.ones(100) / 100, "valid")[:700], label=name)
    axes.axvline(512, color="grey", linestyle=":", label="longest text in training")
    axes.set(xlabel="position [tokens]", ylabel="loss [nats a token], mean of 100")
    axes.legend()


picture("03_lengths", draw_losses)

# %%
# Both rise a little where the text itself is harder; what counts is one line against the other.
within, beyond = slice(0, 512), slice(560, None)
for name, loss in by_position.items():
    print(f"{name:<21} {loss[within].mean():.3f} nats within 512 tokens, {loss[beyond].mean():.3f} beyond")

trained, squeezed = by_position.values()
assert trained[within].mean() < squeezed[within].mean()
assert trained[beyond].mean() > squeezed[beyond].mean()

# %% [markdown] exercise
# ## Exercises
#
# **1.** A turn in the plane is a product with a complex number, `e^(i·angle)`. Write RoPE for the interleaved
# layout so: numbers 2j and 2j + 1 are the real and the imaginary part of one complex number, which turns by
# `freqs[j]` radians a token.


# %% exercise
def rope_by_complex(x, pos, freqs):
    """x [t k], pos [t], freqs [k/2] -> [t k], pairs side by side."""
    raise NotImplementedError


def mark_rope_by_complex(answer):
    x, pos = np.random.default_rng(3).normal(size=(5, 8)), np.array([0, 1, 7, 100, 511])
    freqs = rope_frequencies(8, 10_000.0).astype(np.float64)
    truth = apply_rope_ref(x[None, :, None], pos[None], freqs, "interleaved")[0, :, 0]
    expect(answer(x, pos, freqs), truth, "the turned x")


# %% [markdown] exercise
# **2.** A checkpoint has an interleaved key matrix `[d, h·k]`. Reorder its columns so that code for the half
# layout gives the same scores. (Each head is k columns in a row.)


# %% exercise
def to_half(w, h: int):
    """w [d, h*k], interleaved -> [d, h*k], half."""
    raise NotImplementedError


def mark_to_half(answer):
    h, k = 3, 8
    w, x = np.random.default_rng(4).normal(size=(16, h * k)), np.random.default_rng(5).normal(size=(1, 6, 16))
    pos, freqs = np.arange(6)[None], rope_frequencies(k, 10_000.0)
    paired = apply_rope_ref((x @ w).reshape(1, 6, h, k), pos, freqs, "interleaved")
    reordered = np.asarray(answer(w, h))
    expect(list(reordered.shape), list(w.shape), "the shape")
    halved = apply_rope_ref((x @ reordered).reshape(1, 6, h, k), pos, freqs, "half")
    truth, got = (np.einsum("bthk,bshk->bhts", one, one) for one in (paired, halved))
    expect(got, truth, "the score of two keys of the same head")


# %% [markdown] exercise
# **3.** Within how many tokens does a pair come full circle? How many pairs of a head of `k` numbers do so within
# a text of `context` tokens? (SmolLM2-135M has k = 64 and theta = 100,000; in its 8,192 tokens 12 of 32 pairs
# never do.)


# %% exercise
def full_circles(k: int, theta: float, context: int) -> int:
    """How many of the k/2 pairs turn by 2π or more within `context` tokens."""
    raise NotImplementedError


def mark_full_circles(answer):
    for k, theta, context in ((32, 10_000.0, 512), (64, 100_000.0, 8192), (128, 500_000.0, 8192)):
        truth = int(np.sum(rope_frequencies(k, theta).astype(np.float64) * context >= 2 * np.pi))
        expect(int(answer(k, theta, context)), truth, f"full_circles({k}, {theta:g}, {context})")
