"""`minillm generate` with nothing else: a model that is there, and something for it to say."""

import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from minillm.cli import main
from minillm.cli.generate import BUNDLED, OPENING, read_prompt
from minillm.errors import UserError
from minillm.folders import bundled_models

pytestmark = pytest.mark.usefixtures("quick_programs")


def test_the_model_that_is_taken_by_default_is_there():
    assert BUNDLED in bundled_models()


def test_nothing_said_at_a_terminal_opens_a_recipe(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert read_prompt(None, OPENING) == OPENING
    with pytest.raises(UserError, match="there is no text; give one"):
        read_prompt(None)


def test_a_recipe_comes_out():
    result = CliRunner().invoke(main, ["generate", "Recipe: Tomato Soup\n", "--temperature", "0"])
    assert result.exit_code == 0
    assert result.stdout.strip().startswith("Ingredients:\n- ")
    assert "\n\nSteps:\n1. " in result.stdout
