"""What a user may call a kind of memory, and where one is refused."""

import pytest
import tiny

import minillm
from minillm.engine import Engine
from minillm.errors import UserError

PROMPT = [5, 9, 2, 17, 30, 5, 9, 2]


def opened(family, folder):
    tiny.unpacked(f"{family}_0", folder)
    return minillm.load(folder)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "llama",
            {"cache": "int4"},
            "cache is 'int4', expected int8, fp8, kivi4, kivi2, sinks:TOKENS or h2o:TOKENS, with 20 tokens",
        ),
        ("llama", {"cache": "sinks"}, "cache is 'sinks', expected int8"),
        ("llama", {"cache": 8}, "cache is 8, expected int8, fp8, kivi4, kivi2"),
        ("llama", {"draft": 8}, "draft is 8, expected a name or something with a method draft"),
        ("llama", {"draft": "skip:" + "9" * 5000}, "expected skip:K, K layers to leave out"),
        ("llama", {"cache": "sinks:19"}, "with 20 tokens or more"),
        ("llama", {"cache": "h2o:-20"}, "cache is 'h2o:-20'"),
        ("llama", {"cache": "h2o:20", "draft": "ngram"}, "what h2o forgets changes with drafts and batches"),
        ("llama", {"cache": "h2o:20", "exact": True}, "what h2o forgets changes with drafts and batches"),
        ("llama", {"cache": "kivi8"}, "cache is 'kivi8', expected int8"),
        ("mamba", {"cache": "int8"}, "cache is 'int8', expected none: it would change nothing in this model"),
        ("mistral", {"cache": "kivi2"}, "cache is 'kivi2', expected none: it would change nothing in this model"),
        ("deepseek_v2", {"cache": "sinks:20"}, "heads share one latent a token; use int8"),
    ],
)
def test_a_memory_that_cannot_be_had_is_refused_by_name(family, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(family, tmp_path).generate(PROMPT, **options)


def test_an_engine_refuses_a_memory_that_depends_on_who_else_is_there(tmp_path):
    lm = opened("llama", tmp_path)
    with pytest.raises(UserError, match="what h2o forgets changes with drafts and batches"):
        Engine(lm, cache="h2o:20")


@pytest.mark.usefixtures("quick_programs")
def test_a_memory_larger_than_any_text_costs_no_more_than_the_text(tmp_path):
    lm = opened("llama", tmp_path)
    options = {"max_tokens": 4, "temperature": 1.0}
    assert lm.generate(PROMPT, cache="h2o:900000000", **options).finish_reason in ("length", "stop")
    assert Engine(lm, cache="sinks:900000000", context=64).spec.budget == 64


@pytest.mark.usefixtures("quick_programs")
def test_with_sinks_a_text_may_be_longer_than_the_context(tmp_path):
    lm = opened("llama", tmp_path)
    options = {"max_tokens": lm.config.context + 50, "temperature": 1.0, "seed": 3}
    assert len(lm.generate(PROMPT, **options).tokens) <= lm.config.context - len(PROMPT)
    lm.config = type(lm.config)(**{**vars(lm.config), "eos": ()})
    assert len(lm.generate(PROMPT, cache="sinks:20", **options).tokens) == lm.config.context + 50


@pytest.mark.usefixtures("quick_programs")
def test_a_memory_that_holds_the_whole_text_says_what_the_plain_one_does(tmp_path):
    lm = opened("llama", tmp_path)
    options = {"max_tokens": 16, "temperature": 1.0, "seed": 3}
    expected = lm.generate(PROMPT, **options).tokens
    assert lm.generate(PROMPT, cache="sinks:24", **options).tokens == expected
    assert lm.generate(PROMPT, cache="h2o:24", **options).tokens == expected
    together = Engine(lm, cache="h2o:24", lossy=True)
    assert together.submit(PROMPT, **options).wait().tokens == expected


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("cache", ["int8", "kivi2", pytest.param("fp8", marks=pytest.mark.slow)])
def test_drafts_change_nothing_in_few_bits(cache, tmp_path):
    lm, prompt = opened("llama", tmp_path), PROMPT * 10
    options = {"max_tokens": 16, "temperature": 1.0, "seed": 3, "cache": cache, "exact": True}
    assert lm.generate(prompt, draft="ngram", **options).tokens == lm.generate(prompt, **options).tokens


@pytest.mark.usefixtures("quick_programs")
def test_few_bits_for_older_tokens_take_the_place_of_pages(tmp_path):
    lm = opened("llama", tmp_path)
    with pytest.raises(UserError, match="n_pages is 8, expected none: this memory has no pages"):
        Engine(lm, cache="kivi4", n_pages=8)
