# %% [markdown]
# # 9. Mamba-2, the delta rule, hybrids
#
# A memory that is a matrix: written to like Mamba, computed like attention, corrected by the delta rule, and its
# limits.
#
# In lesson 8 each channel had a state of its own, and only a loop or a scan could compute it. The two designs of
# this lesson make the state a matrix, on which keys and values are written, and the computation matrix products,
# which processors are good at. In the end we take a hybrid, `tiny-hybrid`, blindfold its two attention layers, and
# see what a memory of fixed size cannot do.

# %%
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import ops, texts
from minillm.blocks import Attention, Mamba2Spec, MLPSpec
from minillm.config import Config
from minillm.lessons import expect, picture
from minillm.span import Span

lm = minillm.load("tiny-hybrid")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A matrix that remembers
#
# Take a value `[k]` and a key `[n]`, and write down all products of their numbers: the outer product, a matrix S
# `[k, n]`. If you multiply S with the key, you get the value back, times the key's squared length. And if several
# such matrices are added up, and their keys stand at right angles, each key still finds its own value. So a sum of
# outer products is a dictionary. We write three pairs into one matrix, and look one of them up.

# %%
keys, values = np.eye(8)[:3], rng.normal(size=(3, 6))  # keys at right angles, of length 1
S = sum(np.outer(value, key) for key, value in zip(keys, values, strict=True))  # [k, n]
print("written", values[1].round(2), "\nread   ", (S @ keys[1]).round(2))
assert np.allclose(S @ keys[1], values[1])

# %% [markdown]
# Mamba-2 (Dao and Gu 2024, arXiv:2405.21060) is such a dictionary with decay:
#
#     S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_tᵀ          y_t = S_t C_t
#
# It is Mamba's equation (lesson 8), in which x is the value, B the key and C the query. What is new: channels come
# in heads, as in attention, and dt and A, and with them the decay, are one number for a whole head, not one for
# each channel. We run it for one head, with random numbers and two unusual stretches that will be seen below.


# %%
def recurrence(x, dt, A, B, C):
    """One head: x [t k], dt [t], A, B and C [t n] -> y [t k], and the last state [k n]."""
    S, y = np.zeros((x.shape[1], B.shape[1])), []
    for t in range(len(x)):
        S = np.exp(dt[t] * A) * S + dt[t] * np.outer(x[t], B[t])
        y.append(S @ C[t])
    return np.array(y), S


t, k, n, A = 48, 6, 8, -1.0
x, B, C = rng.normal(size=(t, k)), rng.normal(size=(t, n)), rng.normal(size=(t, n))
dt = np.full(t, 0.15)
dt[20] = 4.0  # this token wipes out what was before: exp(-4) = 0.02 is left
dt[30:36] = 0.0  # and these do not exist for the memory
y, S = recurrence(x, dt, A, B, C)


def as_op(form, **options):
    """The same by one of `ops`, for one sequence and one head."""
    arrays = x[None, :, None], dt[None, :, None], np.array([A]), B[None, :, None], C[None, :, None]
    if form is not ops.ssd_ref:
        arrays = tuple(jnp.asarray(array, jnp.float32) for array in arrays)
    return np.asarray(form(*arrays, **options)[0])[0, :, 0]


print(f"the state has {S.size} numbers, before the first token and after {t}")
assert np.allclose(y, as_op(ops.ssd_ref))

# %% [markdown]
# ## The same as attention
#
# Write out what y_t has of token s: its value x_s, times `dt_s`, times `C_t · B_s`, times all that has faded since.
# That is attention: scores of queries and keys, hidden where s > t, and weighted sums of values; but a decay stands
# where attention has its softmax. The paper calls it duality. The decay from s to t is `exp` of the sum of `dt A`
# over the tokens after s up to t. So there is a matrix `[t, s]` of weights, and we can look at it.

# %%
fade = jnp.cumsum(jnp.asarray(dt * A, jnp.float32))  # t
decay = jnp.where(jnp.tril(jnp.ones((t, t), bool)), jnp.exp(fade[:, None] - fade[None, :]), 0)  # t s
scores = jnp.asarray(C @ B.T, jnp.float32)
weights = decay * scores * dt[None, :]  # t s
y_dual = weights @ x


def draw_duality(figure):
    shown = {"scores C · B": (scores, 8), "decay": (decay, 1), "weights: scores · decay · dt": (weights, 2)}
    for axes, (title, (matrix, top)) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        signed = title != "decay"
        image = axes.imshow(matrix, cmap="RdBu" if signed else "magma", vmin=-top if signed else 0, vmax=top)
        figure.colorbar(image, shrink=0.7)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="token s, which is read", ylabel="token t, which reads")


picture("09_duality", draw_duality, width=11)

# %% [markdown]
# In the middle: towards the left things fade. At token 20, whose dt is large, all that was before is cut off, and
# the matrix falls into two triangles. From 30 to 35 dt is 0, so nothing fades; and nothing is written, which is why
# these columns are empty on the right. Column 20 is the darkest there: it was written with 27 times the usual dt.

# %%
assert np.allclose(y_dual, y, atol=1e-4)
assert np.allclose(y_dual, as_op(ops.quadratic_ssd), atol=1e-4)
assert decay[20:, :20].max() < 0.02
assert not np.any(weights[:, 30:36])

# %% [markdown]
# ## Chunks
#
# The recurrence takes t steps on small matrices, one after the other. The dual form takes one, but its work grows
# with t². Between them: cut the text into chunks of c tokens. Within a chunk compute as attention; what came before
# it is known by the state; and from chunk to chunk the state goes on as in a recurrence. This is what models run.
# We count its multiplications for 4,096 tokens and a head of usual size, then compute our 48 tokens with it.


# %%
def chunked(x, dt, A, B, C, c: int):
    """As `recurrence`, c tokens at a time."""
    S, y = jnp.zeros((x.shape[1], B.shape[1])), []
    for first in range(0, len(x), c):
        xs, dts, Bs, Cs = (jnp.asarray(array[first : first + c], jnp.float32) for array in (x, dt, B, C))
        fade = jnp.cumsum(dts * A)
        decay = jnp.where(jnp.tril(jnp.ones((len(xs),) * 2, bool)), jnp.exp(fade[:, None] - fade[None, :]), 0)
        within = (decay * (Cs @ Bs.T)) @ (dts[:, None] * xs)
        y.append(within + jnp.exp(fade)[:, None] * (Cs @ S.T))
        S = jnp.exp(fade[-1]) * S + (decay[-1] * dts * xs.T) @ Bs
    return jnp.concatenate(y), S


def products(t: int, c: int, k: int = 64, n: int = 128) -> int:
    """Multiplications in the matrix products of a head with chunks of c tokens."""
    return t * c * (n + k) + 2 * t * k * n


for c in (1, 16, 64, 256, 4096):
    print(f"chunks of {c:>4} tokens: {4096 // c:>4} steps, {products(4096, c) / 1e6:5.0f} million multiplications")
assert products(4096, 64) < 2 * products(4096, 1)  # a 64th of the steps for less than twice the work
for c in (16, 48):
    y_chunked, S_chunked = chunked(x, dt, A, B, C, c)
    assert np.allclose(y_chunked, y, atol=1e-4)
    assert np.allclose(S_chunked, S, atol=1e-4)
    assert np.allclose(y_chunked, as_op(ops.chunked_ssd, chunk=c), atol=1e-4)

# %% [markdown]
# ## A memory that corrects itself
#
# A dictionary in which one only ever adds has a fault: write a second value under the same key, and you read the
# sum of both. Decay helps little, since it lets everything fade alike. The delta rule (Widrow and Hoff 1960) first
# looks up what stands under the key, and writes only the difference:
#
#     u_t = beta_t (v_t - S_{t-1}ᵀ k_t)          S_t = S_{t-1} + k_t u_tᵀ
#
# The names are attention's now: k is a key, v a value, and S `[k, j]` has the keys first. With beta = 1 and keys of
# length 1 the old value is replaced, with beta = 0 nothing happens. Gated DeltaNet (Yang et al. 2024,
# arXiv:2412.06464), used in Qwen3-Next, also lets S fade before each step.
#
# We let three memories of 32 x 32 numbers take in 48 random pairs, and then read the value under each key.


# %%
def remember(keys, values, fade: float = 1.0, delta: bool = False):
    """The state [k j] after all pairs: keys [t k] of length 1, values [t j]."""
    S = np.zeros((keys.shape[1], values.shape[1]))
    for key, value in zip(keys, values, strict=True):
        S = fade * S
        S = S + np.outer(key, value - S.T @ key if delta else value)
    return S


def unit(x: np.ndarray) -> np.ndarray:
    """x with rows of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def errors(keys, values, **options) -> np.ndarray:
    """By how much what is read under each key differs from its value, as a part of that; the newest pair first."""
    read = keys @ remember(keys, values, **options)
    return (np.linalg.norm(read - values, axis=1) / np.linalg.norm(values, axis=1))[::-1]


# %% [markdown]
# On the left of the picture each of the 48 keys is new; on the right the same eight come again and again, each time
# with another value, of which the last one is to be read.

# %%
rules = {"add": {}, "add, fading": {"fade": 0.95}, "delta rule": {"delta": True}}
once = [(unit(rng.normal(size=(48, 32))), rng.normal(size=(48, 32))) for _ in range(20)]
again = [(np.tile(unit(rng.normal(size=(8, 32))), (6, 1)), rng.normal(size=(48, 32))) for _ in range(20)]
wrong = {  # for the left and the right picture, the mean of 20 samples
    name: [np.mean([errors(*pairs, **options) for pairs in samples], axis=0) for samples in (once, again)]
    for name, options in rules.items()
}


def draw_memories(figure):
    left, right = figure.subplots(1, 2, sharey=True)
    for name, (of_once, of_again) in wrong.items():
        left.plot(range(1, 49), of_once, label=name)
        right.plot(range(1, 9), of_again[:8], label=name)  # older values were replaced
    left.set(title="48 keys, written once", ylabel="error of what is read", ylim=(0, 3))
    right.set(title="8 keys, each written 6 times")
    for axes in (left, right):
        axes.set_xlabel("how many pairs ago it was written")
        axes.axhline(1, color="grey", linewidth=0.7, linestyle=":")
    right.legend(loc="center right")


picture("09_memories", draw_memories, width=10)

# %% [markdown]
# An error of 1 is as if nothing were remembered. On the left, more keys than can stand at right angles: adding
# blurs all of them, fading favours the newer, the delta rule knows the newest exactly and the oldest no longer. On
# the right, the same keys come again: what was added up is of no use, while the delta rule reads as well as on the
# left. That there were other values before is no burden.

# %%
(once_added, again_added), (once_delta, again_delta) = wrong["add"], wrong["delta rule"]
assert once_added.min() > 1
assert again_added[:8].min() > 2
assert max(once_delta[0], again_delta[0]) < 1e-9 < 1 < once_delta[-1]
assert np.all(again_delta[:8] < once_delta[:8] + 0.1)

# %% [markdown]
# The rule looks sequential, as u_t depends on S_{t-1}, and so on all earlier u. But put the sum `S_{t-1} = Σ_{s<t}
# k_s u_sᵀ` into the equation: what is unknown, u, is then the solution of a triangular system (Yang et al. 2024,
# arXiv:2406.06484), one row a token:
#
#     u_t + beta_t Σ_{s<t} (k_t · k_s) u_s = beta_t v_t
#
# After that it is attention on the values u, without a softmax. `ops` does it chunk by chunk, with fading, too.

# %%
keys, values, queries = unit(rng.normal(size=(t, k))), rng.normal(size=(t, n)), rng.normal(size=(t, k))
beta = rng.uniform(size=t)
S, by_steps = np.zeros((k, n)), []
for i in range(t):
    S = S + np.outer(keys[i], beta[i] * (values[i] - S.T @ keys[i]))
    by_steps.append(S.T @ queries[i])

overlap = jnp.tril(beta[:, None] * (keys @ keys.T), -1) + jnp.eye(t)
u = jax.scipy.linalg.solve_triangular(overlap, jnp.asarray(beta[:, None] * values), lower=True)
at_once = jnp.tril(queries @ keys.T) @ u

shaped = [array[None, :, None] for array in (queries, keys, values, np.zeros(t), beta)]  # log(fade) = 0: none
assert np.allclose(by_steps, ops.gated_delta_ref(*shaped, scale=1.0)[0][0, :, 0])
assert np.allclose(at_once, by_steps, atol=1e-4)
by_chunks, _ = ops.chunked_gated_delta(*(jnp.asarray(array, jnp.float32) for array in shaped), scale=1.0, chunk=16)
assert np.allclose(at_once, by_chunks[0, :, 0], atol=1e-4)

# %% [markdown]
# ## The Mamba-2 block
#
# Around the matrix stands what stood around Mamba's state: a norm, a projection, a short convolution, a gate. The
# projection gives everything at once: the gate z, the values x, B and C (through the convolution, all three), and a
# dt for each head. Behind the gate comes a second norm. Here is such a block written out, in a small model with
# random weights, of which a `Config` says what it is made of; trained models are a tower of such blocks, larger.
# (The block of Gated DeltaNet looks much the same, `minillm/blocks/gated_delta.py`.)

# %%
layers = ((Mamba2Spec(h=8, k=16, n=32), MLPSpec(128)),) * 3
own = minillm.init(Config("mamba2", d=64, v=256, context=256, layers=layers, tied=True))
block = own.model.blocks[0]
entering = own.model.embed.rows(jnp.asarray(rng.integers(0, 256, (1, 40))))  # b t d
i, n = block.spec.i, block.spec.n  # heads x channels, and numbers of a key

z, xBC, dt = jnp.split(block.norm(entering) @ block.z_xBC_dt, (i, 2 * i + 2 * n), axis=2)
xBC, _ = ops.causal_conv1d(xBC, block.conv.T, block.conv_bias)
x, B, C = jnp.split(ops.silu(xBC), (i, i + n), axis=2)
x = x.reshape(1, 40, block.spec.h, block.spec.k)  # b t h k
dt, A = jax.nn.softplus(dt + block.dt_bias), -jnp.exp(block.A_log)  # b t h, h
y, _ = ops.ssd_ref(x, dt, A, B[:, :, None], C[:, :, None], block.D)  # all heads share one B and one C: g = 1
y = ops.rms_norm(jnp.asarray(y, jnp.float32).reshape(1, 40, i) * ops.silu(z), block.y_norm, block.eps)
by_hand = entering + y @ block.out

by_block, _ = block(entering, None, Span.chain(jnp.array([0]), jnp.array([40]), 40))
print(f"largest difference from the block: {np.abs(by_hand - by_block).max():.1e}")
assert np.allclose(by_hand, by_block, atol=1e-4)

# %% [markdown]
# ## Why hybrids
#
# The state holds so many numbers and no more; the cache of attention holds all. Is that needed? `tiny-hybrid` has
# four layers of Mamba and two of attention. We tie a blindfold to these two: they may see no more than the last
# eight tokens, so what comes from further away must come through the Mamba layers. Then we ask, token by token, by
# how much the model's surprise has grown: a token to which it gave probability p surprises it by -log2(p) bits.


# %%
def surprise(model, ids: list[int]) -> np.ndarray:
    """Bits [t - 1] that each token but the first takes."""
    at = Span.chain(jnp.array([0]), jnp.array([len(ids)]), len(ids))
    logits, _ = model(jnp.asarray([ids]), None, at)
    chosen = jax.nn.log_softmax(logits[0, :-1])[jnp.arange(len(ids) - 1), jnp.asarray(ids[1:])]
    return -np.asarray(chosen) / np.log(2)


def blindfolded(window: int):
    """The model, its attention layers seeing so many tokens."""
    blocks = (
        one.replace(spec=replace(one.spec, window=window)) if isinstance(one, Attention) else one
        for one in lm.model.blocks
    )
    return lm.model.replace(blocks=tuple(blocks))


# %%
recipe = lm.tokenizer.encode(texts.held_out("recipes")[0].text)[:144]
bits = {window: surprise(blindfolded(window), recipe) for window in (8, 32, 512)}
for window, one in bits.items():
    print(f"attention sees {window:>3} tokens: {one.mean():.2f} bits a token")
lost = bits[8] - bits[512]


def draw_lost(figure):
    axes = figure.subplots()
    axes.axis("off")
    shown, row, column = np.full((14, 84), np.nan), 0, 0
    for token, worse in zip(recipe[1:], lost, strict=True):
        for letter in lm.tokenizer.decode([token]):
            if column == 84 or (letter == "\n" and column):
                row, column = row + 1, 0
            if letter != "\n":
                colour = "white" if worse > 7 else "black"
                axes.text(
                    column, row, letter, fontsize=8, family="monospace", ha="center", va="center", color=colour
                )
                shown[row, column] = worse
                column += 1
    image = axes.imshow(shown, cmap="Reds", vmin=0, vmax=12, aspect="auto")
    figure.colorbar(image, label="bits more", pad=0.01)


picture("09_blindfold", draw_lost, width=11, height=3)

# %% [markdown]
# Red is what the blindfolded model can no longer know: `80` and `50`, amounts that stand in the list of ingredients
# and must be copied exactly, the name of what was to be cut, and the number of the next step. How sentences go, it
# still knows. A memory of fixed size is good at the drift of a text and bad at exact look-up, so most hybrids keep
# one layer of attention in four to eight, whose cache is small by that factor (Jamba, arXiv:2403.19887). How much
# is lost here says little about a model that had been trained blindfolded; where it is lost, says much.

# %%
worst = np.argsort(-lost)[:8]
print("hit hardest:", [lm.tokenizer.decode(recipe[i - 3 : i + 2]) for i in worst])
assert bits[8].mean() > bits[32].mean() > bits[512].mean()
assert np.allclose(bits[512], surprise(lm.model, recipe), atol=1e-3)  # a window longer than the text hides nothing

# %% [markdown] exercise
# ## Exercises
#
# **1.** One step of the gated delta rule, the state with keys first. First everything fades, then what the faded
# state holds under the key is corrected.


# %% exercise
def gated_step(S, q, k, v, fade: float, beta: float):
    """S [k j], q and k [k], v [j], fade and beta in [0, 1] -> y [j], what q reads afterwards, and the new S."""
    raise NotImplementedError


def mark_gated_step(answer):
    rng = np.random.default_rng(6)
    for fade, beta in ((1.0, 1.0), (0.5, 0.3)):
        S, q, v = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=3)
        k = rng.normal(size=4)
        k = k / np.linalg.norm(k)
        numbers = np.full((1, 1, 1), np.log(fade)), np.full((1, 1, 1), beta)
        arrays = [one[None, None, None] for one in (q, k, v)]
        y, after = ops.gated_delta_ref(*arrays, *numbers, scale=1.0, state=S[None, None])
        got = answer(S.copy(), q, k, v, fade, beta)
        expect(np.asarray(got[1]), after[0, 0], f"the new S with fade={fade}, beta={beta}")
        expect(np.asarray(got[0]), y[0, 0, 0], f"y with fade={fade}, beta={beta}")


# %% [markdown] exercise
# **2.** The matrix of decays. The lesson takes differences of sums from the start; with a token that wipes out
# everything, those are differences of large numbers, and float32 loses the small ones. Add up each stretch by
# itself. Your answer gets float32, and must give it.


# %% exercise
def decays(log_decay):
    """log_decay [t] = dt A, float32 -> [t s] float32: exp of the sum over s < r <= t, and 0 where s > t."""
    raise NotImplementedError


def mark_decays(answer):
    for hole in (0.0, -3000.0):
        log_decay = -np.random.default_rng(7).uniform(0, 0.1, 12).astype(np.float32)
        log_decay[4] += np.float32(hole)
        wide = log_decay.astype(np.float64)
        truth = [[np.exp(wide[s + 1 : t + 1].sum()) if s <= t else 0 for s in range(12)] for t in range(12)]
        got = np.asarray(answer(log_decay))
        expect(got.dtype, np.dtype(np.float32), "the dtype")
        expect(got, np.array(truth, np.float32), f"the decays with {hole:.0f} at token 4", tolerance=1e-6)
