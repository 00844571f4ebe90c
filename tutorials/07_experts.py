# %% [markdown]
# # 7. Mixture of experts
#
# Many feed-forward layers of which each token uses a few: how it is routed, what balance means, what experts
# learned.
#
# In lesson 4 nearly two thirds of the parameters were in the feed-forward blocks, and every token paid for all of
# them. A mixture of experts (MoE) has several feed-forward networks side by side in each such block, the experts,
# and a small matrix, the router, that sends each token to the few that suit it. So a model can have more
# parameters, and know more, at the same work for each token. The model of this lesson is `tiny-moe`: eight experts
# a layer, three for each token. Everything else is as in lesson 4.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.blocks.moe import expert_load
from minillm.lessons import expect, picture
from minillm.ops import moe_capacity, moe_dense, moe_ref, moe_sorted, route, route_ref
from minillm.span import Span

lm = minillm.load("tiny-moe")
rng = np.random.default_rng(0)

# %% [markdown]
# ## The router
#
# The router is a matrix `[d, e]`: it gives each token a logit for each of `e` experts, as the head gives one for
# each word. The `m` largest win (Shazeer et al. 2017, arXiv:1701.06538). How much each counts is a softmax, over
# the winners alone, so that the weights of a token add up to 1. We route five tokens to two of four experts each.


# %%
def routed(logits: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Router logits [t e] -> weights [t m] and experts [t m], the best first."""
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :m]
    best = np.take_along_axis(logits, experts, axis=1)
    weights = np.exp(best - best[:, :1])
    return weights / weights.sum(axis=1, keepdims=True), experts


logits = rng.normal(size=(5, 4)).astype(np.float32)
weights, experts = routed(logits, 2)
for token in range(5):
    print(f"{logits[token].round(1)} -> experts {experts[token]}, weights {weights[token].round(2)}")

for by_ops in (route_ref(logits, top_k=2), route(jnp.asarray(logits), top_k=2)):
    assert np.allclose(by_ops[0], weights, atol=1e-6)
    assert np.array_equal(by_ops[1], experts)

# %% [markdown]
# ## The experts
#
# An expert is a feed-forward network as in lesson 4, only narrower. As a loop it reads: for each token, for each
# of its experts, add the weight times what the expert makes of it. An expert has three matrices, so each token
# makes 3 m products of a single row: a slow program, since weights are read anew for every token (lesson 5).

# %%
d, f, e = 16, 8, 4
x = rng.normal(size=(5, d)).astype(np.float32)
w_gate, w_up = (rng.normal(size=(2, e, d, f)) / 4).astype(np.float32)  # each [e d f]
w_down = (rng.normal(size=(e, f, d)) / 4).astype(np.float32)


def expert(i: int, rows: np.ndarray) -> np.ndarray:
    """What expert i makes of rows [n d] -> [n d]."""
    gate = rows @ w_gate[i]
    return (gate / (1 + np.exp(-gate)) * (rows @ w_up[i])) @ w_down[i]


y = np.zeros_like(x)
for token in range(5):
    for weight, i in zip(weights[token], experts[token], strict=True):
        y[token] += weight * expert(i, x[token : token + 1])[0]

assert np.allclose(y, moe_ref(x, weights, experts, w_gate, w_up, w_down), atol=1e-5)

# %% [markdown]
# Better: list the visits, one for each token and each of its experts, and sort them by expert. Then each expert
# has its rows together and takes them in one go, and in the end each token collects its own. `ops.moe_sorted` does
# so, and the model's block uses it. The other way is to let every expert work on every token and to throw most of
# it away, `moe_dense`: e / m times the work, but no sorting. All must give what the loop gave.

# %%
visits = experts.reshape(-1)  # the expert of each visit, token by token: [t * m], m = 2
order = np.argsort(visits, kind="stable")
token_of = order // 2
print("tokens, sorted by expert:", token_of, "- rows of each expert:", np.bincount(visits, minlength=e))

made = np.concatenate([expert(i, x[token_of[visits[order] == i]]) for i in range(e)])
by_sorting = np.zeros_like(x)
np.add.at(by_sorting, token_of, weights.reshape(-1)[order][:, None] * made)

arrays = [*map(jnp.asarray, (x, weights, experts.astype(np.int32), w_gate, w_up, w_down))]
assert np.allclose(by_sorting, y, atol=1e-5)
assert np.allclose(moe_sorted(*arrays), y, atol=1e-5)
assert np.allclose(moe_dense(*arrays), y, atol=1e-5)

# %% [markdown]
# ## In the model
#
# Now the first such block of `tiny-moe`, with what really enters it: a recipe, after the first attention block. We
# go expert by expert, and add the result to what entered. And the point of it all, in figures: the parameters that
# there are, and those that one token meets.

# %%
recipe = lm.tokenizer.encode(texts.held_out("recipes")[0].text)
at = Span.chain(jnp.array([0]), jnp.array([len(recipe)]), len(recipe))
entering, _ = lm.model.blocks[0](lm.model.embed.rows(jnp.asarray([recipe])), None, at)
block = lm.model.blocks[1]

normed = np.asarray(block.norm(entering))[0]  # [t, d]
weights, experts = routed(normed @ np.asarray(block.router.dense()), block.spec.top_k)
w_gate, w_up = np.split(np.asarray(block.up.dense()), 2, axis=2)  # [e, d, f] each; `expert` goes by these names
w_down = np.asarray(block.down.dense())
y = np.zeros_like(normed)
for i in range(block.spec.e):
    token, place = np.nonzero(experts == i)
    y[token] += weights[token, place, None] * expert(i, normed[token])

by_block, proposed = block(entering, None, at)
matrices = [(one.up, one.down) for one in lm.model.blocks if hasattr(one, "router")]
of_experts = sum(leaf.size for leaf in jax.tree.leaves(matrices))
every = sum(leaf.size for leaf in jax.tree.leaves(lm.model))
met = every - of_experts * (block.spec.e - block.spec.top_k) // block.spec.e
print(f"{every:,} parameters, of which a token meets {met:,}")
assert met < every / 2
assert np.allclose(entering[0] + y, by_block[0], atol=1e-4)

# %% [markdown]
# ## Balance
#
# A router left to itself finds a few experts good enough, sends everything there, and the others never learn. So
# training, which changes the parameters so that the loss falls, is given a second loss to mind. With `share` the
# part of all choices that fell on an expert, and `chance` the router's softmax for it, over all experts and
# averaged over tokens, it is `e · sum(share · chance)`: 1 if all is even, more as both gather on the same experts
# (Fedus et al. 2021, arXiv:2101.03961, eq. 4). A block reports both numbers when it runs. Training made things
# even over all texts; in one recipe they need not be.
#
# Balance also matters for speed. On many devices each expert has room for so many tokens, its capacity, and the
# tokens that come later go without it. We let the block's experts do that: if all got the same, room for 3/8 of
# the tokens would do.

# %%
share = np.bincount(experts.reshape(-1), minlength=8) / experts.size
chance = jax.nn.softmax(normed @ block.router.dense(), axis=1).mean(axis=0)
print("share of choices:", share.round(3), f"balance loss {8 * np.sum(share * np.asarray(chance)):.3f}")

arrays = [*map(jnp.asarray, (normed, weights, experts.astype(np.int32), w_gate, w_up, w_down))]
for room in (len(recipe) * 3 // 8, len(recipe) // 2, len(recipe)):
    served = np.asarray(moe_capacity(*arrays, capacity=room))
    hurt = np.any(np.abs(served - y) > 1e-3, axis=1)
    print(f"room for {room:>3} of {len(recipe)} tokens an expert: {hurt.mean():.0%} of the tokens lose something")
    assert np.any(hurt) == (room < np.bincount(experts.reshape(-1)).max())

assert np.allclose(served, y, atol=1e-4)  # room for all
assert np.array_equal(proposed.load, np.bincount(experts.reshape(-1), minlength=8))
assert np.allclose(proposed.probability, chance, atol=1e-5)

# %% [markdown]
# ## What experts learned
#
# Is there an expert for salt and one for kings? Here is a piece of a recipe and a piece of scripture, each token
# in the colour of the expert that weighs most for it, in the first layer (layer 0) and in the fifth (layer 4).
# Look at them before you read on.


# %%
def first_choices(tokens: list[int]) -> np.ndarray:
    """The expert with the largest weight [layers, t] of each token, in every layer with experts."""
    x = lm.model.embed.rows(jnp.asarray([tokens]))
    at = Span.chain(jnp.array([0]), jnp.array([len(tokens)]), len(tokens))
    chosen = []
    for block in lm.model.blocks:
        if hasattr(block, "router"):
            chosen.append(np.asarray(block.route(block.norm(x)[0])[1])[:, 0])
        x, _ = block(x, None, at)
    return np.stack(chosen)


shown = {source: lm.tokenizer.encode(texts.held_out(source)[1].text)[:110] for source in texts.SOURCES}
choices = {source: first_choices(tokens) for source, tokens in shown.items()}


def draw_choices(figure):
    colours = ["#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d"]
    for axes, (source, layer) in zip(
        figure.subplots(2, 2).flat, [(s, n) for s in shown for n in (0, 4)], strict=True
    ):
        axes.set(xlim=(0, 64), ylim=(7, 0), title=f"{source}, layer {layer}")
        axes.axis("off")
        row, column = 0, 0
        for token, chosen in zip(shown[source][1:], choices[source][layer][1:], strict=True):
            piece = lm.tokenizer.decode([token]).replace("\n", "↵")
            if column + len(piece) > 64:
                row, column = row + 1, 0
            axes.broken_barh([(column, len(piece))], (row, 0.85), color=colours[chosen])
            for offset, letter in enumerate(piece):
                axes.text(column + offset + 0.5, row + 0.65, letter, fontsize=7, family="monospace", ha="center")
            column += len(piece)


picture("07_choices", draw_choices, width=11, height=3.6)

# %% [markdown]
# In the first layer one expert comes first for all of the scripture, from its first word on, and hardly ever for
# the recipe. In the fifth layer it is the kind of token that decides. In the scripture commas and full stops have
# one colour; `the`, `his`, `a`, `no` and `had` another; `sent`, `came`, `to` and `will` a third. In large models,
# too, experts for kinds of tokens were found rather than for subjects (Jiang et al. 2024, arXiv:2401.04088,
# section 5).
#
# Now counted over more text: the share of the choices that each expert gets, layer by layer. Then we check what
# was said.


# %%
def sample(source: str) -> jax.Array:
    """Four rows of 256 tokens [b, t] of a source."""
    tokens = [i for document in texts.held_out(source)[:12] for i in lm.tokenizer.encode(document.text)]
    return jnp.asarray(tokens[: 4 * 256]).reshape(4, 256)


samples = {source: sample(source) for source in texts.SOURCES}
loads = {source: np.asarray(expert_load(lm.model, tokens)) for source, tokens in samples.items()}
shares = {source: load / load.sum(axis=1, keepdims=True) for source, load in loads.items()}


def draw_shares(figure):
    for axes, (source, one) in zip(figure.subplots(1, 2, sharey=True), shares.items(), strict=True):
        image = axes.imshow(one, cmap="viridis", vmin=0, vmax=0.4)
        axes.set(title=source, xlabel="expert", ylabel="layer")
    figure.colorbar(image, label="share of choices (if even: 0.125)")


picture("07_shares", draw_shares, width=9)

# %%
differ = 0.5 * np.abs(shares["recipes"] - shares["scripture"]).sum(axis=1)
print("choices that fall elsewhere in scripture than in recipes, by layer:", [f"{one:.0%}" for one in differ])
first = np.bincount(choices["scripture"][0], minlength=8)
print(f"{first.max() / first.sum():.0%} of the piece of scripture has expert {first.argmax()} first in layer 0")
assert first.max() > 0.9 * first.sum()
assert np.mean(choices["recipes"][0] == first.argmax()) < 0.1

kinds = {"marks": [",", ".", ";"], "articles": [" the", " his", " a", " no"], "verbs": [" came", " to", " will"]}
for kind, pieces in kinds.items():
    experts = choices["scripture"][4][[lm.tokenizer.decode([i]) in pieces for i in shown["scripture"]]]
    print(f"{kind} in the scripture, in layer 4: experts {experts}")
    assert np.bincount(experts).max() > 0.8 * len(experts)
for source, tokens in samples.items():
    assert np.all(loads[source].sum(axis=1) == tokens.size * block.spec.top_k)

# %% [markdown] exercise
# ## Exercises
#
# **1.** Write the balance loss, from the logits of a router.


# %% exercise
def balance_loss(logits, m: int) -> float:
    """Router logits [t e], m choices a token -> e * sum over experts of share * chance."""
    raise NotImplementedError


def mark_balance_loss(answer):
    expect(float(answer(np.tile(4 * np.eye(4), (2, 1)), 1)), 1.0, "the loss of an even router")
    for m in (1, 3):
        logits = np.random.default_rng(m).normal(size=(40, 8))
        _, experts = route_ref(logits, top_k=m)
        share = np.bincount(experts.reshape(-1), minlength=8) / experts.size
        chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expect(float(answer(logits, m)), float(8 * np.sum(share * chance.mean(axis=0))), f"the loss with m={m}")


# %% [markdown] exercise
# **2.** How many parameters of the feed-forward blocks does a token meet, and how many are there? Some models
# (DeepSeek's) have, besides the routed experts, `shared` ones of the same size that serve every token.


# %% exercise
def met_and_all(d: int, f: int, e: int, m: int, shared: int, layers: int) -> tuple[int, int]:
    """Parameters of experts (three matrices each) and routers: those that a token meets, and all."""
    raise NotImplementedError


def mark_met_and_all(answer):
    expect(answer(256, 256, 8, 3, 0, 6), (3_551_232, 9_449_472), "met_and_all of tiny-moe")
    expect(answer(4096, 14336, 8, 2, 0, 32), (11_275_337_728, 45_098_205_184), "met_and_all of Mixtral 8x7B")
    expect(answer(2048, 1408, 64, 6, 2, 26), (1_802_764_288, 14_848_098_304), "met_and_all with two shared experts")


# %% [markdown] exercise
# **3.** DeepSeek-V3 (arXiv:2412.19437, section 2.1.2) balances without a loss. The score of an expert is the
# sigmoid of its logit, `1 / (1 + e^-logit)`, and each expert has a bias that is raised while it gets too little.
# The m experts with the largest score plus bias are chosen; their weights are their scores without the bias,
# divided by their sum.


# %% exercise
def route_with_bias(logits, bias, m: int):
    """logits [t e], bias [e] -> weights [t m], experts [t m], the best (bias included) first."""
    raise NotImplementedError


def mark_route_with_bias(answer):
    rng = np.random.default_rng(7)
    for bias in (np.zeros(6), rng.normal(size=6) / 3):
        logits = rng.normal(size=(9, 6))
        weights, experts = route_ref(logits, top_k=2, scoring="sigmoid", bias=bias)
        got = answer(logits, bias, 2)
        expect(np.asarray(got[1]), experts, "the experts")
        expect(np.asarray(got[0]), weights, "the weights")
