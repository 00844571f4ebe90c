# %% [markdown]
# # 8. State-space models
#
# A memory that never grows: the same recurrence as a loop, a convolution and a scan, and the Mamba block made of
# it.
#
# Attention remembers every token, and pays for it with every token (lesson 5). The blocks of this lesson keep a
# state of fixed size, which fades and is written to; they are called state-space models (SSMs), even where they
# are only parts of one. We look at one number of such a state first, and build up to the Mamba block of
# `tiny-hybrid`, a model in which two layers of three remember in this way, and one attends.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.blocks import Attention, Mamba
from minillm.cache import StateSpec
from minillm.lessons import expect, picture
from minillm.ops import (
    associative_selective_scan,
    causal_conv1d,
    causal_conv1d_ref,
    chunked_selective_scan,
    rms_norm,
    selective_scan_ref,
    sequential_selective_scan,
    silu,
)
from minillm.span import Span

lm = minillm.load("tiny-hybrid")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A number that fades
#
# Let the state be one number h, and the input one number x a token. With each token the state loses a part of
# itself, and takes up something of the input:
#
#     h_t = exp(dt A) h_{t-1} + dt B x_t           y_t = C h_t
#
# A is negative and says how fast h fades, per unit of time; dt is how much time a token takes, its step; B and C
# weigh what is written and what is read. (Engineers describe a leaking capacitor so, in steps of length dt; hence
# the names.) We feed it sixty tokens, of which two carry a 1 and the others 0.

# %%
t, A, B, C = 60, -1.0, 1.0, 2.0
x = np.zeros(t)
x[[5, 30]] = 1


def recurrence(x: np.ndarray, dt: float) -> np.ndarray:
    """The state's answer y [t] to inputs x [t]."""
    h, y = 0.0, []
    for value in x:
        h = np.exp(dt * A) * h + dt * B * value
        y.append(C * h)
    return np.array(y)


def as_op(dt: float) -> np.ndarray:
    """The same by `ops`, whose arrays are x, dt [b t i], A [i n], B, C [b t n]; here b, i and n are 1."""
    constant = np.ones((1, t, 1))
    y, _ = selective_scan_ref(x[None, :, None], dt * constant, np.array([[A]]), B * constant, C * constant)
    return y[0, :, 0]


for token in (4, 5, 6, 15, 29, 30, 31):
    print(f"token {token:>2}: x is {x[token]:.0f}, y is {recurrence(x, 0.1)[token]:.4f}")
assert np.allclose(recurrence(x, 0.1), as_op(0.1))

# %% [markdown]
# ## The same as a convolution
#
# Follow one input through the loop: it is multiplied by `dt B`, then faded once a token, then read with C. So y is
# a sum over all inputs so far, each weighted by how long ago it came, `C exp(dt A)^j dt B` for j tokens. That is a
# convolution, and all its outputs can be computed at once, with no loop over time (Gu et al. 2021,
# arXiv:2111.00396). The picture shows the answer for three steps dt: with a small one the state remembers for long
# and takes up little.

# %%
kernel = C * np.exp(0.1 * A) ** np.arange(t) * 0.1 * B  # the weight of an input 0, 1, 2 … tokens ago
by_convolution = np.convolve(x, kernel)[:t]


def draw_fading(figure):
    axes = figure.subplots()
    for dt in (0.02, 0.1, 0.5):
        axes.step(range(t), recurrence(x, dt), where="mid", label=f"dt {dt}")
    for place in np.flatnonzero(x):
        axes.axvline(place, color="grey", linestyle=":", label="input of 1" if place == 5 else None)
    axes.set(xlabel="token", ylabel="y")
    axes.legend()


picture("08_fading", draw_fading)

# %%
assert np.allclose(by_convolution, recurrence(x, 0.1))
assert np.allclose(by_convolution, as_op(0.1))

# %% [markdown]
# ## Selective: the token decides
#
# A convolution treats every token alike. But to remember a name through a page of small talk, a memory must write
# the name and ignore the talk. So in Mamba (Gu and Dao 2023, arXiv:2312.00752) dt, B and C are computed from the
# token; such a state-space model is called selective. A dt near 0 means: this token does not exist, nothing fades,
# nothing is written. A large one: forget everything, and take up this. Below every token carries noise, except for
# one with the number 3, and only its dt is not small. It must be there still at the end.
#
# The price: where the weights change with the token there is no one kernel to convolve with. The loop remains, or
# something cleverer.

# %%
noisy = rng.normal(size=t)
noisy[20] = 3.0
dt = np.full(t, 1e-3)
dt[20] = 5.0
shaped = [one[None, :, None] for one in (noisy, dt, np.ones(t), np.ones(t))]  # x, dt, and B = C = 1; A is still -1
y, state = selective_scan_ref(shaped[0], shaped[1], np.array([[A]]), shaped[2], shaped[3])

h, selective = 0.0, []
for step, value in zip(dt, noisy, strict=True):
    h = np.exp(step * A) * h + step * value
    selective.append(h)
print(f"written at token 20: {selective[20]:.2f}; 39 tokens of noise later: {selective[-1]:.2f}")
assert np.allclose(selective, y[0, :, 0])
assert np.isclose(state.item(), selective[-1])
assert np.isclose(selective[-1], selective[20], rtol=0.1)

# %% [markdown]
# ## The same as a scan
#
# One token does to the state `h -> a h + u`. Two tokens, one after the other, do `h -> a2 (a1 h + u1) + u2`, which
# has the same form, with `a = a2 a1` and `u = a2 u1 + u2`. So tokens can be combined before the state is known;
# and as it does not matter where one puts the brackets, in a tree, whose depth grows only with log2(t). JAX calls
# it `associative_scan`. It suits devices with thousands of processors. On a few cores the loop is hard to beat,
# for the tree does more work and writes all states to memory. In between lies the chunked form: a tree within
# pieces of the text, a loop over the pieces.
#
# We run the selective tokens from above through the tree, and then hold all three forms in `ops` to the definition,
# now with `b` sequences, `i` channels of input, and `n` numbers of state for each channel.


# %%
def combine(first, second):
    """What two stretches of tokens do to the state, one after the other."""
    (a1, u1), (a2, u2) = first, second
    return a2 * a1, a2 * u1 + u2


a, u = jnp.asarray(np.exp(dt * A), jnp.float32), jnp.asarray(dt * noisy, jnp.float32)
_, by_tree = jax.lax.associative_scan(combine, (a, u))
assert np.allclose(by_tree, selective, atol=1e-4)

b, i, n = 2, 6, 4
arrays = [rng.normal(size=s) for s in ((b, t, i), (b, t, i), (i, n), (b, t, n), (b, t, n))]
arrays[1], arrays[2] = np.exp(arrays[1] - 2), -np.exp(arrays[2])  # steps are positive, rates negative
defined, last = selective_scan_ref(*arrays)
for form in (sequential_selective_scan, associative_selective_scan, chunked_selective_scan):
    y, state = form(*(jnp.asarray(one, jnp.float32) for one in arrays))
    assert np.allclose(y, defined, atol=1e-4)
    assert np.allclose(state, last, atol=1e-4)

# %% [markdown]
# ## The Mamba block
#
# Around the scan stands what you know from the other blocks. The normalised vectors are multiplied by a matrix that
# gives twice `i` = 512 channels: one half goes through the memory, the other is its gate in the end, as in the
# feed-forward block (lesson 4). A short convolution lets each channel look at its last four tokens. From the
# result come dt, B and C of each token: B and C, `n` = 16 numbers each, for all channels together, and dt for each
# channel, by way of 16 numbers, and through `softplus(z) = log(1 + e^z)`, which makes it positive. (Models of the
# family Jamba, as this one, normalise these three before.) A and D are learned and the same for all tokens; D adds
# to y a part of the input that bypasses the memory. We write it out with the weights of the first block.

# %%
text = texts.held_out("recipes")[1].text
ids = lm.tokenizer.encode(text)[:96]
at = Span.chain(jnp.array([0]), jnp.array([len(ids)]), len(ids))
block = next(one for one in lm.model.blocks if isinstance(one, Mamba))
entering = lm.model.embed.rows(jnp.asarray([ids]))  # [b, t, d]; the block is the model's first

inner, gate = jnp.split(block.norm(entering) @ block.x_z, 2, axis=-1)  # [b, t, i] each
inner, _ = causal_conv1d(inner, block.conv.T, block.conv_bias)
inner = silu(inner)
parts = jnp.split(inner @ block.dt_B_C, (block.spec.rank, block.spec.rank + block.spec.n), axis=-1)
low, B, C = (rms_norm(one, weight, block.spec.norm_eps) for one, weight in zip(parts, block.norms, strict=True))
dt = jax.nn.softplus(low @ block.dt + block.dt_bias)  # [b, t, i]
A = -jnp.exp(block.A_log).T  # [i, n]
y, _ = selective_scan_ref(inner, dt, A, B, C, block.D)
by_hand = np.asarray(entering) + np.asarray((jnp.asarray(y, jnp.float32) * silu(gate)) @ block.out)

by_block, _ = block(entering, None, at)
print(f"largest difference from the model's own block: {np.abs(by_hand - by_block).max():.1e}")
assert block is lm.model.blocks[0]
assert np.allclose(by_hand, by_block, atol=1e-3)

# %% [markdown]
# What did training make of the steps? Averaged over all channels they hardly differ from token to token. Single
# channels do choose. The picture has the 16 whose dt varies most, a row each, and a column for each token. Red is
# a dt above what is usual for the channel: it forgets, and takes up this token. Blue is one below: it carries on
# what it has. Follow a row: channel 229, for one, opens where a line begins, at the dashes, `Steps` and `1.`.

# %%
steps = np.log10(np.asarray(dt)[0])  # [t, i]
selective = np.argsort(-steps.std(axis=0))[:16]
relative = steps[:56, selective] - np.median(steps[:, selective], axis=0)
names = [lm.tokenizer.decode([one]).replace("\n", "↵") for one in ids]


def draw_steps(figure):
    axes = figure.subplots()
    image = axes.imshow(relative.T, aspect="auto", cmap="RdBu_r", vmin=-0.8, vmax=0.8, interpolation="nearest")
    axes.set_xticks(range(56), names[:56], rotation=90, fontsize=8)
    axes.set_yticks(range(16), selective.tolist(), fontsize=8)
    axes.set(xlabel="token", ylabel="channel")
    figure.colorbar(image, label="log10(dt / the channel's median)", pad=0.01)


picture("08_steps", draw_steps, width=12, height=4)

# %%
for channel in selective[:6]:
    best = dict.fromkeys(names[place] for place in np.argsort(-steps[:, channel])[:6])
    low, high = 10 ** steps[:, channel].min(), 10 ** steps[:, channel].max()
    print(f"channel {channel:>3}, dt from {low:.4f} to {high:.3f}, opens for {', '.join(map(repr, best))}")
together, single = steps.mean(axis=1).std(), steps.std(axis=0).mean()
print(f"standard deviation of log10(dt) over tokens: {single:.2f} in a channel, {together:.2f} averaged over all")
assert single > 5 * together
assert np.all(np.asarray(A) < 0)  # so that exp(dt A) is below 1, and no state can grow by itself

# %% [markdown]
# ## A memory that does not grow
#
# The state of a channel is n = 16 numbers, and the last three inputs of its convolution, whatever the text's
# length; a cache of keys and values has a row for each token. We count the bytes of both. And what is remembered
# is all that is needed to go on: fed in two pieces, as in lesson 5, a text gives the same logits.


# %%
def kept(kind: type, length: int) -> int:
    """Bytes that blocks of a kind keep of a text of so many tokens."""
    spec = StateSpec(slots=1, max_len=length)
    states = [one.init_state(spec) for one in lm.model.blocks if isinstance(one, kind)]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(states))


for length in (64, 512, 4096):
    mamba, attention = (kept(kind, length) / 1e3 for kind in (Mamba, Attention))
    print(f"{length:>5} tokens: Mamba {mamba:.0f} kB, attention {attention:.0f} kB")
assert kept(Mamba, 64) == kept(Mamba, 4096)
assert kept(Attention, 4096) == 64 * kept(Attention, 64)

state = lm.model.init_state(StateSpec(slots=1, max_len=128))
rows = []
for first, piece in ((0, ids[:60]), (60, ids[60:])):
    at = Span.chain(jnp.array([first]), jnp.array([len(piece)]), len(piece))
    logits, pending = lm.model(jnp.asarray([piece]), state, at)
    state = lm.model.commit(pending, at, jnp.arange(len(piece))[None], at.n)
    rows.append(logits[0])
assert np.allclose(np.concatenate(rows), lm.logits([ids])[0], atol=2e-3)

# %% [markdown] exercise
# ## Exercises
#
# **1.** After how many tokens has a state lost half of what was written, if no token adds to it? (A fraction of a
# token may come out.)


# %% exercise
def half_life(dt: float, A: float) -> float:
    """Tokens of step dt until the state is half of what it was; A < 0."""
    raise NotImplementedError


def mark_half_life(answer):
    for dt, A in ((0.1, -1.0), (0.001, -16.0), (1.0, -0.5)):
        expect(float(answer(dt, A)), float(np.log(2) / (-A * dt)), f"half_life({dt}, {A})")


# %% [markdown] exercise
# **2.** The convolution in front of the scan: `y_t` is the sum over j of `weight[:, j] x_{t - (w - 1) + j}`. Its
# own memory is the last w - 1 inputs, so that a text may come in pieces.


# %% exercise
def causal_conv(x, weight, state):
    """x [t i], weight [i w], state [w - 1, i], the inputs before x -> y [t i] and the new state."""
    raise NotImplementedError


def mark_causal_conv(answer):
    rng = np.random.default_rng(2)
    x, weight, before = rng.normal(size=(7, 3)), rng.normal(size=(3, 4)), rng.normal(size=(3, 3))
    y, state = causal_conv1d_ref(x[None], weight, state=before[None])
    got = answer(x, weight, before)
    expect(np.asarray(got[0]), y[0], "y")
    expect(np.asarray(got[1]), state[0], "the new state")
    whole, whole_state = causal_conv1d_ref(x[None, :2], weight, state=before[None])
    got = answer(x[:2], weight, before)  # fewer tokens than the state holds
    expect(np.asarray(got[0]), whole[0], "y of two tokens")
    expect(np.asarray(got[1]), whole_state[0], "the state after two tokens")


# %% [markdown] exercise
# **3.** Let a state count: choose dt, B and x so that, with A = -1 and C = 1, the state of a channel is the number
# of ones among the tokens so far, for a sequence of up to 30 zeros and ones. (What must dt be for tokens that are
# not to be counted? And what for those that are, if nothing is to fade?)


# %% exercise
def counting(tokens):
    """tokens [t], zeros and ones -> dt [t] >= 0, B [t], x [t]."""
    raise NotImplementedError


def mark_counting(answer):
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, 2, 30)
        parts = [np.asarray(one, np.float64).reshape(1, -1, 1) for one in answer(tokens)]
        assert np.all(parts[0] >= 0), "dt must not be negative"
        y, _ = selective_scan_ref(parts[2], parts[0], np.array([[-1.0]]), parts[1], np.ones((1, 30, 1)))
        expect(y[0, :, 0], np.cumsum(tokens).astype(float), "the count", tolerance=0.01)
