# %% [markdown]
# # 13. FP8 and INT4: codes, scales, outliers
#
# How a weight is kept in eight bits or four, what that costs a model, and which inputs make it fail.
#
# Lesson 5 found that decoding waits for the weights to be read. So fewer bits a weight mean more tokens a second,
# and a larger model in the same memory. A quantised matrix consists of *codes*, small numbers in few bits, and
# *scales* that say how much a code is worth. Here you make both by hand, take apart what real files and kernels
# do, and then look for what the rounding breaks.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import ops, texts
from minillm.evaluate import quality
from minillm.lessons import expect, picture
from minillm.quant import is_weight
from minillm.quant.quantised import quantised
from minillm.quant.recipes import recipe_named
from minillm.quant.rules import read_rules
from minillm.span import Span

lm = minillm.load("tiny-transformer")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A float of eight bits
#
# A float has a sign, an exponent and a mantissa: `± 1.mantissa · 2^(exponent - bias)`. The format that weights are
# kept in, e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433), has four bits of exponent, three of mantissa, and a
# bias of 7. With exponent 0 there is no leading 1; such numbers are called subnormal. The code with all bits set
# is NaN, and there is no infinity (the `fn`). 256 codes fit on a page, so we compute what all of them mean.


# %%
def meaning(code: int) -> float:
    """The number that a code of e4m3fn stands for."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return np.nan
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


table = np.array([meaning(code) for code in range(256)])
print("from 1 to 2:", table[(table >= 1) & (table <= 2)], "- from 256 on:", table[table >= 256])
assert np.array_equal(table, ops.decode_float_ref(np.arange(256), "e4m3fn"), equal_nan=True)
assert np.array_equal(table, ops.decode_float(jnp.arange(256), "e4m3fn"), equal_nan=True)

# %% [markdown]
# To round is to take the nearest of them; between two equally near ones, that with the even code. From one power
# of two to the next there are eight steps. Halfway through the first of them, at 1.0625 between 1 and 1.125, the
# error is 1/17 of the number: the most there is, for large and for small ones, as long as they are not subnormal.
# The largest number is 448. To use the range, a row is divided by a scale that makes its largest number 448.


# %%
def fp8_codes(x: np.ndarray) -> np.ndarray:
    """Codes of e4m3fn [...] for numbers of at most 448: the nearest, ties to the even code."""
    between = (table[:126] + table[1:127]) / 2  # where one code ends and the next begins
    codes = np.searchsorted(between, np.abs(x))  # on the border itself, the lower one
    codes = codes + ((codes % 2 == 1) & (np.abs(x) == between[np.minimum(codes, 125)]))
    return (codes + 128 * np.signbit(x)).astype(np.uint8)


x = rng.normal(size=1000).astype(np.float32)
error = np.abs(table[fp8_codes(x)] - x) / np.abs(x)
print(f"largest relative error {error[np.abs(x) > 2**-6].max():.4f}, 1/17 is {1 / 17:.4f}")
assert np.array_equal(fp8_codes(x), jax.jit(lambda x: ops.encode_float(x, "e4m3fn"))(x))
assert error[np.abs(x) > 2**-6].max() <= 1 / 17

# %% [markdown]
# ## An integer and a scale
#
# The other way has no exponents: `x = s q`, with whole q from -127 to 127 (int8) or -7 to 7 (int4). The scale of a
# row is its largest magnitude divided by the largest q. All steps are equal, so the error is at most s / 2, for
# small numbers as for large ones. The decoded row lies on a grid.


# %%
def int_rounded(w: np.ndarray, bits: int, group: int | None = None) -> np.ndarray:
    """w [rows, columns] as integers keep it, a scale for each `group` of a row (None: for all of it)."""
    groups = w.reshape(len(w), -1, group or w.shape[1])
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(groups).max(axis=2, keepdims=True) * np.float32(1 / largest)
    return (np.rint(groups / np.where(scale > 0, scale, 1)) * scale).reshape(w.shape)


w = rng.normal(size=(64, 128)).astype(np.float32)
for bits in (8, 4):
    off = np.abs(int_rounded(w, bits) - w)
    step = np.abs(w).max() / (2 ** (bits - 1) - 1)  # of the row with the largest number
    print(f"int{bits}: largest error {off.max():.4f}, mean {off.mean():.4f}; half a step is {step / 2:.4f}")
    assert 0.9 * step / 2 < off.max() <= 1.0001 * step / 2
    by_ops = jax.jit(lambda w, name=f"int{bits}": ops.decode_ints(ops.encode_ints(w, name)))(w)
    assert np.allclose(int_rounded(w, bits), by_ops, atol=1e-6)

# %% [markdown]
# ## One number spoils its neighbours
#
# A scale must reach the largest number. If one number of a row is far larger than the others, an outlier, steps
# become so wide that the others round to 0. There are two remedies. Exponents: a float's error goes with each
# number's own size. And smaller groups: with a scale for each 32 numbers, an outlier can only spoil 31 others, and
# a scale of 16 bits costs them half a bit each. int4-g32 below is int4 in groups of 32.
#
# We make one number of 128 grow, and measure the error of the *others*: its root mean square, divided by theirs.


# %%
def fp8_rounded(w: np.ndarray) -> np.ndarray:
    """w [rows, columns] in e4m3fn, a scale a row."""
    scale = np.abs(w).max(axis=1, keepdims=True) * np.float32(1 / 448)
    return table[fp8_codes(w / scale)].astype(np.float32) * scale


ways = {
    "int8": lambda w: int_rounded(w, 8),
    "int4": lambda w: int_rounded(w, 4),
    "int4-g32": lambda w: int_rounded(w, 4, 32),
    "fp8": fp8_rounded,
}
sizes = 2.0 ** np.arange(1, 19)
errors = {name: [] for name in ways}
for size in sizes:
    w[:, 5] = size
    for name, way in ways.items():
        off = np.delete(way(w) - w, 5, axis=1)
        errors[name].append(np.sqrt(np.mean(off**2) / np.mean(np.delete(w, 5, axis=1) ** 2)))


def draw_outliers(figure):
    axes = figure.subplots()
    for name, line in errors.items():
        axes.plot(sizes, line, "o-", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.axhline(1, color="grey", linewidth=0.7)
    axes.text(2, 1.15, "nothing left but zeros", fontsize=8, color="grey")
    axes.set(
        xlabel="size of one number of 128 (the others are around 1)", ylabel="error of the others", ylim=(None, 2)
    )
    axes.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.35))


picture("13_outliers", draw_outliers)

# %% [markdown]
# Integers climb until nothing is left. With groups the error stops at a half, where the squares are a quarter: one
# group of four is lost, the others never notice. Fp8 does not care until, at the right end, the others become
# subnormal. But see the left end: as long as there is no outlier, int8 is the better one of the two with eight
# bits. Its codes are not spent on sizes that do not occur.

# %%
coded = ops.encode_ints(jnp.asarray(w), "int8")
print(f"of the int8 codes, {np.mean(np.asarray(coded.codes) == 0):.0%} are 0 beside a {w[0, 5]:.0f}")
assert errors["int8"][0] < errors["fp8"][0] < errors["fp8"][-1] < errors["int8"][-1]
assert abs(errors["int4-g32"][-1] - 0.5) < 0.02
assert np.array_equal(np.asarray(coded.codes)[0] == 0, int_rounded(w, 8)[0] == 0)

# %% [markdown]
# ## What stands in a file
#
# Llama.cpp's Q4_0 keeps 32 numbers in 18 bytes: a scale in float16, then 16 bytes with two codes each, the first
# 16 numbers in the low halves and the others in the high halves. A code c means `s (c - 8)`. We take the bytes of
# a block apart.

# %%
block = rng.normal(size=(1, 32)).astype(np.float32)
raw = np.asarray(ops.encode_gguf(block, "Q4_0")).reshape(-1)  # uint8
scale = raw[:2].view(np.float16)[0].astype(np.float32)
codes = np.concatenate([raw[2:] & 15, raw[2:] >> 4]).astype(np.int32)
print(f"{len(raw)} bytes; scale {scale:.4f}; codes {codes}")
assert np.array_equal(scale * (codes - 8), ops.decode_gguf(raw.reshape(1, -1), "Q4_0")[0])

# %% [markdown]
# ## Multiplying codes
#
# Weights in few bits save reading. If the activations, what the weights are multiplied with, are integers as well
# (W8A8: both in eight bits), the product itself is one of integers, for which processors have fast instructions:
# sum codes exactly in 32 bits, then multiply once with the scale of the token and the scale of the output, `y[t, f]
# = s_t s_f Σ q_t q_f`. This is why a scale must not vary along what is summed: it could not be taken out of the
# sum.


# %%
def codes_and_scales(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [rows, columns] and a scale for each row."""
    scale = np.abs(x).max(axis=1) * np.float32(1 / 127)
    return np.rint(x / scale[:, None]).astype(np.int8), scale


x, w = rng.normal(size=(5, 256)).astype(np.float32), rng.normal(size=(64, 256)).astype(np.float32)
(x_codes, x_scale), (w_codes, w_scale) = codes_and_scales(x), codes_and_scales(w)
y = (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) * x_scale[:, None] * w_scale
print(f"error of the product: {np.sqrt(np.mean((y - x @ w.T) ** 2) / np.mean((x @ w.T) ** 2)):.2%}")
assert np.allclose(y, ops.int8_matmul(*map(jnp.asarray, (x_codes, w_codes, x_scale, w_scale))), rtol=1e-5)

# %% [markdown]
# ## In the model
#
# Now all matrices of `tiny-transformer`. How much worse is it? We compare what it predicts with what the original
# predicts: the Kullback-Leibler divergence (KLD) of their distributions, 0 if they agree at every token. The
# perplexity alone would be a blunt tool, as a wrong model may well be lucky with a text.
#
# To see what a format does, its numbers can be decoded again and put into the plain model. That is the same
# function, only not smaller. Besides the formats from above there are int2-g32; mxfp4, floats of four bits with a
# power of two as scale for each 32; and llama.cpp's Q4_K, groups of 32 whose scales are codes themselves, of six
# bits.


# %%
def with_matrices(f):
    """The model with f(matrix [out, in]) in place of each matrix; a weight's `array` has that order."""

    def changed(part):
        return part.replace(array=jnp.asarray(f(np.asarray(part.array)))) if is_weight(part) else part

    return jax.tree.map(changed, lm.model, is_leaf=is_weight)


held_out = [document.text for document in texts.held_out("recipes")[:2]]
ways |= {
    "int2-g32": lambda w: int_rounded(w, 2, 32),
    "mxfp4": lambda w: ops.decode_blocks_ref(ops.encode_blocks_ref(w, "mxfp4"), "mxfp4").astype(np.float32),
    "q4_k": lambda w: ops.decode_gguf(ops.encode_gguf(w, "Q4_K"), "Q4_K"),
}
example, bits, kld = np.asarray(lm.model.blocks[1].down.array), {}, {}
for name in ("int8", "fp8", "int4", "int4-g32", "mxfp4", "q4_k", "int2-g32"):
    figures = quality(with_matrices(ways[name]), lm.tokenizer, held_out, 256, reference=lm.model)
    bits[name] = 8 * sum(part.nbytes for part in recipe_named(name).storage.encode(example)) / example.size
    kld[name] = figures["kld_mean"].value
    same = figures["same_top"].value
    print(f"{name:9} {bits[name]:.2f} bits, KLD {kld[name]:.5f}, first choice the same at {same:.1%} of the tokens")


def draw_kld(figure):
    axes = figure.subplots()
    axes.plot([*bits.values()], [*kld.values()], "o")
    for name in kld:
        axes.annotate(name, (bits[name], kld[name]), xytext=(6, 3), textcoords="offset points", fontsize=9)
    axes.set(xlabel="bits a weight, scales included", ylabel="KLD from the original (nats a token)")
    axes.set(xlim=(2, 9), yscale="log", ylim=(None, 20))


picture("13_kld", draw_kld)

# %% [markdown]
# Codes of two bits destroy this model. With four, a scale for 32 numbers costs a bit a weight here, being float32,
# and does about half the damage that one scale for a whole row does; Q4_K is smaller and better yet. What
# `lm.quantize` makes of the model must be the numbers that we rounded by hand.

# %%
small, changes = lm.quantize("int4-g32")
ours, theirs = with_matrices(lambda w: int_rounded(w, 4, 32)).blocks[0], small.model.blocks[0]
print("a change that lm.quantize tells of:", changes[0])
assert np.allclose(ours.qkv.dense(), jax.jit(lambda weight: weight.dense())(theirs.qkv), atol=1e-6)
assert kld["int8"] < kld["fp8"] < kld["q4_k"] < kld["int4-g32"] < kld["int4"] < 1 < kld["int2-g32"]
assert bits["q4_k"] < bits["int4-g32"]

# %% [markdown]
# ## What breaks
#
# Weights of trained models are well behaved. Activations are not: in large models some channels are a hundred
# times louder than the others, at every token (Dettmers et al. 2022, arXiv:2208.07339). `tiny-transformer` is too
# small to have any, but we can give it one that changes nothing: multiply a channel by 64 where the norm ends, and
# divide that row of the matrix after it by 64. In float32 it stays the same model. With the activations of a token
# in int8, the other 255 channels now share what steps the loud one leaves them. We try several sizes.


# %%
def folded(model, factors_of):
    """The same function: after each norm x times factors [d], the matrix divided by them; factors_of(block)."""

    def changed(block):
        name = "qkv" if hasattr(block, "qkv") else "up"
        factors, matrix = factors_of(block).astype(np.float32), getattr(block, name)
        norm = block.norm.replace(weight=jnp.asarray(np.asarray(block.norm.weight) * factors))
        divided = jnp.asarray(np.asarray(matrix.array) / factors)  # [out, in]
        return block.replace(norm=norm, **{name: matrix.replace(array=divided)})

    return model.replace(blocks=tuple(map(changed, model.blocks)))


def loudness(size: float) -> np.ndarray:
    """Factors [d]: size for the channel 7, 1 for the others."""
    return np.where(np.arange(lm.config.d) == 7, size, 1).astype(np.float32)


def w8a8_kld(model) -> float:
    """How far a model in W8A8 is from the original."""
    coded, _ = quantised(model, read_rules("w8a8"))
    return quality(coded, lm.tokenizer, held_out, 256, reference=lm.model)["kld_mean"].value


loud = {size: folded(lm.model, lambda _, size=size: loudness(size)) for size in (1, 16, 64, 256)}
broken = {size: w8a8_kld(model) for size, model in loud.items()}
print("KLD in W8A8, by loudness of one channel:", {size: round(one, 4) for size, one in broken.items()})

# %% [markdown]
# The remedy goes the same way back. SmoothQuant (Xiao et al. 2022, arXiv:2211.10438, eq. 4) divides each channel
# by `sqrt(largest |x| / largest |w|)` of that channel, and multiplies its row of the weights by it: what is hard to
# round is shared between the two. The largest |x| is measured on some text; here on a recipe other than those that
# the models are compared on.


# %%
def largest_inputs(model) -> dict[int, np.ndarray]:
    """For each block, the largest magnitude [d] of each channel after the norm, over a recipe."""
    ids = lm.tokenizer.encode(texts.held_out("recipes")[5].text)
    at, largest = Span.chain(jnp.array([0]), jnp.array([len(ids)]), len(ids)), {}
    step = jax.jit(lambda block, x: (jnp.abs(block.norm(x)).max(axis=(0, 1)), block(x, None, at)[0]))
    x = model.embed.rows(jnp.asarray([ids]))
    for block in model.blocks:
        largest[id(block)], x = step(block, x)
    return largest


def smooth(model):
    """The same model, loud channels made quieter."""
    largest = largest_inputs(model)

    def factors_of(block):
        matrix = np.asarray((block.qkv if hasattr(block, "qkv") else block.up).array)
        return np.sqrt(np.abs(matrix).max(axis=0) / np.asarray(largest[id(block)]))

    return folded(model, factors_of)


smoothed = {size: w8a8_kld(smooth(model)) for size, model in loud.items() if size in (1, 256)}


def draw_loudness(figure):
    axes = figure.subplots()
    axes.plot([*broken], [*broken.values()], "o-", label="int8 weights and activations")
    axes.plot([*smoothed], [*smoothed.values()], "o--", label="the same after SmoothQuant")
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="factor of one channel of 256", ylabel="KLD from the original (nats a token)")
    axes.legend()


picture("13_loudness", draw_loudness)

# %%
exact = quality(loud[256], lm.tokenizer, held_out, 256, reference=lm.model)["kld_mean"].value
print(f"the loudest model in float32: {exact:.1e}; in W8A8: {broken[256]:.2f}; smoothed: {smoothed[256]:.4f}")
assert exact < 1e-6
assert broken[256] > 100 * broken[1]
assert smoothed[256] < broken[1] * 3

# %% [markdown] exercise
# ## Exercises
#
# **1.** Symmetric codes waste half their range on numbers that are all positive. Affine ones, `x = s (q - z)` with
# q from 0 to 15, do not. Let `low` be the least number or 0, whichever is less, and `high` the largest or 0. Then
# `s = (high - low) / 15` and z is `-low / s`, rounded.


# %% exercise
def affine_int4(x):
    """x [rows, columns] -> codes uint8, scales [rows, 1], zero points uint8 [rows, 1]."""
    raise NotImplementedError


def mark_affine_int4(answer):
    rng = np.random.default_rng(1)
    for x in (rng.normal(size=(3, 32)), rng.uniform(1, 3, size=(2, 16)), -rng.uniform(1, 3, size=(2, 16))):
        truth = ops.encode_ints_ref(x.astype(np.float32), "int4", affine=True)
        codes, scales, zeros = (np.asarray(part) for part in answer(x.astype(np.float32)))
        where = f"for numbers from {x.min():.1f} to {x.max():.1f}"
        expect(scales.astype(np.float64), truth.scales.astype(np.float64), f"the scales {where}")
        expect(zeros, truth.zeros, f"the zero points {where}")
        expect(codes, truth.codes, f"the codes {where}")


# %% [markdown] exercise
# **2.** Memory has no half bytes. Pack codes of four bits two to a byte, the first of each pair in the low half.
# (Q4_0 pairs differently, see above.) Negative codes keep their lowest four bits.


# %% exercise
def packed(codes):
    """codes int8 [rows, columns] from -8 to 7, columns even -> uint8 [rows, columns / 2]."""
    raise NotImplementedError


def mark_packed(answer):
    expect(np.asarray(answer(np.array([[1, 2]], np.int8))), np.array([[0x21]], np.uint8), "the byte of 1 and 2")
    expect(np.asarray(answer(np.array([[-1, 0]], np.int8))), np.array([[0x0F]], np.uint8), "the byte of -1 and 0")
    codes = np.random.default_rng(2).integers(-8, 8, size=(4, 10)).astype(np.int8)
    expect(np.asarray(answer(codes)), ops.pack_ref(codes.view(np.uint8) & 15, 4), "the bytes of ten codes a row")
