# %% [markdown]
# # 6. Sampling
#
# From logits to a token: temperature, what the filters keep, how a token is drawn, and why a seed repeats a text.
#
# What a model gives is a number for each token of the vocabulary, its logit (lesson 1). Which token is written is
# decided outside of the model, in a few lines that have a large say in its style: the sampler. We write each of
# them by hand, see what it does to real logits, and in the end repeat a text of the real sampler, token by token.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import ops, texts
from minillm.lessons import expect, picture
from minillm.sampling import new_sampler

lm = minillm.load("tiny-transformer")
rng = np.random.default_rng(0)


def next_logits(text: str) -> np.ndarray:
    """The logits [v] of what comes after a text."""
    return lm.logits([lm.tokenizer.encode(text)])[0, -1].astype(np.float64)


# %% [markdown]
# ## From logits to probabilities
#
# The softmax of lesson 2 again: `e` to each logit, divided by the sum. Only differences between logits matter, and
# a difference of 1 makes a token e = 2.7 times as likely.
#
# Dividing the logits by a temperature first stretches or shrinks the differences. Below 1 the likely tokens become
# likelier still, near 0 the likeliest gets everything (to take it always is called greedy), and far above 1 all
# become alike. The name is from physics: in a gas, states of energy E are found as often as e^(-E / temperature)
# says. The picture has the fourteen likeliest tokens after `Then the king said to his`.


# %%
def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [v] of logits [v]; -inf gives 0."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


logits = next_logits("Then the king said to his")
temperatures = (0.5, 1.0, 2.0)
chances = {t: softmax(logits / t) for t in temperatures}
likeliest = np.argsort(-logits)[:14]
names = [lm.tokenizer.decode([int(i)]) for i in likeliest]


def draw_temperatures(figure):
    axes = figure.subplots()
    for n, (temperature, chance) in enumerate(chances.items()):
        axes.bar(np.arange(14) + 0.27 * (n - 1), chance[likeliest], width=0.27, label=f"temperature {temperature}")
    axes.set_xticks(range(14), names, rotation=60)
    axes.set(xlabel="next token", ylabel="probability")
    axes.legend()


picture("06_temperature", draw_temperatures)

# %%
for temperature, chance in chances.items():
    rest = 1 - chance[likeliest].sum()
    print(f"temperature {temperature}: {rest:.1%} of the probability is on the other {len(logits) - 14:,} tokens")
    scaled = ops.scale_temperature(jnp.asarray(logits[None], jnp.float32), jnp.array([temperature], jnp.float32))
    assert np.allclose(jax.nn.softmax(scaled)[0], chance, atol=1e-6)

# %% [markdown]
# ## Drawing
#
# Lay the probabilities end to end along a line of length 1, throw a dart at it, and take the token where it lands.
# In code: running sums, and the first of them that is larger than the dart. This is called inversion, and is what
# `ops.sample` does with the darts that it is given, one for each row of probabilities.


# %%
def drawn(chance: np.ndarray, dart: float) -> int:
    """The token at which the probability passed first exceeds the dart, 0 <= dart < 1."""
    return int(np.argmax(np.cumsum(chance) > dart * chance.sum()))


darts = rng.random(400)
by_hand = [drawn(chances[1.0], dart) for dart in darts]
defined = ops.sample_ref(np.tile(chances[1.0], (400, 1)), darts)
in_jax = ops.sample(jnp.tile(jnp.asarray(chances[1.0], jnp.float32), (400, 1)), jnp.asarray(darts, jnp.float32))
assert by_hand == defined.tolist()
assert np.mean(in_jax == defined) > 0.99  # in float32 a dart may land on the other side of a border

# %% [markdown]
# There is a second way, and it needs no sums. Add to each logit a random number of its own from the Gumbel
# distribution, `-log(-log(uniform))`, and take the token with the largest (Gumbel 1954; Maddison et al. 2014,
# arXiv:1411.0030). It can be shown that this draws from the very same distribution. minillm draws so, since the
# largest of many numbers can be found in parts, on many devices if need be. We do it ten thousand times, among the
# fourteen likeliest, and count.

# %%
noise = -np.log(-np.log(rng.random((10_000, 14))))
counts = np.bincount(np.argmax(logits[likeliest] + noise, axis=1), minlength=14)
expected = 10_000 * softmax(logits[likeliest])
for name, count, mean in zip(names[:6], counts, expected, strict=False):
    print(f"{name!r:<12} drawn {count:>5} times, expected {mean:7.1f}")

by_ops = ops.sample_gumbel(jnp.tile(jnp.asarray(logits[likeliest], jnp.float32), (10_000, 1)), seed=1)
for count in (counts, np.bincount(by_ops, minlength=14)):
    assert np.all(np.abs(count - expected) < 6 * np.sqrt(expected) + 6)  # six standard deviations: once in 10^8

# %% [markdown]
# ## Filters: never take the thousandth best
#
# At temperature 1 now and then a token is drawn to which the model itself gave hardly a chance. Each is a small
# accident, which all that follows must make sense of. So most samplers cut off the tail, by setting logits to
# minus infinity, and draw from what is left. Where to cut? There are three answers in use:
#
# - top-k (Fan et al. 2018, arXiv:1805.04833): keep the k likeliest;
# - top-p (Holtzman et al. 2019, arXiv:1904.09751): keep the likeliest until together they have probability p;
# - min-p (Nguyen et al. 2024, arXiv:2407.01082): keep what is at least p times as likely as the likeliest.


# %%
def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Logits [v] with all but the k largest, and what equals the last of them, set to -inf."""
    return np.where(logits >= np.sort(logits)[-k], logits, -np.inf)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Logits [v] with all but the likeliest set to -inf; those kept have probability p or just above."""
    chance = softmax(logits)
    falling = np.sort(chance)[::-1]
    n_kept = 1 + int(np.sum(np.cumsum(falling) < p))
    return np.where(chance >= falling[n_kept - 1], logits, -np.inf)


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Logits [v] with what is less than p times as likely as the likeliest set to -inf."""
    return np.where(softmax(logits) >= p * softmax(logits).max(), logits, -np.inf)


row = jnp.asarray(logits[None], jnp.float32)
for by_hand, by_ops in (
    (top_k(logits, 5), ops.keep_top_k(row, jnp.array([5]))),
    (top_p(logits, 0.8), ops.keep_top_p(row, jnp.array([0.8], jnp.float32))),
    (min_p(logits, 0.1), ops.keep_min_p(row, jnp.array([0.1], jnp.float32))),
):
    kept = np.isfinite(by_hand)
    print(kept.sum(), "kept:", [lm.tokenizer.decode([int(i)]) for i in np.flatnonzero(kept)][:8])
    assert np.array_equal(kept, np.isfinite(by_ops[0]))

# %% [markdown]
# What is the difference? A model is certain at one token and open at the next. After `120` there is hardly
# anything but `g` and `ml`; what the next ingredient is, nobody can know. Top-k keeps forty tokens in both cases.
# With the others the number follows the model's certainty. Below is a part of a recipe that was kept from
# training, and how many tokens each filter would have kept in the place of each. Then we count over the recipe how
# often the token that came was among those kept.

# %%
recipe = lm.tokenizer.encode(texts.held_out("recipes")[2].text)[:120]
rows = lm.logits([recipe])[0].astype(np.float64)
filters = {
    "top-k 40": lambda one: top_k(one, 40),
    "top-p 0.9": lambda one: top_p(one, 0.9),
    "min-p 0.1": lambda one: min_p(one, 0.1),
}
n_kept = {name: np.array([np.isfinite(f(one)).sum() for one in rows]) for name, f in filters.items()}
part = slice(10, 60)


def draw_kept(figure):
    axes = figure.subplots()
    for (name, count), width in zip(n_kept.items(), (2, 4, 1.5), strict=True):  # the third lies upon the second
        axes.step(range(50), count[part], where="mid", label=name, linewidth=width)
    pieces = [lm.tokenizer.decode([i]).replace("\n", "↵") for i in recipe[11:61]]
    axes.set_xticks(range(50), pieces, rotation=90, fontsize=9)
    axes.set(yscale="log", ylabel="tokens kept", xlabel="in the place of this token")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=(-0.5, 49.5), ylim=(0.8, 150))
    axes.legend(loc="upper center", ncols=3)


picture("06_filters", draw_kept, width=10, height=3.8)

# %%
for name, count in n_kept.items():
    kept = [np.isfinite(filters[name](one)[token]) for one, token in zip(rows[:-1], recipe[1:], strict=True)]
    print(f"{name}: {count.mean():4.1f} tokens on average; the one that came was among them {np.mean(kept):.0%}")
    assert np.mean(kept) > 0.9

by_ops = ops.keep_top_p(jnp.asarray(rows, jnp.float32), jnp.full(len(rows), 0.9, jnp.float32))
assert np.ptp(n_kept["top-k 40"]) == 0
assert np.mean(np.isfinite(by_ops).sum(axis=1) == n_kept["top-p 0.9"]) > 0.98  # sums near 0.9 may round either way

# %% [markdown]
# ## Penalties: not again
#
# A text that repeats itself makes its repetition likelier: small models, greedy above all, go in circles. A
# penalty makes tokens that are already there less likely. The usual one (Keskar et al. 2019, arXiv:1909.05858)
# divides their logits by a number a little above 1 where they are positive, and multiplies by it where they are
# negative, so that both ways they fall. It is a blunt tool: it also tells against the second `the`, and against
# the second `g` of a recipe.


# %%
def penalised(logits: np.ndarray, seen: set[int], penalty: float) -> np.ndarray:
    """Logits [v] in which tokens that were seen are less likely."""
    there = np.isin(np.arange(len(logits)), list(seen))
    return np.where(there, np.where(logits > 0, logits / penalty, logits * penalty), logits)


prompt = "And the Lord said"
for penalty in (1.0, 1.3):
    text = lm.generate(prompt, max_tokens=40, temperature=0.0, repeat_penalty=penalty).text
    print(f"penalty {penalty}: {prompt}{text}\n")

seen = set(lm.tokenizer.encode(prompt))
flags = jnp.zeros((1, lm.config.v), bool).at[0, jnp.array(sorted(seen))].set(True)
by_ops = ops.penalise_repetition(row, flags, jnp.array([1.3], jnp.float32))
assert np.allclose(penalised(logits, seen, 1.3), by_ops[0], atol=1e-4)
assert np.all(penalised(logits, seen, 1.3)[list(seen)] <= logits[list(seen)])

# %% [markdown]
# ## The real sampler, token by token
#
# minillm's order is penalties, temperature, top-k, top-p, min-p, then a draw. Its random numbers come from a seed,
# a number that the user gives, and from the place in the text that is to be filled: place 17 has its own, whatever
# happened before. So a text can be repeated from its seed, whether it was written alone or together with seven
# others; with one stream of numbers for all, company would change every token.
#
# We write a text with the real thing, and then ourselves: filter the logits, add the Gumbel noise of the place,
# take the largest.

# %%
options = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02}
prompt = lm.tokenizer.encode("Recipe: Tomato Soup")
completion = lm.generate(prompt, max_tokens=24, seed=7, **options)
print(completion.text)

written = list(prompt)
for place in range(len(prompt), len(prompt) + 24):
    one = lm.logits([written])[0, -1].astype(np.float64)
    one = min_p(top_p(top_k(one / 0.8, 50), 0.95), 0.02)
    key = jax.random.fold_in(jax.random.key(7), place)  # where the random numbers of this place begin
    noise = jax.random.gumbel(key, one.shape, jnp.float32)
    written.append(int(np.argmax(one + np.asarray(noise))))

assert written[len(prompt) :] == completion.tokens

# %% [markdown]
# The sampler can also be asked for its filtered logits alone; they must agree with ours, too. This is all that
# happens between the model and the text. (`minillm/sampling.py` has some 200 lines, most of them about several
# texts at once and about users' mistakes.)

# %%
sampler = new_sampler(**options, seed=7)
filtered = sampler.filtered(jnp.asarray(logits[None], jnp.float32), None)[0]
ours = min_p(top_p(top_k(logits / 0.8, 50), 0.95), 0.02)
assert np.array_equal(np.isfinite(filtered), np.isfinite(ours))
assert np.allclose(np.asarray(filtered)[np.isfinite(ours)], ours[np.isfinite(ours)], rtol=1e-5)

# %% [markdown] exercise
# ## Exercises
#
# **1.** Draw by inversion, for many rows at once and without a loop over the vocabulary. A token of probability 0
# must never be drawn, not even by a dart of exactly 0.


# %% exercise
def draw_rows(chances, darts):
    """chances [b v], rows that add up to 1; darts [b] in [0, 1) -> tokens [b]."""
    raise NotImplementedError


def mark_draw_rows(answer):
    edge = np.array([[0.0, 0.25, 0.0, 0.75], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    for darts in (np.zeros(3), np.array([0.25, 0.5, 0.999]), np.array([0.2499, 0.4999, 0.5])):
        expect(
            np.asarray(answer(edge, darts)), ops.sample_ref(edge, darts), f"the tokens for darts {darts.tolist()}"
        )
    rng = np.random.default_rng(8)
    chances, darts = rng.dirichlet(np.full(50, 0.1), 200), rng.random(200)
    expect(np.asarray(answer(chances, darts)), ops.sample_ref(chances, darts), "the tokens of 200 rows")


# %% [markdown] exercise
# **2.** How many tokens does top-p keep? Equal logits share one fate: if one of them is kept, all are.


# %% exercise
def n_top_p(logits, p: float) -> int:
    """How many tokens of logits [v] are kept by top-p."""
    raise NotImplementedError


def mark_n_top_p(answer):
    for values, p in (
        ([2.0, 1.0, 0.0], 0.5),
        ([1.0, 1.0, 1.0, 1.0], 0.3),
        ([0.0, 5.0, -3.0, 4.9], 0.9),
        ([3.0, 1.0], 1.0),
    ):
        truth = int(np.isfinite(ops.keep_top_p_ref(np.array([values]), np.array([p]))).sum())
        expect(int(answer(np.array(values), p)), truth, f"n_top_p({values}, {p})")


# %% [markdown] exercise
# **3.** Entropy, `-sum(chance · log(chance))`, says how open a choice is, in nats: log(n) for n equal chances.
# Find the temperature at which it has a wanted value. (It grows with the temperature. Halve an interval, again and
# again.)


# %% exercise
def temperature_for(logits, nats: float) -> float:
    """The temperature, between 0.01 and 100, at which softmax(logits / temperature) has this entropy."""
    raise NotImplementedError


def mark_temperature_for(answer):
    rng = np.random.default_rng(9)
    for wanted in (0.3, 1.0, 2.0):
        logits = 4 * rng.normal(size=12)
        scaled = ops.scale_temperature_ref(logits[None], np.array([float(answer(logits, wanted))]))[0]
        weights = np.exp(scaled - scaled.max())
        chance = weights / weights.sum()
        entropy = -np.sum(chance[chance > 0] * np.log(chance[chance > 0]))
        expect(float(entropy), wanted, "the entropy at the temperature you gave", tolerance=1e-3)
