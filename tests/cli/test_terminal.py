"""What a terminal shows while something takes time."""

import sys

import pytest

import minillm
from minillm.cli import generate, main, terminal
from minillm.cli.terminal import meter

pytestmark = pytest.mark.usefixtures("quick_programs")


def test_a_meter_fills_up_and_has_one_length():
    lines = [meter("reading weights", done, 200_000_000) for done in (0, 95_000_000, 200_000_000)]
    assert lines[0] == f"reading weights {'╌' * 20} 0 of 200 MB"
    assert lines[1] == f"reading weights {'━' * 9}{'╌' * 11} 95 of 200 MB"
    assert lines[2] == f"reading weights {'━' * 20} 200 of 200 MB"
    assert meter("nothing", 0, 0).endswith("0 of 0 MB")


@pytest.mark.parametrize("watched", [True, False])
def test_somebody_at_a_terminal_sees_how_far_the_weights_are_and_a_pipe_does_not(watched, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    monkeypatch.setattr(generate, "meter", lambda *step: said.append(step) or "")
    asked = generate.Asked("tiny-transformer", quant=None, dtype="float32", mesh=None, chat=False, system=None)
    generate.start("Recipe", asked, {"max_tokens": 1, "temperature": 0.0})
    assert said
    assert bool(capsys.readouterr().err) == watched


def test_progress_counts_the_bytes_of_the_weights_to_the_last_one():
    said = []
    lm = minillm.load("tiny-transformer", progress=lambda *step: said.append(step))
    assert lm.model is not None
    doing, done, of = zip(*said, strict=True)
    assert set(doing) == {"reading weights"}
    assert sorted(done) == list(done)
    assert set(of) == {done[-1]}
    assert len(said) > 10


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM", "OTHER"])
def test_who_wants_no_colours_gets_none(name, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "interactive", lambda: True)
    for one in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "dumb")
    main.main(["tokenize", "tiny-draft", "a"], standalone_mode=False)
    assert ("\x1b[2m" in capsys.readouterr().err) == (name == "OTHER")
