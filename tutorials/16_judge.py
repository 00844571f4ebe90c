# %% [markdown]
# # 16. Judge a kernel
#
# How to tell a wrong kernel from rounding: a bug of your own, found, and shrunk to the smallest case that shows
# it.
#
# A kernel is the inner part of a layer, written anew for speed: another order of sums, tiles, a trick with
# exponents. It seldom gives the very bits of the plain form, so a test must tell rounding from error. And most of
# its mistakes show only at certain sizes or with certain numbers. In this lesson you write a kernel with a bug,
# see a usual test pass it, and have `ops.validate` find what is wrong.

# %%
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

import minillm
from minillm import ops
from minillm.lessons import expect, picture
from minillm.ops import attention_ref, blocked_attention, naive_attention, rms_norm_ref
from minillm.ops.judge.trials import Trial

rng = np.random.default_rng(0)
lm = minillm.load("tiny-transformer")

# %% [markdown]
# ## No tolerance is right
#
# Here are two forms of attention. One is right, `ops.naive_attention` in float32. The other has a bug: it divides
# scores by `√(k + 1)` instead of `√k`. We compare both with the definition in float64 and ask which error is too
# large. Values are around 0.001, around 1 and around 1000.


# %%
def off_by_one(q, k, v):
    """Attention, if k were one larger."""
    return naive_attention(q, k, v, scale=(q.shape[-1] + 1) ** -0.5)


q, k, v = rng.normal(size=(3, 1, 12, 2, 64)).astype(np.float32)  # b t h k
errors = {}
for size in (0.001, 1.0, 1000.0):
    truth = attention_ref(q, k, v * np.float32(size))
    for f in (naive_attention, off_by_one):
        errors[f.__name__, size] = np.abs(f(q, k, v * np.float32(size)) - truth).max()
        print(f"values around {size:>6}: {f.__name__:16} is off by {errors[f.__name__, size]:.1e}")
assert errors["off_by_one", 0.001] < errors["naive_attention", 1000.0]

# %% [markdown]
# The wrong one is nearer to the truth with small values than the right one with large ones. No tolerance separates
# them. What does is a yardstick that makes the same unavoidable roundings: the plain form in the same precision,
# on the same inputs. A kernel may have twice its error (a convention of the flash-attention project; `validate`
# also knows how much one rounding is where the plain form was lucky).


# %%
def ratio(f, q, k, v) -> float:
    """The largest error of a form of attention, over that of the plain form."""
    truth = attention_ref(q, k, v)
    plain, error = (np.abs(np.asarray(one(q, k, v)) - truth).max() for one in (naive_attention, f))
    return error / plain


def in_blocks(q, k, v):
    """A right kernel that sums in another order."""
    return blocked_attention(q, k, v, block=4)


for size in (0.001, 1.0, 1000.0):
    right, wrong = (ratio(f, q, k, v * np.float32(size)) for f in (in_blocks, off_by_one))
    print(f"values around {size:>6}: in_blocks {right:.2f}, off_by_one {wrong:,.0f} times the plain error")
    assert right <= 2 < wrong

# %% [markdown]
# ## A kernel with a bug
#
# Now a kernel as in lesson 10: keys and values come in blocks of 16, and for each query it keeps the largest score
# so far, the sum of the exponentials, and the weighted sum of values. If a block brings a larger score, what was
# summed before must shrink. One of the two sums is forgotten here. Can you see which?

# %%
BLOCK = 16


def flash(q, k, v, *, causal=True, scale=None):
    """q [b t h k], k [b s g k], v [b s g j], arrays of NumPy -> y [b t h j]."""
    (b, t, h, width), (s, g) = q.shape, k.shape[1:3]
    q, scale = q.astype(np.float32), np.float32(width**-0.5 if scale is None else scale)
    k, v = (np.repeat(one.astype(np.float32), h // g, axis=2) for one in (k, v))
    largest = np.full((b, h, t, 1), -np.inf, np.float32)
    total, y = np.zeros((b, h, t, 1), np.float32), np.zeros((b, h, t, v.shape[3]), np.float32)
    for first in range(0, s, BLOCK):
        score = np.einsum("bthk,bshk->bhts", q, k[:, first : first + BLOCK]) * scale
        if causal:
            seen = np.arange(s)[first : first + BLOCK] <= np.arange(s - t, s)[:, None]  # t s
            score = np.where(seen, score, -np.inf)
        larger = np.maximum(largest, score.max(axis=3, keepdims=True))
        weight = np.exp(score - larger)
        total = total + weight.sum(axis=3, keepdims=True)
        y = y * np.exp(largest - larger) + np.einsum("bhts,bshj->bhtj", weight, v[:, first : first + BLOCK])
        largest = larger
    return (y / total).swapaxes(1, 2)


print(f"12 tokens: {ratio(flash, q, k, v):.2f} times the plain form's error")
assert ratio(flash, q, k, v) <= 2
assert np.allclose(flash(q, k, v), attention_ref(q, k, v), atol=1e-5)

# %% [markdown]
# The test passes: twelve tokens are less than a block. Would a model notice? We take queries, keys and values as
# they are in the first block of `tiny-transformer`, for a real recipe, and look at the error token by token.

# %%
text = (
    "Recipe: Tomato Soup\n\nIngredients:\n- 200 g tomatoes\n- 100 g onion\n- 5 g salt\n\nSteps:\n1. Chop the onion"
)
ids = lm.tokenizer.encode(text)
block = lm.model.blocks[0]
x = block.norm(lm.model.embed.rows(jnp.asarray([ids])))
pos, heads = jnp.arange(len(ids))[None], (1, len(ids), block.spec.h, block.spec.k)
q_model, k_model, v_model = ((x @ part).reshape(heads) for part in jnp.split(block.qkv.dense(), 3, axis=1))
qkv = [np.asarray(one) for one in (block.spec.rope.turn(q_model, pos), block.spec.rope.turn(k_model, pos), v_model)]
truth = attention_ref(*qkv)[0]  # t h k
off = {f.__name__: np.abs(np.asarray(f(*qkv))[0] - truth).max(axis=(1, 2)) for f in (naive_attention, flash)}


def draw_tokens(figure):
    axes = figure.subplots()
    for name, one in off.items():
        axes.plot(np.maximum(one, 1e-9), "o-", markersize=3, label=name)
    axes.axvline(BLOCK - 0.5, color="grey", linestyle=":", label="end of the first block")
    axes.set_yscale("log")
    names = [lm.tokenizer.decode([i]).replace("\n", "↵") for i in ids]
    axes.set_xticks(range(len(ids)), names, fontsize=8, rotation=90)
    axes.set(ylabel="largest error at this token", xlim=(-0.5, len(ids) - 0.5))
    axes.legend(loc="center left", fontsize=8)


picture("16_tokens", draw_tokens, width=10)

# %%
print(
    f"of the first 16 tokens the error is {off['flash'][:16].max():.1e}, after them {off['flash'][16:].max():.1e}"
)
assert off["flash"][:16].max() < 1e-5
assert off["flash"][16:].max() > 1e-2

# %% [markdown]
# ## Shrinking, by hand
#
# A failure at 600 keys in 4 sequences says little. The same failure at the smallest size that shows it says nearly
# where the bug is. So: as long as it fails, make something smaller. There are seven sizes: b sequences, t queries
# after `past` older tokens, g heads of keys with r heads of queries each, and widths k and j.


# %%
def fails(sizes: dict[str, int], seed: int) -> bool:
    """Whether the kernel is wrong for random arrays of such sizes."""
    b, t, past, g, r, width, j = sizes.values()
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(b, t, g * r, width)), rng.normal(size=(b, past + t, g, width))
    v = rng.normal(size=(b, past + t, g, j))
    return not np.allclose(flash(q, k, v), attention_ref(q, k, v), atol=1e-4)


def shrunk(sizes: dict[str, int], tries: int) -> dict[str, int]:
    """Sizes that fail for one of so many seeds, each as small as it can be with the others."""
    for name in sizes:
        for smaller in (lambda n: n // 2, lambda n: n - 1):
            while (n := smaller(sizes[name])) >= (name != "past"):
                if not any(fails({**sizes, name: n}, seed) for seed in range(tries)):
                    break
                sizes = {**sizes, name: n}
    return sizes


start = {"b": 3, "t": 9, "past": 87, "g": 2, "r": 2, "k": 8, "j": 8}
least = shrunk(start, tries=60)
print("from", start, "\nto  ", least)
assert least == {"b": 1, "t": 1, "past": 16, "g": 1, "r": 1, "k": 1, "j": 1}

# %% [markdown]
# One of everything, and 17 keys: one more than a block. Now it is plain where to look.
#
# Why were 60 seeds needed? With 17 keys the sum must shrink only if the largest score is the last of all, one time
# in 17. With s keys the chance is `1 - 16 / s`, that the largest is not in the first block. So a test with a single
# query and few keys hardly ever sees this bug, though it is there. That is how a kernel passes its tests for
# months. We let 60 such tests run at each of twelve sizes.

# %%
sizes_tried, draws = [4, 8, 12, 16, 17, 20, 24, 32, 48, 64, 96, 128], 60
seen = [np.mean([fails({**least, "past": s - 1}, seed) for seed in range(draws)]) for s in sizes_tried]


def draw_power(figure):
    axes = figure.subplots()
    axes.plot(sizes_tried, seen, "o", label=f"tests that failed, of {draws} at each size")
    line = np.arange(1, 129)
    axes.plot(
        line, np.maximum(1 - BLOCK / line, 0), label="chance that the largest score is not in the first block"
    )
    axes.set(xlabel="keys, for one query", ylabel="part of the tests", ylim=(-0.05, 1.05))
    axes.legend(loc="lower right")


picture("16_power", draw_power)

# %%
expected = np.maximum(1 - BLOCK / np.array(sizes_tried), 0)
print("failed:", [f"{one:.0%}" for one in seen], "\nchance:", [f"{one:.0%}" for one in expected])
assert not any(seen[: sizes_tried.index(BLOCK) + 1])
assert np.abs(seen - expected).max() < 3 * np.sqrt(0.25 / draws)  # three standard errors

# %% [markdown]
# ## Have it judged
#
# `ops.validate` does all this for any kernel of any op: sizes and options chosen by people who know where kernels
# break, ordinary and nasty numbers, inputs whose answer is exact, and laws, such as that the order of keys in
# memory does not matter. It counts errors in roundings, and has hypothesis (MacIver et al. 2019) do the shrinking.
# From a terminal it is `minillm validate my_kernels.py:flash --op attention --arrays numpy`. What our kernel cannot
# do, such as windows, it sees from its arguments.
#
# All cases of the op make some three hundred trials. For this lesson we leave it four of them, and `quick` stops
# after some eight seconds, however far the shrinking has come.

# %%
attention = ops.judge.OPS["attention"]
chosen = "square causal", "grouped queries, narrow values", "decode one query", "not causal, scale"
few = replace(attention, cases=tuple(one for one in attention.cases if one.name in chosen))
report = ops.validate(few, flash, arrays="numpy", quick=True)
print(report)

accuracy = next(one for one in report.failures if one.trial.startswith("accuracy"))
trial = Trial.parse(accuracy.trial)
sizes = next(one for one in few.cases if one.name == trial.case).sizes | dict(trial.sizes)
print(f"\nthe smallest that it found in this time has {sizes['t'] + sizes['past']} keys")
assert not report.ok
assert sizes["t"] + sizes["past"] > BLOCK
assert not ops.validate("attention", flash, arrays="numpy", only=accuracy.trial).ok  # the line repeats it

# %% [markdown]
# Each failure comes with the line that repeats it. The bug is that `total` is not multiplied by
# `exp(largest - larger)`, as y is: exercise 1.
#
# ## Numbers that no test draws
#
# Other bugs show at every size, but only with certain numbers. RMSNorm adds a small eps under the root, so that a
# row of zeros is not divided by zero. The second kernel here adds it after the root. For numbers around 1 the
# difference is far below any tolerance. `validate` also draws tiny ones, large ones, and outliers.


# %%
def plain_norm(x, weight, *, eps):
    """RMSNorm of x [t d], in float32."""
    wide = x.astype(np.float32)
    return wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps)) * weight


def eps_outside(x, weight, *, eps):
    """The same, but for where eps is added."""
    wide = x.astype(np.float32)
    return wide / (np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True)) + np.float32(eps)) * weight


x, weight = rng.normal(size=(4, 64)).astype(np.float32), np.ones(64, np.float32)
for size in (1.0, 1e-3):
    rows = x * np.float32(size)
    difference = np.abs(eps_outside(rows, weight, eps=1e-6) - rms_norm_ref(rows, weight, eps=1e-6)).max()
    print(f"numbers around {size}: off by {difference:.1e}")
report = ops.validate("rms_norm", eps_outside, arrays="numpy")
print(report)
assert np.allclose(eps_outside(x, weight, eps=1e-6), rms_norm_ref(x, weight, eps=1e-6), atol=1e-5)
assert not report.ok
assert ops.validate("rms_norm", plain_norm, arrays="numpy").ok

# %% [markdown]
# ## Who would have noticed?
#
# A judge must be judged, too: by bugs that one knows are there. To `eps_outside` we add four more.


# %%
def squares_in_half(x, weight, *, eps):
    """Squares are summed in float16."""
    mean = np.mean(np.square(x.astype(np.float16)), axis=-1, keepdims=True, dtype=np.float16)
    return x / np.sqrt(mean.astype(np.float32) + np.float32(eps)) * weight


def one_less(x, weight, *, eps):
    """The mean divides by d - 1."""
    return plain_norm(x, weight, eps=eps) * np.float32(np.sqrt((x.shape[-1] - 1) / x.shape[-1]))


def mean_of_sizes(x, weight, *, eps):
    """The mean of |x| in place of the root of that of x²."""
    return x / (np.mean(np.abs(x), axis=-1, keepdims=True) + np.float32(eps)) * weight


def in_place(x, weight, *, eps):
    """It is right, and overwrites what it was given."""
    x[:] = plain_norm(x, weight, eps=eps)
    return x


# %% [markdown]
# Each is judged by `validate`, and by the conventions that other projects test by, which a report counts along.
# (`ops/README.md` has such a table of many more bugs.)

# %%
kernels = (plain_norm, eps_outside, squares_in_half, one_less, mean_of_sizes, in_place)
with np.errstate(all="ignore"):
    reports = {f.__name__: ops.validate("rms_norm", f, arrays="numpy", shrink=False) for f in kernels}
judges = ["validate", *reports["plain_norm"].conventions]
verdicts = np.array([
    [not one.ok, *(one.conventions.get(name, {"failed": 0})["failed"] > 0 for name in judges[1:])]
    for one in reports.values()
])  # fmt: skip


def draw_verdicts(figure):
    axes = figure.subplots()
    wrong = np.arange(len(kernels))[:, None] > 0  # all but the first have a bug
    axes.imshow(verdicts == wrong, cmap="PuOr", vmin=-0.8, vmax=1.8, aspect="auto")
    for row, column in np.ndindex(verdicts.shape):
        word = "caught" if verdicts[row, column] else "missed" if row else "passes"
        axes.text(column, row, word, ha="center", va="center", weight="bold" if word == "missed" else "normal")
    axes.set_xticks(range(len(judges)), judges, fontsize=9)
    axes.set_yticks(range(len(kernels)), [f"{name}{', right' if name == 'plain_norm' else ''}" for name in reports])
    axes.set(xlabel="judged by", ylabel="kernel")


picture("16_verdicts", draw_verdicts, width=10, height=3)

# %%
for name, one in reports.items():
    print(f"{name}: {one.verdict}", *(f"({failure.fault})" for failure in one.failures[:1]))
assert [one.ok for one in reports.values()] == [True, False, False, False, False, False]
assert verdicts[1:, 0].all()
assert not verdicts[1:, 1:].all()  # the conventions miss some

# %% [markdown] exercise
# ## Exercises
#
# **1.** Mend `flash`. It is marked by the judge.


# %% exercise
def mended(q, k, v, *, causal=True, scale=None):
    """q [b t h k], k [b s g k], v [b s g j], arrays of NumPy -> y [b t h j], keys in blocks of 16."""
    raise NotImplementedError


def mark_mended(answer):
    for trial in (
        "accuracy; square causal; seed 0",
        "accuracy; grouped queries, narrow values; seed 1",
        "accuracy; not causal, scale; seed 0",
        "exact; decode one query; seed 0",
        "accuracy; decode one query; one-hot; seed 0",
    ):
        report = ops.validate("attention", answer, arrays="numpy", only=trial)
        assert report.ran, f"{trial}: not covered; are causal and scale among the arguments?"
        assert report.ok, f"{trial}: {report.failures[0].fault}"


# %% [markdown] exercise
# **2.** Be the adversary. Write an RMSNorm with a bug that `allclose(1e-2)` never notices on ordinary inputs, and
# the judge does. (Not one of those above.)


# %% exercise
def sneaky(x, weight, *, eps):
    """x [t d], weight [d] -> nearly x / sqrt(mean(x²) + eps) * weight."""
    raise NotImplementedError


def mark_sneaky(answer):
    report = ops.validate("rms_norm", answer, arrays="numpy", shrink=False)
    raised = [one.fault for one in report.failures if one.fault.startswith("raised")]
    assert not raised, f"a kernel that is sneaky does not stop: {raised[0]}" if raised else ""
    failed = report.conventions["allclose(1e-2)"]["failed"]
    expect(failed, 0, "the number of ordinary inputs on which allclose(1e-2) notices it")
    assert not report.ok, "the judge found nothing wrong with it, so there is no bug"
