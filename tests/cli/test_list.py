"""`minillm list` names every model that a name is enough for."""

from click.testing import CliRunner

from minillm.checkpoint.pull import MODELS, model_path
from minillm.cli import main
from minillm.folders import bundled_models


def test_it_says_where_each_model_is_or_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    before = CliRunner().invoke(main, ["list"]).stdout
    assert all(name in before for name in (*bundled_models(), *MODELS))
    assert "minillm pull smollm2-135m" in before
    model_path("smollm2-135m").parent.mkdir(parents=True)
    model_path("smollm2-135m").touch()
    assert f"in {model_path('smollm2-135m')}" in CliRunner().invoke(main, ["list"]).stdout
