"""What the READMEs say is so: links lead somewhere, snippets run, figures hold."""

import re
from functools import partial

import pytest
from examples import PAGES, ROOT
from test_structure import CORE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert links or page.parent.name in ("bench", "texts")
    for link in links:
        assert (page.parent / link).exists(), link


def test_the_first_screen_of_the_readme_is_forty_lines_with_both_commands_and_the_core():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    for needed in ("minillm generate", "pytest", "trace.png", "learn", "run", "judge", "flax"):
        assert needed in screen
    places = [screen.index(f"({name})") for name in CORE]
    assert places == sorted(places)


def test_the_core_is_as_long_as_the_readme_says():
    said = int(re.findall(r"the core, ([\d,]+) lines", (ROOT / "README.md").read_text())[0].replace(",", ""))
    lines = sum(len((ROOT / name).read_text().splitlines()) for name in CORE)
    assert abs(lines - said) <= 50


def test_the_readmes_python_runs(smollm2, capsys, monkeypatch):
    monkeypatch.setattr("minillm.load", lambda name: smollm2, raising=False)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(snippet, {})
    assert len(capsys.readouterr().out) > 40


def test_the_examples_of_ops_run(capsys):
    example, formats, kernels = re.findall(r"```python\n(.*?)```", (ROOT / "ops" / "README.md").read_text(), re.S)
    exec(example, names := {})
    assert float(capsys.readouterr().out) < 1e-5
    exec(formats, casts := {})
    assert capsys.readouterr().out.strip() == re.findall(r"# (0x.*)", formats)[0]
    assert casts["y"].shape == (2, 2)
    exec(kernels, names)
    assert names["flash"](names["q"], names["k"], names["v"]).shape == names["q"].shape


def test_the_engines_example_runs(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "minillm" / "README.md").read_text(), re.S)
    (example,) = [one for one in examples if "Engine" in one]
    exec(example, {})
    assert "Ingredients" in capsys.readouterr().out


@pytest.mark.slow
def test_the_laws_example_runs(smollm2, monkeypatch):
    monkeypatch.setattr("minillm.load", lambda name: smollm2, raising=False)
    (example,) = [one for one in snippets("minillm") if "check_schedules" in one]
    exec(example, {})


@pytest.mark.slow
def test_the_judges_example_runs(monkeypatch, tmp_path):
    """As it is, but for the minutes it would take."""
    from minillm import ops

    (kernel,) = [one for one in snippets("ops") if "def flash" in one]
    (tmp_path / "my_kernels.py").write_text(kernel)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ops, "validate", partial(ops.validate, quick=True))
    (example,) = re.findall(r"```\n(from minillm import ops\n.*?)```", (ROOT / "ops/README.md").read_text(), re.S)
    exec(example, names := {})
    assert names["report"].ok


def snippets(folder: str) -> list[str]:
    """The Python in a README."""
    return re.findall(r"```python\n(.*?)```", (ROOT / folder / "README.md").read_text(), re.S)
