"""How well a model predicts a text, and how far it is from another model.

perplexity              exp of the mean of -ln p(token | what came before), over the tokens of the text
bits_per_byte           the sum of -log2 p, divided by the bytes of the text in UTF-8; comparable between tokenizers
reference_…             the same of the other model
delta_perplexity        perplexity - reference_perplexity
ln_perplexity_ratio     ln(perplexity / reference_perplexity), the mean difference in nats a token
kld_mean, kld_p99       KL(reference || model) at each token in nats, sum_v p_v (ln p_v - ln q_v) with p of the
                        reference; its mean, and what it exceeds at one token of a hundred
same_top                at what share of the tokens both find the same token likeliest

What is scored. Every document by itself: its tokens, and the one that ends a text. It is read in windows of t
tokens. Each begins with the checkpoint's BOS or, where none is used, with the token that ends texts, so that the
first token of a document is scored too. After the first, a window scores up to t/2 tokens more. So each token is
scored once, with all that is before it in the document or at least t/2 tokens. A control token's name in a text
is text.

Confidence. Tokens near each other are not independent, so the unit is the document; if there is only one, it is
what a window scores (where topics last for many windows, the interval is too narrow). Every figure follows from
ratios of sums over units, whose standard error is that of a ratio in cluster samples (Cochran 1977, Sampling
Techniques, chapters 6 and 9A). The interval of 95 % takes Student's t with one degree of freedom less than there
are units. Two models read the same tokens, so differences are paired. The interval of the p99 comes from that of
the share of tokens above it (Woodruff 1952).

Elsewhere. llama.cpp's `llama-perplexity` cuts a file into chunks of 512 and scores the second half of each, so
half of the tokens, and no end; its ± is one standard error as if tokens were independent; its reference is stored
in 16 bits. lm-evaluation-harness scores all tokens in windows that hardly overlap, so some with a single token
before them, and no end; its bits per byte divide by the same bytes; its errors are bootstrapped over documents.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from ..errors import UserError
from ..generate import padded
from ..model import Model
from ..tokenizer import Tokenizer
from .corpus import Corpus, Window, windows
from .measures import measured
from .tally import Figure, Tally

__all__ = ["Corpus", "Figure", "Tally", "Window", "quality", "tallied", "windows"]


def quality(
    model: Model, tokenizer: Tokenizer, texts: Iterable[str], window: int, reference: Model | None = None
) -> dict[str, Figure]:
    """The figures of a model on texts, each a document; with a reference also those between the two.

    window is how many tokens either may see at once. UserError if there is nothing to score, or no finite score.
    """
    models = (model,) if reference is None else (model, reference)
    tally, held = Tally(len(models) == 2), list(texts)
    for _ in tallied(models, tokenizer, Corpus.of("the text", lambda: ([text] for text in held)), window, tally):
        pass
    return tally.figures()


def tallied(
    models: tuple[Model, ...], tokenizer: Tokenizer, corpus: Corpus, window: int, tally: Tally
) -> Iterator[Tally]:
    """Score what `tally` does not hold yet; yields it after each unit. models are one, or one and its reference."""
    for unit in islice(units(corpus, tokenizer, window), tally.units, None):
        scores = [scored(models, one, f"near byte {tally.bytes:,.0f} of {corpus.name}") for one in unit]
        tally.add(np.concatenate(scores, axis=1), sum(one.bytes for one in unit))
        yield tally
    if tally.bytes == 0:
        raise UserError(f"{corpus.name} has no text that the tokenizer knows, expected some")


def units(corpus: Corpus, tokenizer: Tokenizer, window: int) -> Iterator[list[Window]]:
    """What is taken as independent: documents, or the windows of the only one."""
    for document in corpus.documents():
        cut = windows(document, tokenizer, window)
        if corpus.count == 1:
            yield from ([one] for one in cut)
        elif whole := list(cut):
            yield whole


def scored(models: tuple[Model, ...], window: Window, where: str) -> np.ndarray:
    """float64 [1 or 4, n]: a row for each of `measures.NAMES`, for the tokens that the window scores.

    UserError says where if a score is not finite.
    """
    tokens, n = padded(window.tokens[:-1])
    targets, _ = padded(window.tokens[1:])
    scores = np.asarray(measured(models, tokens, targets, np.array([n], np.int32)), np.float64)
    scores = scores[:, n - window.scored : n]
    if not np.isfinite(scores).all():
        broken = [not np.isfinite(nll).all() for nll in scores[: len(models)]]
        which = "the reference" if broken == [False, True] else "the model"
        raise UserError(f"{which} has scores that are not finite {where}, expected numbers; its weights are broken")
    return scores
