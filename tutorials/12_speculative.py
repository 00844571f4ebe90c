# %% [markdown]
# # 12. Speculative decoding
#
# A small model guesses, a large one checks many guesses at once: the proof, and the measurement, that nothing is
# lost.
#
# Decoding waits for memory: a pass that takes in eight tokens reads the same weights as a pass over one, and costs
# not much more (lesson 5). If only the next seven tokens were known! A cheap model can guess them, and often it is
# right, for much of a text is easy. The large model then reads all guesses in one pass, and says at every place
# what *it* would have written there. Guesses are kept as far as they hold. The claim is that the text is no worse
# by it, but exactly what the large model alone would have given. In this lesson that is shown in three ways: by
# adding up all cases, by counting, and by comparing texts token by token.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.lessons import expect, picture
from minillm.ops import accept, accept_distribution_ref, accept_ref
from minillm.sampling import Sampler, new_sampler
from minillm.speculative import Tree

lm, small = minillm.load("tiny-transformer"), minillm.load("tiny-draft")
prompt = lm.tokenizer.encode("Recipe: Tomato Soup")
rng = np.random.default_rng(0)

# %% [markdown]
# ## Guess, and check
#
# `tiny-draft` has a tenth of the parameters and the same tokens. The loop: it writes `m` tokens, the draft, one
# after the other; the large model reads text and draft in one pass, which gives its own choice after each of them;
# guesses are kept up to the first that is not that choice; and there the choice itself is put, so each pass gives a
# token at least, and m + 1 at best. At first "choice" is the likeliest token, and the text must be the one that a
# pass for every token gives. `logits_of` always asks for 64 places, whatever is in them, so that it always is the
# same compiled program; why that matters is the last section.


# %%
def logits_of(model, tokens: list[int]) -> np.ndarray:
    """Logits [t, v] after each of t <= 64 tokens."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    return model.logits(row)[0, : len(tokens)]


def likeliest(logits: np.ndarray, first: int) -> np.ndarray:
    """The likeliest token after each of some places; who draws also wants to know the number of the first."""
    return logits.argmax(axis=1)


def plain(choose=likeliest, end: int = 60) -> list[int]:
    """The text, a pass for every token."""
    text = list(prompt)
    while len(text) < end:
        text.append(int(choose(logits_of(lm, text)[-1:], len(text))[0]))
    return text


def drafted(text: list[int], m: int) -> list[int]:
    """What the small model would write next."""
    guess = list(text)
    for _ in range(m):
        guess.append(int(logits_of(small, guess)[-1].argmax()))
    return guess[len(text) :]


# %% [markdown]
# Those were the parts; this is the loop.


# %%
def speculate(m: int, choose=likeliest, end: int = 60) -> tuple[list[int], list[int]]:
    """The text, m guesses a pass, and how many tokens each pass gave."""
    text, gave = list(prompt), []
    while len(text) < end:
        guess = drafted(text, min(m, end - len(text) - 1))
        choices = choose(logits_of(lm, text + guess)[len(text) - 1 :], len(text))  # one more than guesses
        n = 0
        while n < len(guess) and guess[n] == choices[n]:
            n += 1
        text += [int(token) for token in choices[: n + 1]]
        gave.append(n + 1)
    return text, gave


greedy, (guessed, gave) = plain(), speculate(4)
print(f"{len(greedy) - len(prompt)} tokens in {len(gave)} passes of the large model, which gave {gave}")
print(lm.tokenizer.decode(guessed))
assert guessed == greedy
assert sum(gave) == len(greedy) - len(prompt) > 2 * len(gave)

# %% [markdown]
# ## If tokens are drawn
#
# A text is mostly drawn, not chosen (lesson 6). Now p is what the large model draws from at a place, q what the
# small one does, and x came from q. Simply keeping x would give the small model's text. Leviathan et al. (2022,
# arXiv:2211.17192) keep it with probability `min(1, p(x) / q(x))`, and else draw from what p has more of than q:
# `max(p - q, 0)`, divided by its sum. What comes out? There are few cases, so we need not believe or measure, but
# can add them up: every x that may be drafted, kept or not, and every token that may replace it.


# %%
def outcome(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The distribution [v] of the token that comes out."""
    residual = np.maximum(p - q, 0)
    residual = residual / residual.sum()
    out = np.zeros_like(p)
    for x, drawn in enumerate(q):
        keep = min(1, p[x] / drawn)
        out[x] += drawn * keep
        out += drawn * (1 - keep) * residual
    return out


p, q = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(5), 2)  # three places, two guesses
print("p  ", p[0].round(3), "\nq  ", q[0].round(3), "\nout", outcome(p[0], q[0]).round(3))
assert np.allclose(outcome(p[0], q[0]), p[0])

# %% [markdown]
# Why is that so? x is drafted and kept with probability `q(x) min(1, p(x)/q(x)) = min(p(x), q(x))`. To p there is
# missing `max(p(x) - q(x), 0)`, and all that is missing together is just the probability that something was not
# kept. So what is drawn then fills every gap exactly. (In the first picture below: the grey part is kept, the rest
# of the blue is what the replacements fill up.)
#
# Now a whole draft. `ops.accept_distribution_ref` has the probability of every result: two guesses give one, two or
# three tokens. Where there are fewer than three, the next pass goes on, by p. Together, over all 5 · 5 · 5 texts:

# %%
results = accept_distribution_ref(q, p)  # [v + 1, v + 1, v + 1]; index 0 is an empty place
of_texts = np.zeros((5, 5, 5))
for places, probability in np.ndenumerate(results):
    tokens = tuple(place - 1 for place in places if place)
    if len(tokens) == 1:
        of_texts[tokens] += probability * np.outer(p[1], p[2])
    elif tokens:
        of_texts[tokens] += probability * (p[2] if len(tokens) == 2 else 1)
assert np.isclose(results.sum(), 1)
assert np.allclose(of_texts, np.einsum("i,j,k->ijk", *p))  # what three draws from p give

# %% [markdown]
# ## How much do two models agree?
#
# A guess is kept with the probability `sum(min(p, q))`, the part that both distributions have in common. Here it is
# for our two models, over a recipe that neither has learned from: on the left at one place where they do not agree,
# on the right along the text.

# %%
recipe = lm.tokenizer.encode(texts.held_out("recipes")[0].text)[:128]
p, q = (np.asarray(jax.nn.softmax(one.logits([recipe])[0] / 0.7, axis=1), np.float64) for one in (lm, small))
overlap = np.minimum(p, q).sum(axis=1)  # [t]
place = int(np.argmin(np.where(p.max(axis=1) < 0.5, overlap, 1)))
top = np.argsort(-np.maximum(p[place], q[place]))[:8]
names = [lm.tokenizer.decode([one]).replace("\n", "↵") for one in recipe]


def draw_overlap(figure):
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    y = np.arange(8)
    left.barh(y - 0.2, p[place, top], 0.4, label="p, the large model")
    left.barh(y + 0.2, q[place, top], 0.4, label="q, the small one")
    for side in (-0.2, 0.2):
        left.barh(y + side, np.minimum(p, q)[place, top], 0.4, color="grey", label="both" if side > 0 else None)
    left.set_yticks(y, [repr(lm.tokenizer.decode([one])) for one in top], fontsize=8)
    left.invert_yaxis()
    left.set_title("after " + repr(lm.tokenizer.decode(recipe[place - 5 : place + 1])), fontsize=9)
    left.set_xlabel("probability")
    left.legend(fontsize=8)
    right.bar(range(44), overlap[:44], color="grey")
    right.axhline(overlap.mean(), linestyle="--", color="C3", label=f"mean of the recipe: {overlap.mean():.2f}")
    right.set_xticks(range(44), names[1:45], rotation=90, fontsize=8)
    right.set(xlim=(-1, 44), ylabel="chance that the guess here is kept")
    right.legend(fontsize=8, loc="lower left")


picture("12_overlap", draw_overlap, width=11, height=4)

# %% [markdown]
# And the program? `ops.accept` judges a batch of drafts at once. At the place on the left we let the small model
# draw 2,000 guesses and count what comes out. Counts vary by about the root of their number, so we ask whether any
# is off by more than five times that.

# %%
n = 2000
guesses = rng.choice(len(q[place]), n, p=q[place] / q[place].sum()).astype(np.int32)
wide_q, wide_p = (jnp.broadcast_to(jnp.asarray(one[place], jnp.float32), (n, 1, len(one[place]))) for one in (q, p))
uniforms = jnp.asarray(rng.random((n, 2)), jnp.float32)
tokens, kept = accept(jnp.asarray(guesses)[:, None], wide_q, jnp.tile(wide_p, (1, 2, 1)), uniforms)
counts, expected = np.bincount(np.asarray(tokens)[:, 0], minlength=wide_p.shape[2]), n * p[place]
print(f"kept: {kept.mean():.3f} of the guesses, by the formula {overlap[place]:.3f}")
for token in top:
    print(f"{lm.tokenizer.decode([token])!r:>10} came {counts[token]:>4} times, expected {expected[token]:>4.0f}")
assert abs(kept.mean() - overlap[place]) < 5 * np.sqrt(0.25 / n)
assert np.all(np.abs(counts - expected)[top] < 5 * np.sqrt(expected[top] + 1))

# %% [markdown]
# ## The dice of a place
#
# One thing is lost after all: the text is as good as before, but for one seed it is another text with every length
# of the draft, since dice are thrown for other things. minillm therefore uses another rule. The dice belong to the
# place in the text (lesson 6): what is drawn at place 17 depends on the seed, 17 and p, and on nothing else. The
# large model draws after every guess as plain generation would there, and keeps the next guess if it *is* what was
# drawn. So the text is that of plain generation by construction, whatever was guessed, and a test can compare
# tokens in place of distributions.
#
# It is Leviathan's rule for a drafter that is certain: with q = 1 for its x, x is kept with probability p(x), and
# the residual is p without x. We add up the cases of "draw y from p, keep if y = x" and hold them to the op.

# %%
p5 = rng.dirichlet(np.ones(5), 2)
certain = np.eye(5)[[3]]  # q [m v]: the guess is token 3
by_equality = np.zeros((6, 6))
for y, probability in enumerate(p5[0]):
    if y == 3:
        by_equality[y + 1, 1:] = probability * p5[1]  # kept, and one more token
    else:
        by_equality[y + 1, 0] = probability
assert np.allclose(by_equality, accept_distribution_ref(certain, p5))

# %% [markdown]
# What does it cost? The small model now gives its likeliest token instead of drawing one, and that is kept with
# probability p(x), where before it was the overlap. Over the recipe from above the two hardly differ. Then we let
# the loop of the first section draw, with the sampler that generates text: two seeds, three lengths of the draft.

# %%
likeliest_guess = p[np.arange(len(p)), q.argmax(axis=1)]
print(f"kept: {overlap.mean():.3f} if guesses are drawn, {likeliest_guess.mean():.3f} if they are the likeliest")


draw = jax.jit(Sampler.__call__)


def by_seed(seed: int):
    """Draws as generation does: the number of a place and the seed decide."""
    sampler = new_sampler(temperature=0.7, seed=seed)

    def choose(logits: np.ndarray, first: int) -> np.ndarray:
        return np.array([draw(sampler, row[None], np.array([first + i]), None)[0] for i, row in enumerate(logits)])

    return choose


for seed in (1, 2):
    alone = plain(by_seed(seed), end=40)
    lengths = {m: speculate(m, by_seed(seed), end=40) for m in (1, 3, 7)}
    print(
        f"seed {seed}: 34 tokens in",
        ", ".join(
            f"{len(gave)} passes of {m} {'guesses' if m > 1 else 'guess'}" for m, (_, gave) in lengths.items()
        ),
    )
    assert all(text == alone for text, _ in lengths.values())

# %% [markdown]
# ## In the model, to the bit
#
# In `lm.generate` all this is one program, `minillm/speculative/verify.py`: the pass, the draws, what is kept, and
# taking back from memory what is not. A drafter is anything with a method `draft` that gives a `Tree`: guesses, and
# for each the place of the one before it among them, -1 for the first. So guesses may branch; here they are a
# chain. We write two drafters: the small model by our own function, and one that babbles. With `exact=True` the
# tokens must be the same: the babbler makes the text slow, and no worse.


# %%
class Small:
    """The small model, up to four tokens at a time."""

    def draft(self, text: list[int], most: int) -> Tree:
        guess = drafted(text, min(most, 4)) if len(text) < 60 else []
        return Tree(guess, [*range(-1, len(guess) - 1)])


class Babbler:
    """Any tokens."""

    def draft(self, text: list[int], most: int) -> Tree:
        guess = np.random.default_rng(len(text)).integers(0, 2048, most).tolist()
        return Tree(guess, [*range(-1, len(guess) - 1)])


texts_of, options = {}, {"max_tokens": 54, "temperature": 0.7, "seed": 3, "exact": True}
for name, drafter in {"nobody": None, "small": Small(), "babbler": Babbler()}.items():
    done = lm.generate(prompt, draft=drafter, **options)
    texts_of[name] = done.tokens
    passes = done.speculation["draft_passes"] + done.speculation["plain_steps"]
    print(f"{name:>8}: {len(done.tokens)} tokens in {passes} passes")
assert all(tokens == texts_of["nobody"] for tokens in texts_of.values())

# %% [markdown]
# Who wrote it? Green are the tokens that were guessed and kept, orange the last one of each pass, which the large
# model gave itself. It is the picture of the whole idea: what follows from what stands there already, is guessed;
# where a text decides something, the model that knows more has to be asked.


# %%
def draw_authors(figure):
    axes = figure.subplots()
    axes.set(xlim=(0, 74), ylim=(3, 0))
    axes.axis("off")
    row, column, place = 0, 0, len(prompt)
    for gave in passes_of:
        for i in range(gave):
            piece = lm.tokenizer.decode([written[place]]).replace("\n", "↵")
            if column + len(piece) > 74:
                row, column = row + 1, 0
            axes.broken_barh([(column, len(piece))], (row, 0.85), color="#98df8a" if i < gave - 1 else "#ffbb78")
            for offset, letter in enumerate(piece):
                axes.text(column + offset + 0.5, row + 0.6, letter, fontsize=9, family="monospace", ha="center")
            column, place = column + len(piece), place + 1


written, passes_of = speculate(4, by_seed(3))
picture("12_authors", draw_authors, width=10, height=1)

# %%
assert written[len(prompt) :] == texts_of["small"][: len(written) - len(prompt)]

# %% [markdown]
# ## Exact against fast
#
# Why "to the bit", and why only with `exact=True`? A sum in floating point depends on the order of its terms, and
# the order on the shape of the program (lesson 10). One token in a pass, or eight, are two programs, whose logits
# differ in the last digits. That moves a text only where two tokens are so near to one another that those digits
# decide. So we measure both: by how much logits differ between programs, and how far the first choice lies above
# the second.

# %%
whole = lm.logits([recipe])[0]  # by the program for 128 places
begin = lm.logits([recipe[:16]])[0]  # by the one for 16
rounding = np.abs(whole[:16] - begin).max()
rounding = max(rounding, np.spacing(np.abs(whole).max()))  # at least the last digit of the largest logit
best = np.sort(whole, axis=1)
gap = best[:, -1] - best[:, -2]
print(f"programs differ by {rounding:.1e}; the closest race of {len(gap)} was won by {gap.min():.1e}")


def draw_gaps(figure):
    axes = figure.subplots()
    axes.hist(np.log10(gap), bins=40)
    axes.axvline(np.log10(2 * rounding), color="C3", linestyle="--", label="twice the difference of two programs")
    axes.set(xlabel="log10 of the gap: largest logit less the second largest", ylabel="places in the text")
    axes.legend()


picture("12_gaps", draw_gaps)

# %% [markdown]
# Between the line and the first bar there is room for many texts, though not for all. In exact mode everything, the
# prompt, single tokens and drafts, goes through one program of eight places, and the question does not arise; it
# costs some speed. The fast mode is the default, and what it promises is this: the same text, unless two tokens are
# nearer than rounding reaches.

# %%
safe = gap > 2 * rounding
assert np.array_equal(whole.argmax(axis=1)[:16][safe[:16]], begin.argmax(axis=1)[safe[:16]])
fixed = greedy[len(prompt) :]  # everything in the program of 64 places
fast = lm.generate(prompt, max_tokens=len(fixed), temperature=0.0).tokens  # a program for the prompt, one for steps
same = next((i for i, pair in enumerate(zip(fast, fixed, strict=True)) if pair[0] != pair[1]), len(fixed))
best = np.sort(lm.logits([prompt + fixed])[0, len(prompt) - 1 :], axis=1)
print(f"two ways to the likeliest text agree for {same} of {len(fixed)} tokens")
assert same == len(fixed) or best[same, -1] - best[same, -2] < 4 * rounding

# %% [markdown] exercise
# ## Exercises
#
# **1.** Leviathan's rule for one place. `u` decides whether x is kept, `u_next` where in the residual the other
# token is drawn: the first one at which the sum of the residual so far exceeds `u_next` times its whole.


# %% exercise
def accept_one(p, q, x: int, u: float, u_next: float) -> int:
    """Distributions p, q [v], the guess x from q, uniforms u and u_next in [0, 1) -> the token that comes out."""
    raise NotImplementedError


def mark_accept_one(answer):
    rng = np.random.default_rng(4)
    for _ in range(60):
        p, q, (u, u_next) = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6)), rng.random(2)
        x = int(rng.choice(6, p=q))
        tokens, _ = accept_ref(np.array([[x]]), q[None, None], np.stack([p, p])[None], np.array([[u, u_next]]))
        at = f"with p = {p.round(2)}, q = {q.round(2)}, x = {x}, u = {u:.2f}, u_next = {u_next:.2f} the token"
        expect(int(answer(p, q, x, u, u_next)), int(tokens[0, 0]), at)


# %% [markdown] exercise
# **2.** Somebody finds a simpler rule: keep x if p(x) >= q(x); if not, draw from p. It sounds right, since p is
# asked wherever the guess was too bold. Which distribution does it give? (It is not p: the residual matters.)


# %% exercise
def simpler_rule(p, q):
    """Distributions p, q [v] -> the distribution [v] of the token that comes out."""
    raise NotImplementedError


def mark_simpler_rule(answer):
    half = np.array([0.5, 0.5])
    expect(np.asarray(answer(half, half), np.float64), half, "the outcome for p = q")
    for seed in range(3):
        p, q = np.random.default_rng(seed).dirichlet(np.ones(4), 2)
        truth = sum(q[x] * (np.eye(4)[x] if p[x] >= q[x] else p) for x in range(4))
        expect(np.asarray(answer(p, q), np.float64), truth, f"the outcome for p = {p.round(2)}, q = {q.round(2)}")
