"""`ops` stands alone: copied anywhere, under any name, without minillm, it still works."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minillm import ops

FOLDER = Path(ops.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
ALLOWED = sys.stdlib_module_names | {"numpy", "jax", "einops"}
JUDGE = {"hypothesis", "ml_dtypes", "torch", "cupy"}  # torch and cupy only to hand arrays to kernels that want them


def run(code: str, folder: Path) -> None:
    """Run `code` in a fresh interpreter whose working directory is `folder`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_copy_under_another_name_runs_without_minillm(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import sys
sys.modules["minillm"] = None  # importing it now raises
import numpy as np
import elsewhere

assert elsewhere.__file__.startswith(FOLDER), elsewhere.__file__
x, weight = np.array([[3, 4]], np.float32), np.array([1, 2], np.float32)
assert np.allclose(elsewhere.rms_norm(x, weight, 0.0), elsewhere.rms_norm_ref(x, weight, 0.0))
assert elsewhere.validate("rms_norm", elsewhere.rms_norm, only="accuracy; one number; seed 0").ok
"""
    run(code.replace("FOLDER", repr(str(tmp_path))), tmp_path)


def test_importing_ops_takes_no_foreign_folder_and_does_not_load_the_stack(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "__init__.py").write_text("raise RuntimeError('the wrong ops')")
    code = """
import sys
from minillm import ops

assert ops.rms_norm.__name__ == "rms_norm"
ours = {name for name in sys.modules if name.startswith("minillm.") and not name.startswith("minillm.ops")}
others = {"flax", "click", "hypothesis", "tokenizers", "safetensors", "jinja2", "rich"} & set(sys.modules)
assert not ours | others, ours | others
"""
    run(code, tmp_path)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_only_numpy_jax_einops_and_relatives_are_imported(file):
    allowed = ALLOWED | (JUDGE if file.parent.name == "judge" else set())
    depth = len(file.relative_to(FOLDER).parts)  # as many dots as reach the top of ops, and no further
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= depth
            assert node.level or (node.module or "").split(".")[0] in allowed
