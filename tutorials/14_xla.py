# %% [markdown]
# # 14. XLA: read the HLO, fusion, recompilation
#
# What a compiler makes of your array program: how to read it, what it saves, and what makes it start over.
#
# In most lessons so far `jax.jit` stood somewhere and things became fast. Here we look inside. JAX turns a Python
# function into a list of operations on arrays. XLA, the compiler, turns that into a list of fewer and larger
# operations, in a language called HLO, and those into machine code. Each stage can be printed, and whoever can read
# the prints need not guess why a program is slow.

# %%
import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm.cache import StateSpec
from minillm.generate import bucket
from minillm.lessons import expect, picture
from minillm.ops import blocked_attention, naive_attention, rms_norm, rms_norm_ref, swiglu
from minillm.span import Span
from minillm.xla import Programs

rng = np.random.default_rng(0)

# %% [markdown]
# ## A function is traced, not run
#
# When a function under `jax.jit` is called, Python runs it *once*, with placeholders that have a shape and a dtype
# but no numbers. What is done to them is written down: this is the trace. The next call with the same shapes does
# not come by here again. We let RMSNorm (lesson 4) leave a note each time that Python runs it. `if x > 0:` could
# not work in it, as there is no number to look at.

# %%
traced = []  # notes


def norm_by_hand(x, weight):
    """RMSNorm: x [..., d] divided by its root mean square, times weight [d]."""
    traced.append(f"x is {x.dtype} {list(x.shape)}")
    square = x * x
    mean = square.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt(mean + 1e-6) * weight


x, weight = rng.normal(size=(4, 256)).astype(np.float32), rng.normal(size=256).astype(np.float32)
norm = jax.jit(norm_by_hand)
for _ in range(3):
    y = norm(x, weight)
print("called three times; the notes:", traced)
assert traced == ["x is float32 [4, 256]"]
print(jax.make_jaxpr(norm_by_hand)(x, weight))
assert np.allclose(y, rms_norm_ref(x, weight, eps=1e-6), atol=1e-5)

# %% [markdown]
# What was printed is the "jaxpr": a line an operation, each with the shape of its result. `mul`, `reduce_sum`,
# `div` and so on are all that is left of the Python.
#
# ## What XLA makes of it
#
# `lower` gives this program to XLA, `compile` has it optimised. The result is HLO: again a line an operation, and
# again every shape is there. A line reads `name = shape opcode(arguments), attributes`. The shape has the order of
# the axes in memory behind it, `{1,0}` being rows one after the other. `ENTRY` begins the main program; before it
# stand the bodies that it calls. Such text is easily taken apart: a regular expression finds the lines of the main
# program, and for each we keep four things.


# %%
LINE = re.compile(r"^  (?:ROOT )?%(\S+) = (\w+)\[([\d,]*)\]\S* ([\w-]+)\((.*?)\)", re.M)


class Operation(NamedTuple):
    """A line of the main program: its name, what it does, the bytes of its result, and whose results it reads."""

    name: str
    opcode: str
    nbytes: int
    reads: list[str]


def operations(compiled) -> list[Operation]:
    """The main program, line by line; parameters and constants are lines, too."""
    text, found = compiled.as_text(), []
    for name, dtype, shape, opcode, arguments in LINE.findall(text[text.index("\nENTRY") :]):
        each = 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
        count = math.prod(int(n) for n in shape.split(",") if n)
        found.append(Operation(name, opcode, each * count, re.findall(r"%([^\s,)]+)", arguments)))
    return found


compiled = norm.lower(x, weight).compile()
text = compiled.as_text()
print(re.sub(r", (metadata|backend_config)=.*", "", text[text.index("\nENTRY") :].strip()))
inside = [one for one in operations(compiled) if one.opcode not in ("parameter", "constant")]
written = jax.make_jaxpr(norm_by_hand)(x, weight).eqns
print(f"written: {len(written)} operations; compiled: {len(inside)}, {Counter(one.opcode for one in inside)}")
assert len(inside) < len(written)
assert inside[-1].nbytes == y.nbytes
assert np.allclose(compiled(x, weight), rms_norm(x, weight, 1e-6), atol=1e-5)

# %% [markdown]
# ## Fusion
#
# The many operations have become a few `fusion`s: loops that do several things to a number while it is in a
# register. Their names tell what; the division by a root, for one, has become a product with `rsqrt`. Without
# fusion each operation reads its input from memory and writes its result there, and waiting for memory is most of
# the time (lesson 5). NumPy works so. We count the bytes for the middle of a feed-forward layer, `silu(gate) · up`,
# first by hand, operation by operation, then as XLA counts them for its own program.

# %%
gate, up = rng.normal(size=(2, 64, 4096)).astype(np.float32)
one_array = gate.nbytes
by_numpy = {  # operation: arrays read and written
    "-gate": 2,
    "exp": 2,
    "1 +": 2,
    "gate /": 3,
    "· up": 3,
}
fused = jax.jit(lambda gate, up: gate / (1 + jnp.exp(-gate)) * up)
fused_bytes = fused.lower(gate, up).compile().cost_analysis()["bytes accessed"]
print(f"NumPy reads and writes {sum(by_numpy.values())} arrays, XLA {fused_bytes / one_array:.2f}")
assert sum(by_numpy.values()) == 12
assert fused_bytes == 3 * one_array  # gate and up are read, the result is written
assert np.allclose(fused(gate, up), swiglu(gate, up), atol=1e-5)

# %% [markdown]
# Fusion has limits. A product of matrices wants a program of its own, so what goes into it and comes out of it
# passes through memory. Attention as two products with a softmax between them (lesson 2) therefore writes all
# scores `[h, t, s]` down. FlashAttention (lesson 10) is the same sum in another order, block by block, which no
# compiler finds by itself. How much memory a program wants besides arguments and results can be asked before it
# runs.

# %%
qkv = [jax.ShapeDtypeStruct((1, 2048, 4, 32), jnp.float32)] * 3  # shapes without numbers are enough to compile
scores = 4 * 2048 * 2048 * 4  # bytes of one array of scores, four heads
room = {
    f.__name__: jax.jit(f).lower(*qkv).compile().memory_analysis().temp_size_in_bytes
    for f in (naive_attention, blocked_attention)
}
for name, nbytes in room.items():
    print(f"{name:>17}: {nbytes / 1e6:.1f} MB, {nbytes / scores:.2f} times all scores")
assert room["naive_attention"] >= scores > 4 * room["blocked_attention"]

# %% [markdown]
# ## A shape is a program
#
# A compiled program knows its shapes: its loops have fixed lengths. Another shape, and everything begins anew:
# trace, lower, optimise, machine code. For small work that takes far longer than the work itself, so code that
# grows an array token by token spends its time compiling. `minillm.xla.Programs` counts what is compiled, or
# fetched from the folder in which compiled programs are kept.
#
# The usual way out is a bucket: fill up to the next size of a short list, and say in an argument, not in a shape,
# how much of it is real. `minillm.generate.bucket` says which size: here 4, 8 or 16. We compute a mean for sixteen
# lengths in both ways.

# %%
lm = minillm.load("tiny-transformer")
unembed = np.asarray(lm.model.embed.dense()).T[:, :64]


@jax.jit
def mean_score(x):
    """x [t, d] -> the mean over tokens of their scores [64]."""
    return (rms_norm(x, jnp.ones(256), 1e-6) @ unembed).mean(axis=0)


@jax.jit
def mean_score_padded(x, n):
    """The same of the first n rows: n is a number in the program's input, so any n will do."""
    score = rms_norm(x, jnp.ones(256), 1e-6) @ unembed
    return jnp.where(jnp.arange(len(x))[:, None] < n, score, 0).sum(axis=0) / n.astype(jnp.float32)


texts_of = {t: rng.normal(size=(t, 256)).astype(np.float32) for t in range(1, 17)}
with Programs() as by_length:
    exact = [mean_score(x) for x in texts_of.values()]
with Programs() as by_bucket:
    padded = [
        mean_score_padded(np.pad(x, ((0, bucket(t, 4) - t), (0, 0))), np.int32(t)) for t, x in texts_of.items()
    ]
print(f"lengths 1 to 16: {by_length.count} programs; in buckets 4, 8 and 16: {by_bucket.count}")
assert (by_length.count, by_bucket.count) == (16, 3)
assert np.allclose(exact, padded, atol=1e-4)

# %% [markdown]
# `lm.generate` does the same with prompts, and with the room for keys and values (lesson 5). So texts of many
# lengths are continued by a handful of programs. Other things than shapes that make a new program: another dtype,
# a Python number among the `static_argnames`, a new function object (a `lambda` made inside a loop is a new one
# each time), another device.

# %%
counts = {}
for n in (40, 33, 45, 58):
    with Programs() as programs:
        lm.generate([7] * n, max_tokens=4, seed=1)
    counts[n] = programs.count
print("programs compiled for a prompt of so many tokens:", counts)
first, *others = counts.values()
assert first > 0
assert not any(others)

# %% [markdown]
# ## A decoding step, read
#
# Now the program that matters most: one token through the whole model, as in lesson 5. `donate_argnames` allows XLA
# to write the new cache over the old one; else each token would copy all of it. Which inputs are reused that way
# stands in the first line of the HLO, `input_output_alias`, and `memory_analysis` counts their bytes.


# %%
def advance(model, state, tokens, start):
    """tokens i32 [b, 1] -> logits [b, 1, v], and the memory after."""
    at = Span.chain(start, jnp.ones_like(start), 1)
    logits, pending = model(tokens, state, at)
    return logits, model.commit(pending, at, jnp.zeros_like(tokens), at.n)


spec = StateSpec(slots=1, max_len=256)
arguments = lm.model, lm.model.init_state(spec), jnp.ones((1, 1), jnp.int32), jnp.array([3])
compiled = jax.jit(advance, donate_argnames="state").lower(*arguments).compile()
step = operations(compiled)
inside = [one for one in step if one.opcode not in ("parameter", "constant")]
in_place = compiled.memory_analysis().alias_size_in_bytes
products = len(re.findall(r" dot\(", compiled.as_text()))
print(f"{len(inside)} operations for {len(lm.model.blocks) // 2} layers; {products} products of matrices")
print(f"{in_place / 1e6:.2f} MB are written in place; the cache has {lm.model.state_bytes(spec) / 1e6:.2f} MB")
assert in_place >= lm.model.state_bytes(spec)
assert products >= 6 * 6 + 1  # of each of six layers qkv, scores, values, out, up, down; and the logits

# %% [markdown]
# Here it is from its first operation to its last, with what each of them reads and writes, on a logarithmic scale.
# There are six layers; find where one ends. (What is written in place, and what only a row is read of, is drawn
# whole.)

# %%
nbytes = {one.name: one.nbytes for one in step}
weights = {one.name for one in step if one.opcode == "parameter" and one.name.startswith("model")}
cache = {one.name for one in step if one.opcode == "parameter" and one.name.startswith("state")}
traffic = np.array([one.nbytes + sum(nbytes.get(name, 0) for name in one.reads) for one in inside])
reads_matrix = np.array([any(name in weights and nbytes[name] > 1e5 for name in one.reads) for one in inside])
reads_cache = np.array([any(name in cache for name in one.reads) for one in inside])


def draw_step(figure):
    axes = figure.subplots()
    for which, name, colour in (
        (~reads_matrix & ~reads_cache, "all others", "#999999"),
        (reads_cache, "reads the cache", "C1"),
        (reads_matrix, "reads a weight matrix", "C0"),
    ):
        axes.bar(np.flatnonzero(which), traffic[which], width=0.8, color=colour, label=name)
    axes.set_yscale("log")
    axes.set(
        xlabel="operations of a decoding step, in order", ylabel="bytes read and written", xlim=(-1, len(inside))
    )
    axes.legend(loc="upper center", ncols=3, fontsize=9, bbox_to_anchor=(0.5, 1.14))


picture("14_step", draw_step, width=10)

# %% [markdown]
# The few blue ones carry most of the bytes: the matrices, read once a token. The higher grey ones after the orange
# are attention over the room of the cache. All others carry next to nothing, but there are many, and each costs
# some microseconds only for being started. On a model as small as this, that is a good part of a step; so the first
# question to a slow program is how many operations it has.

# %%
share = traffic[reads_matrix].sum() / traffic.sum()
print(f"{reads_matrix.sum()} of {len(inside)} operations read a matrix, and make {share:.0%} of the traffic")
matrices = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model) if leaf.ndim == 2)
assert traffic[reads_matrix].sum() >= matrices  # each is read at least once
assert share > 0.5

# %% [markdown] exercise
# ## Exercises
#
# **1.** Which lengths should programs be compiled for? Find the shortest list of sizes such that every text of 1 to
# `longest` tokens fits into one that is at most `waste` times as long as the text. (Powers of two are close, but
# not the shortest.)


# %% exercise
def bucket_sizes(longest: int, waste: float) -> list[int]:
    """Sizes in ascending order, the last of them `longest`."""
    raise NotImplementedError


def mark_bucket_sizes(answer):
    for longest, waste, fewest in ((8, 2.0, 3), (512, 2.0, 9), (1000, 1.5, 15), (5, 1.0, 5)):
        sizes, what = [*answer(longest, waste)], f"bucket_sizes({longest}, {waste})"
        expect(sizes, sorted(sizes), what)
        for n in range(1, longest + 1):
            fits = next((size for size in sizes if size >= n), None)
            assert fits is not None, f"{what} has no size for {n} tokens"
            assert fits <= waste * n, f"{what} puts {n} tokens into {fits}, more than {waste} times as many"
        expect(len(sizes), fewest, f"the number of sizes of {what}")


# %% [markdown] exercise
# **2.** The last real row of each text: `x[i, n[i] - 1]`. Under `jax.jit` n has no value while the function is
# traced, so no slice can depend on it. Write it so that it compiles once for all n.


# %% exercise
def last_rows(x, n):
    """x [b, t, d], n i32 [b] from 1 to t -> [b, d]."""
    raise NotImplementedError


def mark_last_rows(answer):
    x, compiled = np.random.default_rng(2).normal(size=(3, 6, 4)).astype(np.float32), jax.jit(answer)
    with Programs() as programs:
        for n in ([6, 6, 6], [1, 3, 5], [2, 2, 1]):
            rows = compiled(x, np.array(n, np.int32))
            expect(np.asarray(rows), x[np.arange(3), np.array(n) - 1], f"last_rows with n = {n}")
    expect(programs.count, 1, "the number of programs compiled")


# %% [markdown] exercise
# **3.** Read a program: how many bytes do its operations write? Sum the results of all lines of the main program
# but for parameters, constants and `bitcast`s, which only rename what is there. Everything is f32.


# %% exercise
def written_bytes(text: str) -> int:
    """The bytes that an HLO program writes."""
    raise NotImplementedError


HLO = """
%fused (param_0: f32[8,16]) -> f32[8,16] {
  %param_0 = f32[8,16]{1,0} parameter(0)
  ROOT %exp.0 = f32[8,16]{1,0} exponential(%param_0)
}

ENTRY %main.1 (x.1: f32[8,16], w.1: f32[16,32]) -> f32[256] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  %w.1 = f32[16,32]{1,0} parameter(1)
  %constant.1 = f32[] constant(0)
  %exp_fusion = f32[8,16]{1,0} fusion(%x.1), kind=kLoop, calls=%fused
  %dot.1 = f32[8,32]{1,0} dot(%exp_fusion, %w.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %bitcast.1 = f32[256]{0} bitcast(%dot.1)
}
"""


def mark_written_bytes(answer):
    expect(answer(HLO), 4 * (8 * 16 + 8 * 32), "the bytes of a fusion and a product")
    more = HLO.replace(
        "  ROOT %bitcast.1", "  %sum = f32[] fusion(%dot.1), kind=kLoop, calls=%f\n  ROOT %bitcast.1"
    )
    expect(answer(more), 4 * (8 * 16 + 8 * 32 + 1), "the bytes with one more result, a number without axes,")
