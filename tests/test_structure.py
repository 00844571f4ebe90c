"""What holds for the code as a whole: who imports whom, how small the core is, what may be left out."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minillm"

# From the bottom up; a module imports from its own row or rows above it.
LAYERS = """
    errors
    folders texts
    xla lessons
    ops config
    span rope
    cache quant
    blocks
    model
    laws archs
    template
    chat
    tokenizer parallel
    checkpoint
    sampling
    generate
    speculative evaluate train compile stops
    output
    request
    runner
    engine stream
    compress
    lm
    batch trace session
    cli
""".split("\n")
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row.split()}
ENTRY = {"__init__", "__main__"}

CORE = """
    ops/norm.py ops/rope.py ops/attention/naive.py ops/attention/scores.py minillm/span.py
    minillm/cache/contiguous.py minillm/cache/rows.py minillm/blocks/attention.py minillm/blocks/mlp.py
    minillm/model.py minillm/archs/llama.py minillm/sampling.py minillm/generate.py
""".split()


def part_of(path: Path) -> str:
    """The name a module of minillm has in LAYERS."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of minillm that a module imports, wherever in the file."""
    package = ["minillm", *path.relative_to(PACKAGE).parts[:-1]]
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module or "").split(".")] if node.module else base
            names = names if len(names) > 1 else [*names, *(alias.name for alias in node.names)][:2]
            parts |= {names[1]} if names[:1] == ["minillm"] and len(names) > 1 else set()
        elif isinstance(node, ast.Import):
            parts |= {a.name.split(".")[1] for a in node.names if a.name.startswith("minillm.")}
    return parts


MODULES = [p for p in PACKAGE.rglob("*.py") if "ops" not in p.relative_to(PACKAGE).parts and p.stem not in ENTRY]
MODULES += [p for p in PACKAGE.rglob("__init__.py") if p.parent not in (PACKAGE, PACKAGE / "ops")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path):
    part = part_of(path)
    wrong = {other for other in imported_parts(path) - {part, "__version__"} if LEVEL[other] > LEVEL[part]}
    same = {o for o in imported_parts(path) - {part, "__version__"} if LEVEL[o] == LEVEL[part]}
    assert not wrong, f"{part} imports {wrong}, which stand above it"
    assert not same, f"{part} imports {same} of its own row"


def test_the_core_path_stays_small():
    lines = sum(len((ROOT / name).read_text().splitlines()) for name in CORE)
    assert lines <= 1500


def test_the_core_path_does_not_know_the_features():
    for name in CORE:
        if name == "minillm/span.py":
            continue
        names = {n.id for n in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(n, ast.Attribute)}
        assert not names & {"pages", "mesh", "Mesh", "draft", "precision", "quantise"}, name


def test_generation_works_with_every_feature_module_deleted(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "minillm", ignore=shutil.ignore_patterns("__pycache__"))
    features = """
        laws.py cache/paged.py cache/coded.py cache/kivi.py cache/sinks.py cache/h2o.py cache/pool.py
        cache/prefix.py speculative checkpoint cli lm.py stream.py output.py engine.py runner.py request.py batch.py
        train.py tokenizer.py chat.py stops.py
    """.split()
    for name in features:
        target = tmp_path / "minillm" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    script = """
import jax, numpy as np
from minillm.blocks import AttentionSpec, MLPSpec
from minillm.config import Config
from minillm.model import Model
from minillm.rope import default
from minillm.generate import Plan, generate_tokens
from minillm.sampling import new_sampler
layer = AttentionSpec(h=4, g=2, k=4, rope=default(4, 1e4)), MLPSpec(f=24)
c = Config("llama", d=16, v=32, context=64, layers=(layer, layer), tied=False)
rng = np.random.default_rng(0)
def get(name, layer, *shapes, init):
    return jax.numpy.asarray(init(rng, (sum(s[0] for s in shapes), *shapes[0][1:])))
model = Model.build(c, get)
print(list(generate_tokens(model, Plan.of([1, 2, 3], 5, c.context), new_sampler(temperature=0.0))))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(ast.literal_eval(run.stdout)) == 5


def test_importing_minillm_does_not_import_jax():
    script = "import sys, minillm, minillm.cli; print([m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_checkout_without_symlinks_says_so(tmp_path):
    (tmp_path / "minillm").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "minillm")
    (tmp_path / "minillm" / "ops").write_text("../ops")
    run = subprocess.run([sys.executable, "-c", "import minillm"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "symlink" in run.stderr.strip().splitlines()[-1]
