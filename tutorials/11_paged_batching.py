# %% [markdown]
# # 11. Paged KV and continuous batching
#
# Many requests at once: memory in pages, rows of a batch that never wait, and texts that begin alike read once.
#
# A decoding step serves sixteen texts in far less than sixteen times the time of one (lesson 5). So a server wants
# many texts in each step. Two things are in the way: nobody knows how long a text will get, so how much memory to
# put aside for it? And texts end at different times, so what becomes of their rows in the batch? The answers are
# those of an operating system: pages, and a scheduler. First the pages.

# %%
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.cache import StateSpec
from minillm.cache.pool import PagePool
from minillm.engine import Engine
from minillm.lessons import expect, picture
from minillm.ops import attention_ref, paged_attention, paged_attention_ref
from minillm.span import Span

lm = minillm.load("tiny-transformer")
rng = np.random.default_rng(0)
COLOURS = ["#8fb8de", "#f4a7a0", "#9fd39a", "#e6d67a", "#b9e3f0", "#d3a9d6", "#cccccc"]  # a colour a text

# %% [markdown]
# ## Pages
#
# If every text is given room for the longest that is allowed, most of it stays empty. If each is given little, it
# must move when it grows. So memory is cut into pages of `o` rows, a row for the key and value of one token, and a
# text takes a page when it needs one, wherever that lies (Kwon et al. 2023, arXiv:2309.06180). A table says where:
# token i of a text is in row `i % o` of page `table[i // o]`. Four texts of different length write their tokens by
# turns, as they do when they are decoded together.

# %%
o, lengths = 4, [13, 6, 22, 9]
memory = np.full((16, o, 2, 8), np.nan)  # p o g k: pages, rows, heads, channels; NaN where nothing was written
owner = np.full((16, o), -1)
free, tables = list(range(16)), [[] for _ in lengths]
written = [rng.normal(size=(n, 2, 8)) for n in lengths]  # keys [s g k]; values would lie in pages of their own
for i in range(max(lengths)):
    for b in range(len(lengths)):
        if i < lengths[b]:
            if i % o == 0:  # the page before is full
                tables[b].append(free.pop(0))
            memory[tables[b][i // o], i % o] = written[b][i]
            owner[tables[b][i // o], i % o] = b
print("tables:", tables)


def draw_pages(figure):
    titles = "room for 32 tokens each", "16 pages of 4 tokens (between the lines)"
    for axes, title in zip(figure.subplots(1, 2), titles, strict=True):
        axes.set(title=title, xlim=(0, 32), ylim=(4.2, -0.2))
        axes.axis("off")
        for place in range(128):
            row, column = divmod(place, 32)
            if title.startswith("room"):
                b = row if column < lengths[row] else -1
            else:
                b = owner.reshape(-1)[place] if place < owner.size else None
            colour = "none" if b is None else "#eeeeee" if b < 0 else COLOURS[b]
            axes.broken_barh([(column, 0.9)], (row, 0.8), color=colour)
        if not title.startswith("room"):
            axes.vlines(range(0, 33, o), 0, 1.85, color="black", linewidth=0.8)


picture("11_pages", draw_pages, width=10, height=1.9)

# %% [markdown]
# A colour is a text, and grey is empty. Left, three fifths of the room are kept for tokens that may never come.
# Right, nothing is empty but the ends of last pages, and a page that nobody has taken. Attention only has to find
# its rows: it looks up the table, and from there on all is as it was. In `ops` the tables of a batch are one array;
# where a table is shorter it is filled up with anything. The library lends its pages from a `PagePool`.

# %%
found = [memory[tables[b]].reshape(-1, 2, 8)[: lengths[b]] for b in range(4)]  # s g k
assert all(np.array_equal(found[b], written[b]) for b in range(4))

table = np.zeros((4, 6), np.int32)
for b in range(4):
    table[b, : len(tables[b])] = tables[b]
q = rng.normal(size=(4, 1, 2, 8))  # b t h k: a query each, of its last token
y = paged_attention_ref(q, memory, memory, table, np.array(lengths))  # values are the keys, for once
for b in range(4):
    assert np.allclose(y[b], attention_ref(q[b : b + 1], written[b][None], written[b][None])[0])
pool, lent = PagePool(16, o), [[] for _ in lengths]
assert all(pool.extend(pages, n) for pages, n in zip(lent, lengths, strict=True))  # False if no page were left
assert [len(pages) for pages in lent] == [len(pages) for pages in tables]
assert len(pool.free) == len(free) == 1

# %% [markdown]
# ## Page by page
#
# In JAX the look-up is an index by an array. To copy all pages side by side first would need that room once more;
# folding in one page at a time, with the online softmax of the last lesson, needs none. What was never written may
# hold anything, here NaN, and must be taken out by `where`: zero times NaN is NaN. And as pages are only names, we
# may rename them all, memory and tables alike, and nothing changes.


# %%
def by_page(q, pages, table, lengths):
    """A query each, q [b h k], over pages [p o h k] that hold keys and values in one -> y [b h k]."""
    b, h, k = q.shape

    def fold(i, running):
        peak, total, y = running
        rows = pages[table[:, i]]  # b o h k
        real = (i * pages.shape[1] + jnp.arange(pages.shape[1]) < lengths[:, None])[..., None]  # b o 1
        rows = jnp.where(real[..., None], rows, 0)
        score = jnp.where(real, jnp.einsum("bhk,bohk->boh", q, rows) / np.sqrt(k), -jnp.inf)
        higher = jnp.maximum(peak, score.max(axis=1))
        shrink, weight = jnp.exp(peak - higher), jnp.exp(score - higher[:, None])
        y = y * shrink[..., None] + jnp.einsum("boh,bohk->bhk", weight, rows)
        return higher, total * shrink + weight.sum(axis=1), y

    start = jnp.full((b, h), -jnp.inf), jnp.zeros((b, h)), jnp.zeros((b, h, k))
    _, total, y = jax.lax.fori_loop(0, table.shape[1], fold, start)
    return y / total[..., None]


arrays = [jnp.asarray(array, jnp.float32) for array in (q, memory)]
y_pages = by_page(arrays[0][:, 0], arrays[1], jnp.asarray(table), jnp.asarray(lengths))
renamed = rng.permutation(16).astype(np.int32)  # page i is now called renamed[i]
y_renamed = paged_attention(
    arrays[0], *[arrays[1].at[renamed].set(arrays[1])] * 2, jnp.asarray(renamed[table]), jnp.asarray(lengths)
)
assert np.allclose(y_pages, y[:, 0], atol=1e-5)
assert np.allclose(y_renamed, y, atol=1e-5)

# %% [markdown]
# ## In the model
#
# A model's memory of kind "paged" is an array of pages in every attention block, and the table travels in the
# `Span`, once for all blocks. Two recipes of different length are read in one batch, the second padded to the
# length of the first; `n` says how many tokens of a row are real. Their logits must be those of each alone.

# %%
first, second = (lm.tokenizer.encode(document.text) for document in texts.held_out("recipes")[:2])
first, second = first[:60], second[:41]
spec = StateSpec(slots=2, max_len=128, kind="paged", page_size=16, n_pages=10)
pages = PagePool(spec.n_pages, spec.page_size)
held = [[], []]
assert all([pages.extend(held[0], 64), pages.extend(held[1], 48)])


def tables_of(*lists: list[int]) -> jax.Array:
    """Page tables as the Span has them, i32 [b, 8]."""
    return jnp.asarray([[*pages, *[0] * (8 - len(pages))] for pages in lists], jnp.int32)


@jax.jit
def read(model, state, tokens, start, n, pages):
    """Take in n [b] of tokens i32 [b, t] at positions start [b] … -> logits [b, t, v] and the memory after."""
    b, t = tokens.shape
    at = Span.chain(start, n, t, pages=pages)
    logits, pending = model(tokens, state, at)
    return logits, model.commit(pending, at, jnp.broadcast_to(jnp.arange(t), (b, t)), n)


tokens = jnp.asarray([first, second + [0] * (60 - len(second))])
state = lm.model.init_state(spec)
logits, state = read(lm.model, state, tokens, jnp.array([0, 0]), jnp.array([60, 41]), tables_of(*held))
print("the keys of a block, [p, o, g, k]:", list(state[0].keys.shape), "- tables:", held)
assert np.allclose(logits[0], lm.logits([first])[0], atol=1e-3)
assert np.allclose(logits[1, :41], lm.logits([second])[0], atol=1e-3)

# %% [markdown]
# ## Texts that begin alike
#
# A third request comes, and its first 32 tokens are those of the first recipe: the same instructions, the same
# conversation so far. Keys and values of a token depend only on what is before it, so they lie there already, in
# two whole pages. Its table begins with these two, and goes on with pages of its own; it reads from token 32 on.
# Nobody writes into a full page, so sharing needs no care but one: a page is free only if its last holder has given
# it back, so holders are counted.

# %%
third = first[:32] + second[1:21]
shared = held[0][:2]
pages.share(shared)
held.append([*shared])
assert pages.extend(held[2], len(third))
print("its table:", held[2], "- holders of each page:", pages.holders)
rows = jnp.asarray([third[32:] + [0] * 40, [0] * 60])  # the program of before; its other row has no tokens now
logits, state = read(lm.model, state, rows, jnp.array([32, 0]), jnp.array([20, 0]), tables_of(held[2], []))
print(f"read {len(third) - 32} of {len(third)} tokens")
pages.take_back(held[0])
assert [pages.holders[page] for page in shared] == [1, 1]  # the first recipe has gone, its beginning has not
assert np.allclose(logits[0, :20], lm.logits([third])[0, 32:], atol=1e-3)

# %% [markdown]
# `minillm/cache/prefix.py` keeps a tree of all beginnings that are still in memory, and finds the longest that fits
# (Zheng et al. 2023, arXiv:2312.07104). If a text departs from it within a page, that page is copied.
#
# ## Rows that never wait
#
# Now the batch. The simple way is to take three requests, decode until all have ended, and take the next three:
# rows whose text has ended go on for nothing. Continuous batching (Yu et al. 2022, "Orca") looks after every single
# step whether a row has become free, and gives it to whoever waits. How many steps does that save? We count, for
# seven requests and three rows.

# %%
wanted = [60, 14, 40, 20, 70, 25, 30]  # tokens of each request


def in_batches(wanted: list[int], rows: int) -> int:
    """Steps if the next batch begins when the last text of one has ended."""
    return sum(max(wanted[first : first + rows]) for first in range(0, len(wanted), rows))


def continuous(wanted: list[int], rows: int) -> list[list[int]]:
    """By step: which request each row serves, -1 for none."""
    left, waiting, serves, steps = list(wanted), deque(range(len(wanted))), [-1] * rows, []
    while True:
        serves = [one if one >= 0 and left[one] else waiting.popleft() if waiting else -1 for one in serves]
        if max(serves) < 0:
            return steps
        steps.append(serves)
        for one in serves:
            if one >= 0:
                left[one] -= 1


steps = continuous(wanted, 3)
print(f"{sum(wanted)} tokens: {in_batches(wanted, 3)} steps in batches of three, {len(steps)} if rows never wait,")
print(f"{-(-sum(wanted) // 3)} if all three were busy to the end")
assert sum(wanted) / 3 <= len(steps) < in_batches(wanted, 3)

# %% [markdown]
# `minillm.engine.Engine` does it with the model. Every step of it gives each request that has a row a token, and it
# has fewer pages than all might need: when there are too few, the youngest request gives its own back, waits, and
# later reads its text again. With `exact=True` prompts and single tokens go through one program, in which a step
# takes in up to eight tokens of a text; why this makes tokens equal to the bit is said in lesson 12. We note after
# each step who has which row, and how many pages are in use.

# %%
titles = "Tomato Soup,Oatmeal with Apple,Potato Salad,Chicken with Rice,Pancakes,Apple Pie,Fish Stew".split(",")
sizes = {"max_batch": 3, "n_pages": 16, "page_size": 8, "context": 128, "share": False, "exact": True}


def submit(engine: Engine, i: int):
    """Request i: its own title, its own seed."""
    return engine.submit("Recipe: " + titles[i], max_tokens=wanted[i], temperature=0.7, seed=i)


engine = Engine(lm, **sizes)
requests = [submit(engine, i) for i in range(7)]
rows, used = [], []
while engine.step():
    rows.append([-1 if one is None else requests.index(one) for one in engine.rows])
    used.append(engine.pool.n_pages - len(engine.pool.free))
print(f"{len(rows)} steps; sent away for want of pages:", [titles[i] for i in range(7) if requests[i].preempted])


def draw_schedule(figure):
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for step, row in enumerate(rows):
        for place, one in enumerate(row):
            if one >= 0:
                above.broken_barh([(step, 1)], (place - 0.4, 0.8), color=COLOURS[one])
                if step == 0 or rows[step - 1][place] != one:
                    above.text(step + 0.5, place, titles[one], fontsize=7, va="center")
    above.set(yticks=range(3), ylabel="row of the batch", ylim=(2.5, -0.5))
    below.step(range(len(used)), used, where="post", color="black")
    below.axhline(16, color="C3", linestyle="--", label="all there are")
    below.set(xlabel="step", ylabel="pages in use", ylim=(0, 18), xlim=(0, len(rows)))
    below.legend(fontsize=8, loc="lower right")


picture("11_schedule", draw_schedule, width=10, height=3.6)

# %% [markdown]
# Follow Apple Pie: near step 58 the soup needs its ninth page and the pie its fourth, one is free, and the pie,
# which came last, has to go. When the soup has ended it is back, in another row: it reads its 18 tokens, eight a
# step, and goes on. (Elsewhere the white gaps are the steps in which a text ended.)
#
# Does it matter to a text who else is there? It must not: the same seven, each alone in an engine of the same
# sizes, have to say the same, token for token, whoever sat beside them and whether they were sent away.

# %%
alone = Engine(lm, **sizes)
assert all(len(requests[i].tokens) == wanted[i] for i in range(7))
assert [titles[i] for i in range(7) if requests[i].preempted] == ["Apple Pie"]
for i in range(7):
    assert submit(alone, i).wait().tokens == requests[i].tokens

# %% [markdown] exercise
# ## Exercises
#
# **1.** Write the keys of new tokens into pages. What is there already must stay.


# %% exercise
def append(pages, table, start: int, new):
    """pages [p o k], a text's table, start tokens of it written so far, new [t k] -> pages with the new rows."""
    raise NotImplementedError


def mark_append(answer):
    rng = np.random.default_rng(5)
    for start, t in ((0, 3), (3, 6), (7, 1)):
        before, table, new = rng.normal(size=(6, 4, 2)), [4, 1, 3], rng.normal(size=(t, 2))
        truth = before.copy()
        for i in range(t):
            truth[table[(start + i) // 4], (start + i) % 4] = new[i]
        expect(np.asarray(answer(before.copy(), table, start, new)), truth, f"pages with start={start}, t={t}")


# %% [markdown] exercise
# **2.** Large pages mean short tables, small ones mean little waste. Which part of the rows that are lent to texts
# holds no token?


# %% exercise
def wasted(lengths, page_size: int) -> float:
    """Texts of so many tokens, in pages -> the empty part of all rows lent to them."""
    raise NotImplementedError


def mark_wasted(answer):
    for page_size in (1, 4, 16):
        lengths = [13, 6, 22, 9, 16]
        pool, lent = PagePool(100, page_size), [[] for _ in range(5)]
        for pages, n in zip(lent, lengths, strict=True):
            pool.extend(pages, n)
        rows = page_size * sum(map(len, lent))
        expect(float(answer(lengths, page_size)), 1 - sum(lengths) / rows, f"wasted({lengths}, {page_size})")


# %% [markdown] exercise
# **3.** When does each request end? Requests come in order, a row that becomes free is given to the next one in the
# following step, rows with lower numbers first; steps are counted from 1.


# %% exercise
def ends(wanted, rows: int) -> list[int]:
    """Tokens that each request wants -> the step in which it gets its last one, with continuous batching."""
    raise NotImplementedError


def mark_ends(answer):
    expect(list(answer([3, 1, 2], 2)), [3, 1, 3], "ends([3, 1, 2], 2)")
    expect(list(answer([5, 5, 1], 3)), [5, 5, 1], "ends([5, 5, 1], 3)")
    expect(list(answer([4, 2, 2, 3, 1], 1)), [4, 6, 8, 11, 12], "ends([4, 2, 2, 3, 1], 1)")
    expect(list(answer([60, 14, 40, 20, 70, 25, 30], 3)), [60, 14, 40, 34, 104, 65, 90], "ends of the lesson's")
