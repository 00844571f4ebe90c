"""Walking a lesson: what is shown, what the keys do, what survives a cell that fails or is stopped."""

import io

import pytest
from rich.console import Console

from minillm.lessons.lesson import read_lesson
from minillm.lessons.values import description, outline
from minillm.lessons.walk import Walk


def walked(lesson, *typed: str) -> tuple[Walk, str]:
    """A walk in which so much is typed and then left, and what was shown."""
    keys, screen = iter(typed), io.StringIO()

    def ask(prompt: str) -> str:
        try:
            return next(keys)
        except StopIteration:
            raise EOFError from None

    walk = Walk(lesson, Console(file=screen, width=90, highlight=False), ask)
    walk.go()
    return walk, screen.getvalue()


def test_a_lesson_is_read_in_steps_of_prose_and_code(lesson):
    assert [(bool(step.prose), bool(step.code)) for step in lesson.steps] == [(True, True)] * 4
    assert (lesson.number, lesson.title, lesson.promise) == (1, "A small lesson", "How a test looks at a walk.")


def test_enter_runs_a_cell_and_shows_output_and_new_shapes(lesson, capsys):
    walk, shown = walked(lesson, "", "")
    assert "twice: 10.0" in capsys.readouterr().out
    assert "x  float64 [2, 3]" in shown
    assert "Some bold numbers." in shown  # rendered
    assert walk.taken == 2


def test_enter_to_the_end_names_the_exercises_but_not_how_they_are_marked(lesson):
    walk, shown = walked(lesson, *[""] * 4)
    assert walk.taken == len(lesson.steps)
    assert "raise NotImplementedError" in shown
    assert "mark_add" not in shown
    assert "minillm tutorial 1 --stubs" in shown


def test_b_goes_back_and_enter_runs_again(lesson):
    walk, _ = walked(lesson, "", "", "", "b", "")
    assert walk.taken == 3
    assert vars(walk.module)["runs"] == 2
    assert walked(lesson, "b", "b")[0].taken == 0


def test_i_shows_a_value_and_survives_nonsense(lesson):
    _, shown = walked(lesson, "", "", "i x", "i x[0, 1]", "i nothing", "i x +", "i x.sum(")
    assert "float64 [2, 3]" in shown
    assert "from 0 to 5, mean 2.5" in shown
    assert "NameError" in shown
    assert shown.count("SyntaxError") == 2


def test_q_leaves_at_once_and_an_unknown_key_repeats_the_keys(lesson):
    walk, shown = walked(lesson, "", "what?", "q", "")
    assert walk.taken == 1
    assert shown.count("b back") == 3


def test_a_cell_that_fails_says_where_and_is_not_taken(small_lesson):
    lesson = small_lesson(("(3, 3)", "(4, 4)"))
    walk, shown = walked(lesson, "", "", "")
    assert walk.taken == 2
    assert "AssertionError" in shown
    line = 1 + lesson.path.read_text().splitlines().index("assert y.shape == (4, 4)")
    assert f"line {line}:" in shown.replace("\n", " ")


def test_ctrl_c_in_a_cell_comes_back_to_the_prompt(small_lesson):
    lesson = small_lesson(("y = x.T @ x", "raise KeyboardInterrupt"))
    walk, shown = walked(lesson, "", "", "", "i x")
    assert walk.taken == 2
    assert "stopped; Enter runs it again" in shown
    assert "from 0 to 5" in shown


def test_ctrl_c_at_the_prompt_leaves(lesson):
    def ask(prompt: str) -> str:
        raise KeyboardInterrupt

    walk = Walk(lesson, Console(file=io.StringIO()), ask)
    walk.go()
    assert walk.taken == 0


def test_steps_taken_earlier_are_taken_again_without_a_word(lesson, capsys):
    walk = Walk(lesson, Console(file=io.StringIO()), lambda prompt: "q")
    walk.go_to(2)
    assert capsys.readouterr().out == ""
    assert vars(walk.module)["x"].shape == (2, 3)


def test_running_all_of_it_raises_what_goes_wrong(small_lesson):
    lesson = small_lesson(("(3, 3)", "(4, 4)"))
    with pytest.raises(AssertionError):
        Walk(lesson, Console(file=io.StringIO()), input).run_all()


def test_a_line_that_begins_no_cell_is_named(tmp_path):
    path = tmp_path / "02_odd.py"
    path.write_text("# %% [markdwn]\n")
    with pytest.raises(ValueError, match=r"02_odd.py, line 1: '# %% \[markdwn\]' begins no cell"):
        read_lesson(path)


def test_values_are_described_in_a_few_lines():
    import jax.numpy as jnp
    import numpy as np

    from minillm.quant import Dense

    assert outline(jnp.zeros((2, 3), jnp.bfloat16)) == "bfloat16 [2, 3]"
    assert description(np.array([1.0, np.nan, np.inf]))[1] == "from 1 to 1, mean 1, 2 not finite"
    assert description(np.zeros((0, 2)))[0] == "float64 [0, 2]"
    assert description(Dense(jnp.zeros((2, 3))))[0] == "Dense[2, 3]"
    assert "  array: float32 [2, 3]" in description(Dense(jnp.zeros((2, 3))))
    assert outline([np.zeros(2)] * 20).endswith("float64 [2], …")
    assert len(outline("x" * 999)) == 200
