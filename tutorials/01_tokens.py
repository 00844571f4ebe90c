# %% [markdown]
# # 1. From text to tokens to text
#
# How text becomes the numbers a model reads, and how numbers become text again, with nothing lost.
#
# A language model is a function that says, for a text, what is likely to come next. It computes with numbers. This
# lesson builds the two ends of it: the tokenizer, which cuts text into tokens, each with a whole number, its id,
# and the embedding, which gives each id a vector. At the end we come back the same way, from vectors to text.
#
# The model of the first six lessons is `tiny-transformer`, which comes with minillm: a transformer, as most
# language models are, with 5.6 million parameters, the numbers that training has set. It has read recipes and
# scripture, nothing else. That is small enough to look at every part, and large enough to write.

# %%
import re
from collections import Counter
from itertools import pairwise

import jax.numpy as jnp
import numpy as np

import minillm
from minillm import texts
from minillm.lessons import expect, picture
from minillm.span import Span

lm = minillm.load("tiny-transformer")

# %% [markdown]
# ## Text is bytes
#
# A file holds bytes, and UTF-8 says which bytes a character is: one for each of the characters of ASCII, two to
# four for others. So there is a tokenizer that needs no building: let every byte be a token. Its vocabulary, the
# set of its tokens, has 256 members, and nothing is lost. Below we encode a line so, and count.

# %%
line = "Crème brûlée 🍮"
as_bytes = list(line.encode("utf-8"))
print(f"{len(line)} characters, {len(as_bytes)} bytes")
print(as_bytes)
print({character: list(character.encode("utf-8")) for character in "Cè🍮"})

# %% [markdown]
# What is wrong with it? Length. A model does the same work for every token, and attention compares every token
# with every earlier one (lesson 2). A recipe has about five bytes for each word. We want tokens that are longer
# than a byte where text is ordinary, and bytes to fall back on where it is not. The model's own tokenizer does
# just that. Our line costs it dear, for its vocabulary was made from English text without a single emoji; but the
# line comes back whole.

# %%
recipe = texts.held_out("recipes")[0].text  # "held out": text that was kept from training
for text in (recipe, line):
    n_tokens = len(lm.tokenizer.encode(text, special=False))  # True puts the token <s>, "a text begins", before it
    print(f"{len(text.encode())} bytes, {len(text.split())} words, {n_tokens} tokens: {text[:23]!r} …")
    assert lm.tokenizer.decode(lm.tokenizer.encode(text, special=False)) == text
assert bytes(as_bytes).decode("utf-8") == line

# %% [markdown]
# ## Pairs that are often seen become tokens
#
# Byte-pair encoding, BPE (Sennrich et al. 2016, arXiv:1508.07909), finds longer tokens by counting. Begin with
# single characters. Find the pair of neighbours that is seen most often, make it one token, and count again. The
# list of these merges, in their order, is the whole tokenizer.
#
# We train one on the texts that come with minillm. Merges do not cross from one word to the next, nor from a word
# to the comma behind it, so it is enough to know each word and how often it occurs. A space belongs to the word
# after it and is written `▁`, to be seen.

# %%
documents = [document.text for source in texts.SOURCES for document in texts.held_out(source)]
words = Counter(word for text in documents for word in re.findall(r"▁?\w+|[^\w\s▁]+", text.replace(" ", "▁")))
print(f"{len(documents)} texts, {sum(len(text.encode()) for text in documents):,} bytes")
print(len(words), "different words; the most frequent:", words.most_common(5))


# %%
def merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every occurrence of the pair made into one, from left to right."""
    out, i = [], 0
    while i < len(symbols):
        step = 2 if tuple(symbols[i : i + 2]) == pair else 1
        out.append("".join(symbols[i : i + step]))
        i += step
    return out


split = {word: list(word) for word in words}  # each word in the tokens that there are so far
learned, sizes = [], []  # the new tokens, and of how many tokens all the texts consist after each merge
for _ in range(250):
    pairs = Counter()
    for word, symbols in split.items():
        for pair in pairwise(symbols):
            pairs[pair] += words[word]
    best = max(pairs, key=lambda pair: (pairs[pair], pair))
    split = {word: merged(symbols, best) if best[0] in symbols else symbols for word, symbols in split.items()}
    learned.append("".join(best))
    sizes.append(sum(count * len(split[word]) for word, count in words.items()))
print(learned[:20], "…", learned[-10:])

# %% [markdown]
# The first merges are frequent pairs of letters in English, the later ones are words of these texts. What a
# tokenizer was trained on is visible in it: one for source code would have no use for `▁Isra`, `▁medi` and what
# becomes of them.
#
# The model's tokenizer was trained in the same way, on the model's training text. If our loop is right, then
# nearly all that we found in a sample of the like must be among its 2,048 tokens.

# %%
vocabulary = lm.tokenizer.backend.vocabulary()  # token -> id
missing = [piece for piece in learned if piece not in vocabulary]
print(f"{len(learned) - len(missing)} of our {len(learned)} tokens are tokens of the model; not: {missing}")

assert len(vocabulary) == lm.config.v == 2048
assert len(missing) < 0.05 * len(learned)

# %% [markdown]
# ## Encoding: the same merges again
#
# To encode a new text, the merges are applied in the order in which they were learned: of all neighbours that
# could be joined, always the pair that was learned first. In the model's vocabulary the order is that of the ids,
# so "learned first" is "smallest id". Characters for which there is no token become their bytes, whose tokens are
# written `<0xC3>`. Word by word is enough again, for no token of this vocabulary has a `▁` inside. That is all;
# below it is written out, and then held to the tokenizer that the model really uses.


# %%
def encode_word(word: str) -> list[int]:
    """Token ids of a word, by merging neighbours."""
    symbols = list(word)
    while True:
        joined = [a + b for a, b in pairwise(symbols)]
        ids = [vocabulary.get(piece, len(vocabulary)) for piece in joined]
        if min(ids, default=len(vocabulary)) == len(vocabulary):
            break
        first = ids.index(min(ids))
        symbols[first : first + 2] = [joined[first]]
    known = [[s] if s in vocabulary else [f"<0x{byte:02X}>" for byte in s.encode("utf-8")] for s in symbols]
    return [vocabulary[piece] for pieces in known for piece in pieces]


def encode(text: str) -> list[int]:
    """Token ids of a text; a line break is a token by itself and never merged."""
    parts = re.findall(r"\n|▁?[^▁\n]+|▁", text.replace(" ", "▁"))
    return [i for part in parts for i in encode_word(part)]


pieces = {i: piece for piece, i in vocabulary.items()}
print([pieces[i] for i in encode(recipe[:90])])
for text in [*documents[:20], *documents[-5:], line, "", "  two  spaces ", "naïve\n\n\tcafé"]:
    assert encode(text) == lm.tokenizer.encode(text, special=False)

# %% [markdown]
# The picture shows a recipe as the model meets it, a colour a token. Compare `Oatmeal` in the title with `oatmeal`
# below: the frequent spelling is one token, the rare one three, and the two have nothing in common but what
# training has taught the model about them.


# %%
def draw_tokens(figure):
    axes = figure.subplots()
    row, column = 0, 0
    for n, i in enumerate(encode(recipe)):
        piece = pieces[i].replace("▁", " ")
        if piece == "\n" or column + len(piece) > 80:
            row, column = row + 1, 0
        if piece != "\n":
            colour = ["#cfe3f5", "#f7ddc3", "#d5ecd0", "#eed6ea"][n % 4]
            axes.broken_barh([(column, len(piece))], (row, 0.85), color=colour)
            for offset, letter in enumerate(piece):
                axes.text(column + offset + 0.5, row + 0.65, letter, fontsize=9, family="monospace", ha="center")
            column += len(piece)
    axes.set(xlim=(0, 80), ylim=(row + 1, 0))
    axes.axis("off")


picture("01_tokens", draw_tokens, width=8, height=4)

# %%
rare, frequent = (lm.tokenizer.encode(word, special=False) for word in (" Oatmeal", " oatmeal"))
print([pieces[i] for i in rare], [pieces[i] for i in frequent])
assert not set(rare) & set(frequent)

# %% [markdown]
# ## How long is a text?
#
# A larger vocabulary makes texts shorter and the model's two ends larger, since each token needs a vector of its
# own. The curve below shows what 250 merges buy on the text they were learned from. It bends: the first merges
# save the most. The large models of today have vocabularies of 30,000 to 250,000 tokens, for many languages.

# %%
n_bytes = sum(len(word.replace("▁", " ").encode()) * count for word, count in words.items())
n_tokens = sum(len(lm.tokenizer.encode(text, special=False)) for text in documents)
by_model = sum(len(text.encode()) for text in documents) / n_tokens


def draw_lengths(figure):
    axes = figure.subplots()
    axes.plot(range(1, 1 + len(sizes)), [n_bytes / size for size in sizes], label="our merges")
    axes.axhline(by_model, linestyle="--", color="C1", label="the model's 2,048 tokens")
    axes.set(xlabel="merges", ylabel="bytes a token, on average", ylim=(0, None))
    axes.legend()


picture("01_merges", draw_lengths)

# %%
print(f"bytes a token: {n_bytes / sizes[-1]:.2f} after {len(sizes)} merges, {by_model:.2f} with the model's tokens")
assert sizes[0] - sizes[50] > 5 * (sizes[199] - sizes[249])  # tokens saved by early merges, and by late ones
assert 1 < n_bytes / sizes[-1] < by_model

# %% [markdown]
# ## A token becomes a vector
#
# An id is a name, not a quantity: token 1,000 is not twice token 500. So the first thing that a model does is to
# look up a vector of `d` numbers for each id, in a matrix of shape `[v, d]`, the embedding. Written as algebra
# this is a product with a one-hot matrix, in whose rows one number is 1 and the others 0; computed it is an
# indexing, since nobody wants to multiply by all those zeros. In these lessons letters stand for dimensions, the
# same everywhere: `b` sequences, `t` tokens of each, `d` numbers in the model's vectors, `v` tokens in the
# vocabulary.
#
# minillm is written in JAX. Its `jnp` has the functions of NumPy, compiled for the processor at hand, a GPU or TPU
# as well, and computes in float32 where NumPy takes float64.

# %%
embedding = np.asarray(lm.model.embed.dense())  # [v, d]; dense() gives a weight as the plain matrix that it is
ids = encode("Recipe: Tomato Soup")
one_hot = np.zeros((len(ids), lm.config.v), np.float32)
one_hot[np.arange(len(ids)), ids] = 1
x = one_hot @ embedding  # [t, d]

in_jax = jnp.asarray(embedding)[jnp.asarray(ids)]
in_model = lm.model.embed.rows(jnp.asarray([ids]))  # [b, t, d], b = 1
print(f"{len(ids)} tokens, {x.shape[1]} numbers each; the first: {x[0, :5].round(3)} …")

assert np.array_equal(x, in_jax)
assert np.array_equal(x, in_model[0])

# %% [markdown]
# Nobody told the model what a word means. It was trained to predict the next token, and tokens that are found in
# like places have come to lie in like directions. The picture shows the cosine of the angle between the vectors of
# sixteen words, that is `x · y / (|x| |y|)`: 1 for the same direction, 0 for nothing in common. Before you look:
# which blocks do you expect?

# %%
chosen = "salt pepper sugar oil butter chicken beef fish pan pot bowl king priest father mother son".split()
rows = embedding[[vocabulary["▁" + word] for word in chosen]]
unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
cosines = unit @ unit.T


def draw_cosines(figure):
    axes = figure.subplots()
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-0.6, vmax=0.6)
    axes.set_xticks(range(len(chosen)), chosen, rotation=90)
    axes.set_yticks(range(len(chosen)), chosen)
    figure.colorbar(image, label="cosine (1 on the diagonal)", extend="max")


picture("01_cosines", draw_cosines, width=6, height=5)

# %% [markdown]
# Kitchen and people fall apart; within the kitchen oil lies near butter, the meats are together, and so are pan,
# pot and bowl.

# %%
groups = {"seasoning": slice(0, 3), "fat": slice(3, 5), "meat": slice(5, 8), "pots": slice(8, 11)}
people = slice(11, 16)
for name, group in groups.items():
    alike = np.mean(cosines[group, group][cosines[group, group] < 0.999])  # without each word with itself
    unlike = np.mean(cosines[group, people])
    print(f"mean cosine of {name}: {alike:.2f} among them, {unlike:.2f} with the five people")
    assert alike > unlike

# %% [markdown]
# ## And back
#
# Between the two ends the model turns each vector into another one, in ways that fill the next lessons. At the far
# end stands a vector `[d]` for what comes next. Its product with every row of the embedding gives `v` numbers, the
# logits: the larger, the likelier the token. Many models have a matrix of their own for this step, the head. In
# this one it is the embedding again, transposed ("tied"), which saves half a million parameters.

# %%
tokens = lm.tokenizer.encode("Recipe: Tomato Soup\n\nIngredients:\n- 200 g")
at = Span.chain(start=jnp.array([0]), n=jnp.array([len(tokens)]), t=len(tokens))  # one text, alone: lesson 5
hidden, _ = lm.model.hidden(jnp.asarray([tokens]), None, at)  # [b, t, d]
logits = np.asarray(hidden)[0, -1] @ embedding.T  # [v]
likely = np.argsort(-logits)[:5]
print({pieces[int(i)]: round(float(logits[i]), 1) for i in likely})

assert np.allclose(logits, lm.logits([tokens])[0, -1], atol=1e-3)  # float32 sums in another order differ a little

# %% [markdown]
# Logits become probabilities (by a softmax, lessons 2 and 6), and a token is drawn. Its piece is put behind the
# text, `▁` becomes a space, and bytes become characters again. One trap waits here for whoever shows text as it
# comes: a token may be a part of a character. The pudding from above has four bytes, so four tokens, and the first
# three say nothing yet.

# %%
stream = lm.tokenizer.stream()
given = [stream.push(token) for token in lm.tokenizer.encode("A 🍮!", special=False)]
print(given)

assert "".join(given) + stream.flush() == "A 🍮!"
assert given[2:5] == ["", "", ""]

# %% [markdown] exercise
# ## Exercises
#
# **1.** How many bytes of UTF-8 does a token of `text` hold on average? Use the model's tokenizer, without special
# tokens. (Two models whose vocabularies differ can be compared by what they give for a byte, not for a token.)


# %% exercise
def bytes_per_token(text: str) -> float:
    """UTF-8 bytes of text divided by the number of its tokens."""
    raise NotImplementedError


def mark_bytes_per_token(answer):
    for text in ("Recipe: Tomato Soup", "And it came about", "crème 🍮"):
        truth = len(text.encode()) / len(lm.tokenizer.encode(text, special=False))
        expect(answer(text), truth, f"bytes_per_token({text!r})")


# %% [markdown] exercise
# **2.** Write the way back by hand, from pieces of the vocabulary to text: `▁` is a space, `<0xC3>` is a byte, and
# bytes beside each other make characters.


# %% exercise
def text_of(pieces: list[str]) -> str:
    """The text that pieces such as `▁cr`, `<0xC3>`, `<0xA8>`, `me` stand for."""
    raise NotImplementedError


def mark_text_of(answer):
    names = {i: piece for piece, i in lm.tokenizer.backend.vocabulary().items()}
    for text in ("Recipe: Tomato Soup", " crème\nbrûlée", "🍮🍮 <0 x>"):
        ids = lm.tokenizer.encode(text, special=False)
        expect(answer([names[i] for i in ids]), text, f"the text of {[names[i] for i in ids]}")


# %% [markdown] exercise
# **3.** Merging is quick, but does not always find the fewest tokens. What is the smallest number of tokens of a
# vocabulary that spell a text? (A hint: once you know it for every shorter beginning of the text, you know it for
# the next.)


# %% exercise
def fewest_tokens(text: str, vocabulary: set[str]) -> int:
    """The smallest number of members of the vocabulary that, joined, are the text; all its letters are members."""
    raise NotImplementedError


def mark_fewest_tokens(answer):
    expect(answer("abab", {"a", "b", "ab", "abab"}), 1, 'fewest_tokens("abab", {a, b, ab, abab})')
    expect(answer("abcd", {"a", "b", "c", "d", "abc", "cd", "ab"}), 2, 'fewest_tokens("abcd", {…, abc, cd, ab})')
    expect(answer("aabbb", {"a", "b", "aa", "abbb"}), 2, 'fewest_tokens("aabbb", {a, b, aa, abbb})')
    text, pieces = "▁the▁tomatoes▁into▁thin▁slices", set(lm.tokenizer.backend.vocabulary())
    least = [0]
    for end in range(1, len(text) + 1):
        least.append(min(least[i] + 1 for i in range(end) if text[i:end] in pieces))
    expect(answer(text, pieces), least[-1], f"fewest_tokens({text!r}, the model's tokens)")
