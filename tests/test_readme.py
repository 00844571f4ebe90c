"""What the READMEs say is so: links lead somewhere, snippets run, figures hold."""

import re
from pathlib import Path

import pytest
from test_structure import CORE

ROOT = Path(__file__).parent.parent
FOLDERS = (
    "ops",
    "minillm",
    "minillm/archs",
    "bench",
    "weights",
    "minillm/texts",
    "tutorials",
)
PAGES = [ROOT / "README.md", *(ROOT / name / "README.md" for name in FOLDERS)]
PAGES += sorted(ROOT.glob("minillm/models/*/README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert links or page.parent.name in ("bench", "texts")
    for link in links:
        assert (page.parent / link).exists(), link


def test_the_first_screen_of_the_readme_is_forty_lines_with_both_commands_and_the_core():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    for needed in ("minillm generate", "pytest", "forward.svg", "learn", "run", "judge", "flax"):
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
