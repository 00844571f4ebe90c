# %% [markdown]
# # 4. A whole transformer, checked against the real one
#
# From the bytes of a checkpoint to the next word, in NumPy: norm, attention, feed-forward, and what flows between.
#
# You know the ends of a model (lesson 1), attention (2) and positions (3). Two small parts are missing. Then we
# write the forward, from tokens to logits, in some forty lines, feed it the trained weights, and hold it to
# minillm's. At the end we look at what is going on between its layers.

# %%
import json
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.folders import bundled_models
from minillm.lessons import expect, picture
from minillm.ops import cross_entropy, rms_norm, rms_norm_ref, rope_frequencies, swiglu, swiglu_ref
from minillm.span import Span

lm = minillm.load("tiny-transformer")
folder = bundled_models()["tiny-transformer"]

# %% [markdown]
# ## A checkpoint is a table of arrays
#
# The file of a trained model is called a checkpoint. A common format is safetensors: eight bytes that say how long
# the header is, the header, which is JSON and says where each array begins and ends, and the numbers. These are of
# the type bfloat16, which is the upper half of a float32, so sixteen zero bits behind each make a float32 of it. A
# second file, `config.json`, holds the sizes. We read both without a library, and look at the arrays of the first
# layer.


# %%
def read_safetensors(path) -> dict[str, np.ndarray]:
    """The arrays of a file in bfloat16, as float32."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16"
            first, end = entry["data_offsets"]
            bits = np.frombuffer(body[first:end], np.uint16).astype(np.uint32) << 16
            arrays[name] = bits.view(np.float32).reshape(entry["shape"])
    return arrays


config = json.loads((folder / "config.json").read_text())
weights = read_safetensors(folder / "model.safetensors")
print(
    {
        name: config[name]
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
)
for name, array in weights.items():
    if "layers" not in name or "layers.0." in name:
        print(f"{name:<48} {list(array.shape)}")

# %% [markdown]
# Matrices are stored `[out, in]`, so a product is written `x @ w.T`. Of its 5.6 million parameters the model has
# nearly two thirds in the feed-forward blocks ("mlp"); that is usual. All of them must be in minillm's model, too,
# and no others. (`jax.tree.leaves` lists all arrays of a model.)

# %%
sizes = {part: sum(a.size for n, a in weights.items() if part in n) for part in ("embed", "attn", "mlp", "norm")}
print({part: f"{size:,}" for part, size in sizes.items()}, f"together {sum(sizes.values()):,}")
assert sum(sizes.values()) == sum(a.size for a in weights.values())
assert sum(sizes.values()) == sum(leaf.size for leaf in jax.tree.leaves(lm.model))
assert 0.6 < sizes["mlp"] / sum(sizes.values()) < 2 / 3
assert np.array_equal(weights["model.embed_tokens.weight"], lm.model.embed.dense())

# %% [markdown]
# ## RMSNorm: keep the direction, forget the length
#
# Every block adds something to a token's vector, so vectors grow from layer to layer (you will see it below). A
# block should not care. Before it looks at a vector, the vector is divided by the root of the mean of its squares,
# and each number multiplied by a learned one: RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467). The small `eps`
# saves the vector of zeros from 0 / 0. We take a vector and make it ten and a hundred times as long; the norm must
# not notice.


# %%
def norm(x: np.ndarray, weight: np.ndarray, eps: float = config["rms_norm_eps"]) -> np.ndarray:
    """x [... d], weight [d] -> [... d]."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


rng = np.random.default_rng(0)
x, weight = rng.normal(size=(3, 256)).astype(np.float32), weights["model.norm.weight"]
stretched = x[0] * np.array([[1], [10], [100]], np.float32)
print("lengths before", np.linalg.norm(stretched, axis=1).round(1))
print("and after", np.linalg.norm(norm(stretched, np.ones(256)), axis=1).round(1), "(√256 = 16)")

assert np.allclose(norm(stretched, weight), norm(x[0], weight), atol=1e-4)
assert np.allclose(norm(x, weight), rms_norm_ref(x, weight, 1e-5), atol=1e-5)
assert np.allclose(norm(x, weight), rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-5), atol=1e-5)

# %% [markdown]
# ## The feed-forward block: each token for itself
#
# Attention moves things from token to token. What is done with them is done here, for each token alone: a product
# with a wide matrix (`f` = 768 numbers), something that is not linear, and a product back. Without the part in the
# middle the two products would be one. In the form of Llama, the family of models to which this one belongs
# (SwiGLU, Shazeer 2020, arXiv:2002.05202), there are two wide products, and one says how much of the other passes:
# `silu(gate) * up`, with `silu(z) = z / (1 + e^-z)`, which is about 0 for very negative gates and about the gate
# itself for large ones. We write it, and hold it to the second block of the model.


# %%
def feed_forward(x: np.ndarray, layer: str) -> np.ndarray:
    """x [t d] -> [t d]; layer is the beginning of the names of its weights."""
    gate = x @ weights[f"{layer}.mlp.gate_proj.weight"].T  # t f
    up = x @ weights[f"{layer}.mlp.up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ weights[f"{layer}.mlp.down_proj.weight"].T


gate, up = rng.normal(size=(2, 3, 768)).astype(np.float32)
assert np.allclose(gate / (1 + np.exp(-gate)) * up, swiglu_ref(gate, up), atol=1e-5)
assert np.allclose(swiglu(jnp.asarray(gate), jnp.asarray(up)), swiglu_ref(gate, up), atol=1e-5)

block = lm.model.blocks[1]  # blocks take turns: attention, feed-forward, attention …
at = Span.chain(start=jnp.array([0]), n=jnp.array([3]), t=3)
by_hand = x + feed_forward(norm(x, weights["model.layers.0.post_attention_layernorm.weight"]), "model.layers.0")
by_block, _ = block(jnp.asarray(x)[None], None, at)
assert np.allclose(by_hand, by_block[0], atol=1e-4)

# %% [markdown]
# ## All of it
#
# Now the forward. Attention is that of lesson 2, in NumPy, with the rotations of lesson 3. Each block reads the
# vectors through a norm and adds its answer to them; the vectors that run through the model so are called the
# residual stream. Six layers, a last norm, and the product with the embedding. That is all: the large models of
# this family differ in sizes, in grouped queries (lesson 2), and in the frequencies of RoPE.


# %%
def attention(x: np.ndarray, layer: str) -> np.ndarray:
    """x [t d] -> [t d]."""
    t, h = len(x), config["num_attention_heads"]
    q, k, v = (
        (x @ weights[f"{layer}.self_attn.{name}_proj.weight"].T).reshape(t, h, -1).swapaxes(0, 1) for name in "qkv"
    )  # h t k
    angle = np.arange(t, dtype=np.float32)[:, None] * rope_frequencies(k.shape[2], config["rope_theta"])  # t k/2
    q, k = turned(q, angle), turned(k, angle)
    score = q @ k.swapaxes(1, 2) / k.shape[2] ** 0.5  # h t s; a plain float, since NumPy's would make all float64
    score = np.where(np.tri(t, dtype=bool), score, -np.inf)
    weight = np.exp(score - score.max(axis=2, keepdims=True))
    y = weight / weight.sum(axis=2, keepdims=True) @ v  # h t k
    return y.swapaxes(0, 1).reshape(t, -1) @ weights[f"{layer}.self_attn.o_proj.weight"].T


def turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """x [h t k], pairs j and j + k/2 turned by angle [t k/2]."""
    a, b = np.split(x, 2, axis=2)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=2)


def forward(tokens: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [t v], and the residual stream [t d] after each layer."""
    x = weights["model.embed_tokens.weight"][tokens]
    stream = []
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        x = x + attention(norm(x, weights[f"{layer}.input_layernorm.weight"]), layer)
        x = x + feed_forward(norm(x, weights[f"{layer}.post_attention_layernorm.weight"]), layer)
        stream.append(x)
    return norm(x, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T, stream


# %% [markdown]
# Is it the same function as the real model's? We compare every logit of a whole recipe: mistakes in positions show
# only in long texts. In float32, sums in another order differ by about a millionth of their largest terms, and
# such differences pass through six layers. With the answer we see how the residual stream grows.

# %%
text = texts.held_out("recipes")[0].text
tokens = lm.tokenizer.encode(text)
logits, stream = forward(tokens)
by_model = lm.logits([tokens])[0]
lengths = [float(np.linalg.norm(x, axis=1).mean()) for x in stream]
print(f"{len(tokens)} tokens, {logits.size:,} logits, largest difference {np.abs(logits - by_model).max():.1e}")
print("mean length of the vectors after each layer:", [round(length, 1) for length in lengths])

assert lengths == sorted(lengths)
assert np.allclose(logits, by_model, atol=2e-3)

# %% [markdown]
# ## It writes
#
# A model writes by being asked again and again: take the likeliest next token, put it behind the text, ask anew.
# Our forward does all of the work anew for every token, too. minillm writes the same text faster, and the more so
# the longer it gets; the next lesson is about how.

# %%
prompt = lm.tokenizer.encode("Recipe: Tomato Soup")
written, began = list(prompt), time.perf_counter()
for _ in range(16):
    written.append(int(forward(written)[0][-1].argmax()))
seconds = time.perf_counter() - began
completion = lm.generate(prompt, max_tokens=16, temperature=0.0)  # temperature 0: always the likeliest token
print(lm.tokenizer.decode(written[1:]))
print(f"\n{16 / seconds:.1f} tokens a second, in minillm {completion.timings['decode_tok_s'] or float('nan'):.1f}")

assert written[len(prompt) :] == completion.tokens

# %% [markdown]
# ## Looking inside
#
# The head turns the last vector into logits. Nothing prevents us from using it earlier: what would the model say
# if it had to after two layers? This has become known as the logit lens (nostalgebraist 2020). The picture has a
# row for each layer, a column for each token of a line, and in each cell the token that would be said next, darker
# where it is more probable. The row at the top is what the model does say; below each column stands what it has
# just read. Simple continuations are there after the first layer, others are found on the way up. Then we measure
# the loss (lesson 3) after each layer, for the tokens that really came.

# %%
line = "\n\nSteps:\n1. In a pot, bring 200 ml of water to"
reading = lm.tokenizer.encode("Recipe: Oatmeal with Apple\n\nIngredients:\n- 50 g oatmeal\n- 200 ml water" + line)
final, layers = forward(reading)
columns = len(lm.tokenizer.encode(line, special=False))
lens = [norm(x, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T for x in layers]
chances = np.array([jax.nn.softmax(one[-columns:]) for one in lens])  # [layers, columns, v]


def draw_lens(figure):
    axes = figure.subplots()
    names = [lm.tokenizer.decode([i]).replace("\n", "↵").strip() for i in range(lm.config.v)]
    image = axes.imshow(chances.max(axis=2), cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for layer, column in np.ndindex(*chances.shape[:2]):
        said, chance = names[chances[layer, column].argmax()], chances[layer, column].max()
        colour = "white" if chance > 0.6 else "black"
        axes.text(column, layer, said, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(columns), [names[i] for i in reading[-columns:]], fontsize=9)
    axes.set(xlabel="what was read last", ylabel="after layer")
    figure.colorbar(image, label="its probability", pad=0.01)


picture("04_lens", draw_lens, width=12, height=3.5)

# %%
came = np.array(reading[-columns + 1 :])  # what came after each column but the last
nats = [cross_entropy(jnp.asarray(one[-columns:-1], jnp.float32), jnp.asarray(came)).mean() for one in lens]
print("nats a token after each layer:", [round(float(one), 2) for one in nats])

assert nats == sorted(nats, reverse=True)
assert np.array_equal(lens[-1], final)
assert np.allclose(final, lm.logits([reading])[0], atol=2e-3)

# %% [markdown] exercise
# ## Exercises
#
# **1.** How many parameters has a model of this family? The matrices are those in the table above; with grouped
# queries, `k_proj` and `v_proj` give only `g · k` numbers. There are two norms a layer, and one at the end. A head
# of its own (`tied` is false) is one matrix more.


# %% exercise
def count_parameters(d: int, f: int, h: int, g: int, k: int, layers: int, v: int, tied: bool) -> int:
    """Parameters of a Llama; tied: the head is the embedding."""
    raise NotImplementedError


def mark_count_parameters(answer):
    truth = sum(leaf.size for leaf in jax.tree.leaves(lm.model))
    expect(answer(256, 768, 8, 8, 32, 6, 2048, True), truth, "count_parameters of tiny-transformer")
    expect(answer(576, 1536, 9, 3, 64, 30, 49152, True), 134_515_008, "count_parameters of SmolLM2-135M")
    expect(answer(4096, 14336, 32, 8, 128, 32, 128256, False), 8_030_261_248, "count_parameters of Llama 3.1 8B")


# %% [markdown] exercise
# **2.** The loss of a model on a text, from its logits: the mean, over all tokens but the first, of minus the
# natural logarithm of the probability that the model gave to the token. Do not let large logits overflow.


# %% exercise
def loss(logits, tokens) -> float:
    """logits [t v], tokens [t] -> nats a token; logits[i] are what the model says after tokens[i]."""
    raise NotImplementedError


def mark_loss(answer):
    for text in ("Recipe: Tomato Soup\n\nIngredients:", "And it came about in those days"):
        ids = lm.tokenizer.encode(text)
        logits = lm.logits([ids])[0]
        truth = float(cross_entropy(jnp.asarray(logits[:-1]), jnp.asarray(ids[1:])).mean())
        expect(answer(logits, ids), truth, f"the loss on {text!r}")
        expect(answer(logits + 500, ids), truth, "the loss with 500 added to every logit")


# %% [markdown] exercise
# **3.** Since a block only adds to the stream, one can leave it out. Which of the model's twelve blocks is missed
# most? `model.replace(blocks=…)` makes a model with other blocks, and `model(tokens, None, at)` gives its logits.


# %% exercise
def most_missed(model, tokens, at) -> int:
    """Index of the block in model.blocks without which the mean cross-entropy on tokens i32 [1, t] is largest."""
    raise NotImplementedError


def mark_most_missed(answer):
    ids = jnp.asarray([lm.tokenizer.encode("Recipe: Rice with Mushrooms\n\nIngredients:\n- 60 g rice\n- 100 g")])
    at = Span.chain(jnp.array([0]), jnp.array([ids.shape[1]]), ids.shape[1])
    harm = []
    for i in range(len(lm.model.blocks)):
        logits, _ = lm.model.replace(blocks=lm.model.blocks[:i] + lm.model.blocks[i + 1 :])(ids, None, at)
        harm.append(float(cross_entropy(logits[:, :-1], ids[:, 1:]).mean()))
    expect(answer(lm.model, ids, at), int(np.argmax(harm)), "the block")
