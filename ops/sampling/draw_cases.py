"""What drawing tokens is tried on: with given uniforms, to the bit, and with a kernel's own, by chi-square.

Given probabilities are multiples of 2^-13 and uniforms of 2^-10: products and sums are exact in float32, so even
a tie has one right answer.
"""

import numpy as np

from ..cases import Arrays, Call, Case, DistributionOp, Op
from .ref import softmax_ref
from .samplers import sample, sample_gumbel, sample_inversion
from .speculative import accept, accept_seeded
from .speculative_ref import accept_distribution_ref, accept_ref, sample_ref

STEPS, UNIFORMS = 2**12, 2**10
SEEDS = 10  # that a kernel is asked for: one that does not use its seed repeats itself


def draw_probs(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Distributions over the last axis in steps of 2^-12, with some zeros."""
    weights = rng.gamma(0.3, size=shape)
    weights[..., :1] += 1e-3
    return rng.multinomial(STEPS, weights / weights.sum(axis=-1, keepdims=True)) / STEPS


def draw_uniforms(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """From 0 to just below 1, both ends more often than by chance."""
    return np.clip(rng.integers(-UNIFORMS // 10, UNIFORMS + UNIFORMS // 10, shape), 0, UNIFORMS - 1) / UNIFORMS


def draw_sample(case: Case, rng: np.random.Generator) -> Arrays:
    """A distribution and a uniform for each row."""
    b, v = case.sizes["b"], case.sizes["v"]
    return {"probs": draw_probs((b, v), rng), "uniforms": draw_uniforms((b,), rng)}


def draw_accept(case: Case, rng: np.random.Generator) -> Arrays:
    """Drafts from q; p is another distribution, or half of it is q, so that some are kept."""
    b, m, v = (case.sizes[letter] for letter in "bmv")
    q, p = draw_probs((b, m, v), rng), draw_probs((b, m + 1, v), rng)
    near = rng.random((b, m)) < 0.7
    p[:, :m] = np.where(near[:, :, None], (q + np.roll(q, 1, axis=2)) / 2, p[:, :m])
    return {
        "draft": sample_ref(q.reshape(-1, v), rng.random(b * m)).reshape(b, m).astype(np.int32),
        "draft_probs": q,
        "target_probs": p,
        "uniforms": draw_uniforms((b, m + 1), rng),
    }


def one_hot(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Probability 1 for one token."""
    probs = arrays["probs"]
    return {**arrays, "probs": np.eye(probs.shape[1])[rng.integers(probs.shape[1], size=len(probs))]}


def greedy(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """A one-hot target, which often agrees with the draft."""
    b, places, v = arrays["target_probs"].shape
    choice = np.where(
        rng.random((b, places)) < 0.7, np.pad(arrays["draft"], ((0, 0), (0, 1))), rng.integers(v, size=(b, places))
    )
    return {**arrays, "target_probs": np.eye(v)[choice]}


def greedy_draft(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """A drafter that is certain of what it drafts."""
    return {**arrays, "draft_probs": np.eye(arrays["draft_probs"].shape[2])[arrays["draft"]]}


def same_model(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Draft and target agree: everything is kept."""
    p = arrays["target_probs"].copy()
    p[:, :-1] = arrays["draft_probs"]
    return {**arrays, "target_probs": p}


def never_drafted(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Drafts that the drafter's own distribution rules out: kept if the target knows them at all."""
    return {**arrays, "draft": np.argmin(arrays["draft_probs"], axis=2).astype(np.int32)}


DRAWING = (
    Op(
        name="sample",
        ref=sample_ref,
        forms={"sample": sample},
        required=("probs", "uniforms"),
        outputs=("tokens",),
        cases=tuple(
            Case(f"{b} x {v}", {"b": b, "v": v})
            for b, v in ((1, 1), (1, 2), (5, 3), (9, 33), (4, 127), (2, 256), (3, 1025), (1, 5000))
        ),
        draw=draw_sample,
        styles={"one-hot": one_hot},
        exact=draw_sample,
        batched=("probs", "uniforms"),
        wide=("probs", "uniforms"),
    ),
    Op(
        name="accept",
        ref=accept_ref,
        forms={"accept": accept},
        required=("draft", "draft_probs", "target_probs", "uniforms"),
        outputs=("tokens", "n_accepted"),
        cases=tuple(
            Case(f"{b} x {m} of {v}", {"b": b, "m": m, "v": v})
            for b, m, v in (
                (1, 1, 1),
                (1, 1, 2),
                (6, 1, 5),
                (16, 2, 3),
                (5, 4, 33),
                (4, 7, 129),
                (2, 16, 9),
                (1, 3, 5000),
            )
        ),
        draw=draw_accept,
        styles={
            "greedy": greedy,
            "greedy draft": greedy_draft,
            "same model": same_model,
            "never drafted": never_drafted,
        },
        exact=draw_accept,
        batched=("draft", "draft_probs", "target_probs", "uniforms"),
        wide=("draft_probs", "target_probs", "uniforms"),
    ),
)


def calls(seed: int, count: int) -> list[tuple[int, int]]:
    """A seed and a number of draws for each time a kernel is called."""
    seeds = np.random.default_rng(seed).integers(2**31, size=SEEDS)
    return [(int(one), count // SEEDS) for one in seeds]


def draw_softmax(case: Case, rng: np.random.Generator) -> Arrays:
    """One row of logits [v], a third of them impossible."""
    v = case.sizes["v"]
    logits = 2 * rng.normal(size=v)
    logits[1:][rng.random(v - 1) < 1 / 3] = -np.inf
    return {"logits": logits.astype(np.float32)}


def outcomes_of_softmax(call: Call, arrays: Arrays, seed: int, count: int) -> np.ndarray:
    """The kernel gets the same logits in every row of [b v] and must draw each row on its own."""
    tokens = [call(logits=np.tile(arrays["logits"], (n, 1)), seed=one)[0] for one, n in calls(seed, count)]
    return np.concatenate(tokens).astype(int)


def draw_speculation(case: Case, rng: np.random.Generator) -> Arrays:
    """One draft's distributions q [m v] and p [m+1 v]."""
    arrays = draw_accept(Case(case.name, {**case.sizes, "b": 1}), rng)
    return {name: arrays[name][0].astype(np.float32) for name in ("draft_probs", "target_probs")}


def outcomes_of_speculation(call: Call, arrays: Arrays, seed: int, count: int) -> np.ndarray:
    """Drafts come from q and the kernel decides; the outcome is the whole row of tokens.

    ValueError if n_accepted does not fit the tokens.
    """
    (m, v), found = arrays["draft_probs"].shape, []
    for one, n in calls(seed, count):
        tiled = {name: np.tile(x, (n, 1, 1)) for name, x in arrays.items()}
        uniforms = np.random.default_rng(one).random((n, m, 1))
        draft = np.sum(np.cumsum(arrays["draft_probs"], axis=1) <= uniforms, axis=2, dtype=np.int32)
        tokens, n_accepted = call(draft=draft, **tiled, seed=one)
        if not np.array_equal(n_accepted, (tokens >= 0).sum(axis=1) - 1):
            raise ValueError("n_accepted is not the number of tokens, less the one from the target")
        found.append(np.ravel_multi_index(tuple(tokens.T.astype(int) + 1), (v + 1,) * (m + 1)))
    return np.concatenate(found)


SAMPLERS = (
    DistributionOp(
        name="sampling",
        forms={"sample_inversion": sample_inversion, "sample_gumbel": sample_gumbel},
        required=("logits",),
        cases=tuple(Case(f"{v} tokens", {"v": v}) for v in (1, 2, 9, 65, 257)),
        draw=draw_softmax,
        sample=outcomes_of_softmax,
        probabilities=lambda arrays: softmax_ref(arrays["logits"].astype(np.float64)),
    ),
    DistributionOp(
        name="speculative_sampling",
        forms={"accept_seeded": accept_seeded},
        required=("draft", "draft_probs", "target_probs"),
        cases=tuple(Case(f"{m} of {v}", {"m": m, "v": v}) for m, v in ((1, 2), (1, 7), (2, 4), (3, 3))),
        draw=draw_speculation,
        sample=outcomes_of_speculation,
        probabilities=lambda arrays: np.ravel(accept_distribution_ref(**arrays)),
    ),
)
