"""What is said of a generation when it is over."""

import pytest

from minillm.cli.figures import closing_line, tokens_a_pass
from minillm.stream import Completion


def completed(n: int, reason: str, **speculation) -> Completion:
    return Completion("", [0] * n, 3, reason, {}, 0, speculation)


def test_a_pass_gives_one_token_without_drafts_and_the_mean_of_its_passes_with_them():
    assert tokens_a_pass(completed(9, "stop")) == 1
    drafted = completed(64, "stop", draft_passes=6, plain_steps=4, tokens_per_pass=59 / 6)
    assert tokens_a_pass(drafted) == pytest.approx(63 / 10)
    assert tokens_a_pass(completed(9, "stop", draft_passes=0, plain_steps=8, tokens_per_pass=None)) == 1


@pytest.mark.parametrize(
    ("n", "reason", "said"),
    [(40, "length", "(ended by --max-tokens)"), (39, "length", "(the context is full)"), (9, "stop", "9 tokens;")],
)
def test_the_closing_line_says_why_a_text_ends(n, reason, said):
    assert said in closing_line(completed(n, reason), 40, ["--stats"])
