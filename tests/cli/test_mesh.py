"""`--mesh`: what is no mesh, or none of this machine, ends with a line that names it."""

import pytest
from click.testing import CliRunner

from minillm.cli import main


@pytest.mark.parametrize(
    ("mesh", "reason"),
    [
        ("heads=2", "mesh is 'heads=2', expected axes and sizes such as data=2,model=4"),
        ("model=4", "mesh model=4 is of 4 devices, but there are 1"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_by_name(mesh, reason):
    run = CliRunner().invoke(main, ["generate", "Recipe: Tomato Soup", "--mesh", mesh])
    assert run.exit_code == 2
    assert reason in run.output
