# %% [markdown]
# # 15. Many devices on eight pretend ones
#
# How one model is spread over several processors, and what they must then tell each other.
#
# A model that does not fit into one accelerator is cut into pieces, and how it is cut decides how long they wait
# for each other. None of this needs real accelerators to be understood: JAX can pretend that this computer has
# eight devices. Each has memory of its own, and what one has computed another can only get by a *collective*, an
# operation in which all take part. So we see exactly what is sent, though not how long it takes.

# %%
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import minillm
from minillm.compile import topology
from minillm.compile.devices import DEVICES
from minillm.lessons import expect, picture
from minillm.lm import score
from minillm.ops import naive_attention, swiglu
from minillm.span import Span

rng = np.random.default_rng(0)

# %% [markdown]
# ## Eight devices, one array
#
# How many devices there are must be said before JAX looks for them for the first time, so this lesson wants a
# fresh process (`minillm tutorial 15` is one; restart the kernel of a notebook). Elsewhere you may meet the same
# as `XLA_FLAGS=--xla_force_host_platform_device_count=8`.
#
# Devices are arranged in a mesh, here of 2 x 4, whose axes have names. How an array lies on it is said by a
# `PartitionSpec` with an entry for each of the array's axes: the name of the mesh axis that cuts it, or None. Along
# a mesh axis that is not named all devices hold the same. `AxisType.Auto` leaves everything in between to the
# compiler. We draw where the parts of a matrix go, for four specs.

# %%
jax.config.update("jax_platforms", "cpu")  # whatever else this computer has
jax.config.update("jax_num_cpu_devices", 8)
lm = minillm.load("tiny-transformer")
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
embed = lm.model.embed.dense()  # [v, d]
specs = [P("data", "model"), P(None, "model"), P("data", None), P(("data", "model"), None)]


def draw_specs(figure):
    colours = ["#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d"]
    for axes, spec in zip(figure.subplots(1, 4), specs, strict=True):
        places = NamedSharding(mesh, spec).devices_indices_map((8, 8))
        owners = {}
        for device, (rows, columns) in places.items():
            owners.setdefault((rows.indices(8)[:2], columns.indices(8)[:2]), []).append(device.id)
        for n, (((top, bottom), (left, right)), ids) in enumerate(owners.items()):
            axes.broken_barh([(left, right - left)], (top, bottom - top), facecolor=colours[n], edgecolor="white")
            axes.text((left + right) / 2, (top + bottom) / 2, ", ".join(map(str, ids)), ha="center", va="center")
        axes.set(xlim=(0, 8), ylim=(8, 0), xticks=[], yticks=[], aspect="equal", xlabel="second axis, columns")
        axes.set_title(str(spec).replace("PartitionSpec", "P"), fontsize=10)
    figure.supylabel("first axis, rows", fontsize=10)


picture("15_specs", draw_specs, width=11, height=3.2)

# %% [markdown]
# The numbers are those of the devices; where several stand, each has a copy. Is it so? We lay the model's
# embedding, a matrix of 2,048 x 256, on the mesh in these four ways, and look at what each device holds.

# %%
for spec in specs:
    spread = jax.device_put(embed, NamedSharding(mesh, spec))
    held = [part.data.nbytes for part in spread.addressable_shards]
    print(f"{spec!s:40} {spread.addressable_shards[0].data.shape}, all devices together {sum(held) / 1e6:.1f} MB")
    for part in spread.addressable_shards:
        assert np.array_equal(part.data, embed[part.index])

# %% [markdown]
# ## Data parallel
#
# The simplest way to use eight devices: each has the whole model, and an eighth of the sequences. No sequence
# depends on another, so nothing is sent. By hand it is a split and a concatenation. And for JAX it is enough to
# put the inputs in place: a compiled function takes arrays as they lie, and the compiler cuts the program
# accordingly. Every device runs the same program on its piece ("single program, multiple data", SPMD).
#
# We look for the collectives in the HLO (lesson 14), to see that there are none.

# %%
COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(f, *arguments) -> Counter:
    """How often each kind of collective stands in the compiled program."""
    found = COLLECTIVE.findall(jax.jit(f).lower(*arguments).compile().as_text())
    return Counter(kind for _, kind in found)


def placed(tree, *spec):
    """Arrays, or all arrays of a model, laid on the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P(*spec)))


tokens, n = rng.integers(3, 2048, size=(8, 32)).astype(np.int32), np.full(8, 32, np.int32)
everywhere = placed(lm.model)
rows, lengths = placed(tokens, ("data", "model")), placed(n, ("data", "model"))
logits = score(everywhere, rows, lengths)
single = np.concatenate([lm.logits(row[None]) for row in tokens])  # one device, one sequence after the other
found = collectives(score, everywhere, rows, lengths)
print(f"collectives: {dict(found)}; each device has logits {list(logits.addressable_shards[0].data.shape)}")
assert np.allclose(logits, single, atol=1e-3)
assert not found

# %% [markdown]
# ## Tensor parallel: columns, then rows
#
# Data parallelism helps neither a model that is too large nor a single sequence. So cut the matrices. There are
# two ways to cut `x @ w`. By columns of w: every device needs all of x, and gets some columns of the result. By
# rows of w: every device needs only some columns of x, and gets a matrix of full size that is not yet the result.
# It is a summand, and the devices' summands must be added up: an all-reduce.
#
# Put one after the other, the two fit (Shoeybi et al. 2019, arXiv:1909.08053): the first gives each device just
# those columns that the second wants. What stands between them in a feed-forward layer works on each number by
# itself. So a whole layer costs one all-reduce. By hand, for device i of eight, with the first MLP of the model:

# %%
ids = lm.tokenizer.encode("Recipe: Tomato Soup\n\nIngredients:\n- 200 g tomatoes\n- 100 g onion")[:16]
at = Span.chain(start=jnp.array([0]), n=jnp.array([len(ids)]), t=len(ids))
block = lm.model.blocks[1]
x = lm.model.embed.rows(jnp.asarray([ids]))
normed = np.asarray(block.norm(x))[0]  # [t, d]
gate, up = np.split(np.asarray(block.up.dense()), 2, axis=1)  # [d, f] each
down = np.asarray(block.down.dense())  # [f, d]

summands = []
for i in range(8):
    mine = slice(i * 96, (i + 1) * 96)  # of f = 768
    hidden = np.asarray(swiglu(normed @ gate[:, mine], normed @ up[:, mine]))  # [t, f / 8]
    summands.append(hidden @ down[mine])  # [t, d], a summand
total = sum(summands)  # the all-reduce

print(f"one device's summand is off by {np.abs(summands[0] - total).max():.2f}, the sum is right")
assert np.allclose(x[0] + total, block(x, None, at)[0][0], atol=1e-4)

# %% [markdown]
# `jax.shard_map` runs such a function on every device at once. Inside, arrays are the device's pieces, and
# `jax.lax.psum` is the all-reduce. Specs say how arguments are cut and what the result is: `P()` says that all
# devices have the same, which is true after the psum and not before; JAX checks it.


# %%
line = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))


@jax.jit
@partial(
    jax.shard_map,
    mesh=line,
    in_specs=(P(), P(None, "model"), P(None, "model"), P("model", None)),
    out_specs=P(),
)
def tensor_parallel(x, gate, up, down):
    """x [t d], and a device's piece of gate, up [d f/8] and down [f/8 d] -> y [t d]."""
    return jax.lax.psum(swiglu(x @ gate, x @ up) @ down, "model")


found = collectives(tensor_parallel, normed, gate, up, down)
print("collectives:", dict(found))
assert found == {"all-reduce": 1}
assert np.allclose(tensor_parallel(normed, gate, up, down), total, atol=1e-4)

# %% [markdown]
# ## Or let the compiler find it
#
# The same program can be written without a word on devices: only the weights are put in place, and the compiler
# (GSPMD; Xu et al. 2021, arXiv:2105.04663) finds out what must be sent. It does what we did, if the cuts are good.
# With bad ones it finds something correct, too. If all matrices are cut by columns, the last one needs all columns
# of what the first two made, so these must be gathered from all devices (all-gather); and so must the layer's
# result, if everyone is to have it. Nobody tells you but the HLO.


# %%
def feed_forward(x, gate, up, down):
    """A plain layer: x [t d] -> [t d]."""
    return swiglu(x @ gate, x @ up) @ down


replicated = NamedSharding(line, P())
whole = jax.jit(feed_forward, out_shardings=replicated)


def laid(spec_up, spec_down):
    """The layer's weights on the eight devices, cut like this."""
    specs = (P(), spec_up, spec_up, spec_down)
    arrays = (normed, gate, up, down)
    return [jax.device_put(one, NamedSharding(line, spec)) for one, spec in zip(arrays, specs, strict=True)]


good, bad = laid(P(None, "model"), P("model", None)), laid(P(None, "model"), P(None, "model"))
print("columns, then rows:   ", dict(collectives(whole, *good)))
print("columns, then columns:", dict(collectives(whole, *bad)))
assert collectives(whole, *good) == {"all-reduce": 1}
assert collectives(whole, *bad)["all-gather"] > 0
for arguments in (good, bad):
    assert np.allclose(whole(*arguments), feed_forward(normed, gate, up, down), atol=1e-4)

# %% [markdown]
# ## Attention: heads
#
# Heads do not see each other (lesson 2), so each device takes some. `tiny-transformer` has eight: one for each
# device, with its columns of the query, key and value matrices, its part of the KV cache, and its rows of the
# matrix after. Again one all-reduce. So a layer has two, each of `t · d` numbers.

# %%
attention = lm.model.blocks[0]
entering = np.asarray(attention.norm(x))  # [b, t, d]
w_q, w_k, w_v = np.split(np.asarray(attention.qkv.dense()), 3, axis=1)  # [d, h k] each
w_out = np.asarray(attention.out.dense())  # [h k, d]
turn = attention.spec.rope.turn
cut = P(None, "model")


@jax.jit
@partial(jax.shard_map, mesh=line, in_specs=(P(), cut, cut, cut, P("model", None)), out_specs=P())
def attention_by_heads(x, w_q, w_k, w_v, w_out):
    """x [b t d], and a device's piece of the matrices, one head's -> y [b t d]."""
    q, k, v = ((x @ w)[:, :, None] for w in (w_q, w_k, w_v))  # b t h=1 k
    y = naive_attention(turn(q, at.pos), turn(k, at.pos), v)[:, :, 0]
    return jax.lax.psum(y @ w_out, "model")


y = attention_by_heads(entering, w_q, w_k, w_v, w_out)
found = collectives(attention_by_heads, entering, w_q, w_k, w_v, w_out)
print("collectives:", dict(found))
assert found == {"all-reduce": 1}
assert np.allclose(x + y, attention(x, None, at)[0], atol=1e-4)

# %% [markdown]
# ## The whole model
#
# Now all of `tiny-transformer`, with eight sequences of 32 tokens, laid out in three ways. *Data parallel* as
# above. *Tensor parallel*: `qkv` and `up` cut by columns, `out` and `down` by rows, and the embedding by tokens.
# *Sharded weights* (Rajbhandari et al. 2019, arXiv:1910.02054; often called FSDP): sequences and weights both cut
# in eight, and each matrix is gathered just before it is used. Only the places of the arrays differ. The program
# is `lm.logits`' own, and so the logits must be.
#
# First the layouts. How a leaf of the model lies follows from its name.


# %%
LAYOUTS = {  # how matrices [in, out] are cut by columns or by rows first, the embedding, and the sequences
    "data parallel": (P(), P(), P(), P("model")),
    "tensor parallel": (P(None, "model"), P("model", None), P("model", None), P()),
    "sharded weights": (P("model", None), P("model", None), P("model", None), P("model")),
}


def cut_for(path, first, second, embed) -> P:
    """How a leaf of the model lies, by its name."""
    names = {getattr(key, "name", "") for key in path}
    if "embed" in names:
        return embed
    spec = first if names & {"qkv", "up"} else second if names & {"out", "down"} else P()
    return P(*reversed(spec))  # the arrays are stored [out, in]


def arguments_of(first, second, embed, by_sequence):
    """The model, the tokens and their numbers, laid on the eight devices."""
    model = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, NamedSharding(line, cut_for(path, first, second, embed))), lm.model
    )
    return model, *(jax.device_put(one, NamedSharding(line, by_sequence)) for one in (tokens, n))


laid_out = {name: arguments_of(*cuts) for name, cuts in LAYOUTS.items()}
for name, (model, *_) in laid_out.items():
    pieces = {
        part: getattr(model.blocks[1], part).array.addressable_shards[0].data.shape for part in ("up", "down")
    }
    print(f"{name:>15}: of an MLP's matrices, [out, in], a device has {pieces}")

# %% [markdown]
# Now we compile and run the three, and count what each device receives. For n bytes on k devices an all-gather
# needs `n (k - 1) / k` of them, an all-reduce twice that (exercise 1), and a permute, in which each device sends
# what it has to one other, n.

# %%
PRICE = {"all-gather": 7 / 8, "all-reduce": 2 * 7 / 8, "collective-permute": 1.0}
held, received, kinds = {}, {}, {}
for name, arguments in laid_out.items():
    compiled = score.lower(*arguments).compile()
    held[name] = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arguments[0])) / 1e6
    received[name], kinds[name] = Counter(), Counter()
    for shape, kind in COLLECTIVE.findall(compiled.as_text()):
        size = 4 * np.prod([int(one) for one in re.search(r"\[([\d,]*)\]", shape)[1].split(",")])
        received[name][kind] += PRICE[kind] * size / 1e6
        kinds[name][kind] += 1
    total = sum(received[name].values())
    print(f"{name}: {held[name]:.1f} MB of weights, {total:.1f} MB received, {dict(kinds[name])}")
    assert np.allclose(compiled(*arguments), single, atol=1e-3)


def draw_layouts(figure):
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh([*held], [*held.values()], color="#999999")
    left.set(xlabel="MB of weights on each device")
    start = np.zeros(3)
    for kind in PRICE:
        widths = np.array([received[name][kind] for name in held])
        right.barh([*held], widths, left=start, label=kind)
        start += widths
    right.set(xlabel="MB that each device receives for 8 · 32 tokens")
    right.legend(fontsize=8)
    left.invert_yaxis()


picture("15_layouts", draw_layouts, width=10, height=2.8)

# %% [markdown]
# Tensor parallel shows the two all-reduces of each layer, and one for the embedding. But the permutes? We had cut
# `gate` and `up` each in eight. The model keeps them side by side as one matrix, of which an eighth is all gate or
# all up; so the pieces must be exchanged before they can be multiplied. Correct, and slower than need be: with
# columns in another order it would not happen. This is the kind of thing that one finds in the HLO and nowhere
# else.
#
# Sharded weights receive nearly as much for one token as for a thousand, which suits training with its large
# batches. Tensor parallel receives in proportion to the tokens: few in decoding, and that is where it is used.

# %%
layers = len(lm.model.blocks) // 2
assert not kinds["data parallel"]
assert kinds["tensor parallel"]["all-reduce"] == 2 * layers + 1
assert kinds["sharded weights"]["all-gather"] >= 4 * layers
assert max(held["tensor parallel"], held["sharded weights"]) < held["data parallel"] / 7

# %% [markdown]
# ## On a real accelerator's compiler
#
# Pretend devices show what is sent, not what a TPU would make of the program. Its compiler can tell without a TPU:
# it comes in a package, `pip install 'minillm[aot-tpu]'`, and writes code for chips that are described to it. What
# it gives cannot run here. But all that a compiler knows can be read off: whether the memory suffices, what
# is sent, what lies where. (`minillm compile` asks it about whole models.)
#
# We take the layer from above at the size of a large model, for 16 tokens in bfloat16, and give the compiler shapes
# that say on which of eight TPU v5e they lie. One thing to beware of: if a shape says nothing, JAX compiles for the
# CPU without a word, so `topology.compiled` looks for whom it was. Without the package we read what the compiler
# wrote elsewhere, from the same program: the last lines, shortened by what is only for the scheduler.

# %%
WRITTEN_ELSEWHERE = """
  %param.4 = bf16[16,4096]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %copy-start.2 = (bf16[16,4096]{1,0:T(8,128)(2,1)S(1)}, bf16[16,4096]{1,0:T(8,128)(2,1)}, u32[]) copy-start(%param.4)
  %param.6 = bf16[4096,2048]{1,0:T(8,128)(2,1)} parameter(2), sharding={devices=[1,8]<=[8]}
  %copy-start.1 = (bf16[4096,2048]{1,0:T(8,128)(2,1)S(1)}, bf16[4096,2048]{1,0:T(8,128)(2,1)}, u32[]) copy-start(%param.6)
  %param.5 = bf16[4096,2048]{1,0:T(8,128)(2,1)} parameter(1), sharding={devices=[1,8]<=[8]}
  %fusion.11 = bf16[16,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%param.4, %param.5), kind=kOutput
  %copy-done = bf16[2048,4096]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %copy-done.2 = bf16[16,4096]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.2)
  %copy-done.1 = bf16[4096,2048]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %fusion.5 = bf16[16,4096]{1,0:T(8,128)(2,1)S(1)} fusion(%copy-done, %fusion.11, %copy-done.2, %copy-done.1), kind=kOutput
  ROOT %psum.7 = bf16[16,4096]{1,0:T(8,128)(2,1)} all-reduce(%fusion.5), replica_groups={{0,1,2,3,4,5,6,7}}
"""  # noqa: E501


def compiled_for_tpus(d: int, f: int) -> str:
    """The HLO of the tensor parallel layer on eight TPU v5e."""
    tpus = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,), devices=topology.devices("tpu-v5e", 8))
    specs = P(), P(None, "model"), P(None, "model"), P("model", None)
    shapes = (16, d), (d, f), (d, f), (f, d)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(tpus, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]

    def layer(x, gate, up, down):
        return jax.lax.psum(swiglu(x @ gate, x @ up) @ down, "model")

    program = jax.jit(jax.shard_map(layer, mesh=tpus, in_specs=specs, out_specs=P()))
    return topology.compiled(program.lower(*arguments), "tpu").as_text()


here = topology.can_compile(DEVICES["tpu-v5e"])
hlo = compiled_for_tpus(4096, 16384) if here else WRITTEN_ELSEWHERE
print("compiled here:" if here else "compiled elsewhere:")
for line in hlo.strip().splitlines()[-12:]:
    print(line.strip()[:150])

# %% [markdown]
# Read it from the bottom. One all-reduce, as we planned. Each device holds 2,048 columns of `gate` and `up`.
# `T(8,128)` is how a TPU lays an array out, in tiles of 8 x 128 numbers, and `(2,1)` packs two rows of bfloat16
# into one of 32 bits: sizes that are no multiple of these are padded. `S(1)` is the small memory on the chip. So
# `copy-start` and `copy-done` fetch matrices from the large memory while the first product still runs, and what
# `swiglu` makes never goes back there.

# %%
sent = Counter(kind for _, kind in COLLECTIVE.findall(hlo))
assert sent == {"all-reduce": 1}
assert "bf16[4096,2048]" in hlo
assert "T(8,128)" in hlo
assert "S(1)" in hlo

# %% [markdown] exercise
# ## Exercises
#
# **1.** An all-reduce as a ring. The devices stand in a circle, and in each step every device can send one k-th of
# its numbers to the next. In the first k - 1 steps sums travel: device i begins with its piece i, and each adds
# its own of what arrives and sends it on, until every device has one piece of the full sum. In k - 1 more steps
# these travel round. `send` takes what each device sends, [k, n / k], and returns what each receives.


# %% exercise
def ring_all_reduce(parts, send):
    """parts [k, n], a row a device, k dividing n -> [k, n], every row the sum of all rows."""
    raise NotImplementedError


def mark_ring_all_reduce(answer):
    for k, n in ((2, 4), (4, 12), (8, 16)):
        parts, steps = np.random.default_rng(k).normal(size=(k, n)), []

        def send(pieces, steps=steps, shape=(k, n // k)):
            expect(list(np.shape(pieces)), list(shape), "the shape of what is sent in a step")
            steps.append(1)
            return np.roll(pieces, 1, axis=0)

        truth = np.tile(parts.sum(axis=0), (k, 1))
        expect(np.asarray(answer(parts.copy(), send)), truth, f"the sums on {k} devices")
        expect(len(steps), 2 * (k - 1), f"the number of steps on {k} devices")


# %% [markdown] exercise
# **2.** What does each device hold? A spec has an entry for each axis of the array: None, the name of a mesh axis,
# or a tuple of several.


# %% exercise
def shard_shape(shape: tuple, spec: tuple, mesh: dict) -> tuple:
    """The shape of a device's piece; mesh is like {"data": 2, "model": 4}."""
    raise NotImplementedError


def mark_shard_shape(answer):
    mesh = {"data": 2, "model": 4}
    abstract = AbstractMesh((2, 4), ("data", "model"))
    for spec in ((None, "model"), ("data", "model"), (("data", "model"), None), (None, None), ("model", "data")):
        truth = NamedSharding(abstract, P(*spec)).shard_shape((16, 24))
        expect(tuple(answer((16, 24), spec, mesh)), truth, f"shard_shape((16, 24), {spec}, mesh)")


# %% [markdown] exercise
# **3.** How much does each device receive for one token, if a model of so many layers is tensor parallel on k
# devices and numbers take two bytes? Two all-reduces of d numbers a layer, each at twice `(k - 1) / k` of its
# bytes.


# %% exercise
def received_bytes(d: int, layers: int, k: int) -> float:
    """Bytes that a device receives for one token."""
    raise NotImplementedError


def mark_received_bytes(answer):
    expect(float(answer(8192, 80, 8)), 4_587_520.0, "the bytes of Llama 3 70B on eight devices")
    expect(float(answer(4096, 32, 2)), 524_288.0, "the bytes of Llama 3 8B on two")
    expect(float(answer(4096, 32, 1)), 0.0, "the bytes on one device")
