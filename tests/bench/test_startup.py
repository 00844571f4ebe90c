"""Every start is a process of its own; what fails is told with its words."""

import pytest

from bench import startup
from bench.startup import Start
from minillm.errors import UserError


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(startup, "wait_for_quiet", lambda: None)


def test_what_is_started_twice_finds_what_the_first_left():
    kept = "import os, pathlib; pathlib.Path(os.environ['MINILLM_CACHE'], 'xla').mkdir()"
    twice = startup.started("it", Start(["-c", f"try:\n {kept}\nexcept FileExistsError: pass"], again=True))
    assert twice.keys() == {"it, cold", "it, warm"}
    with pytest.raises(UserError, match="FileExistsError"):
        startup.started("it", Start(["-c", kept], again=True))
    for _ in range(2):  # nobody else's
        assert startup.started("it", Start(["-c", kept])).keys() == {"it"}


def test_pulled_models_are_where_a_fresh_process_looks():
    look = "from minillm.folders import model_folder; assert model_folder().is_symlink()"
    startup.started("it", Start(["-c", look]))


def test_ratios_are_of_speeds_and_the_table_has_every_start():
    starts = {"minillm --help": Start(["-c", "pass"]), "import jax": Start(["-c", "import time; time.sleep(0.5)"])}
    report = startup.measure(starts, rounds=1)
    assert report["times_as_fast"]["minillm --help over import jax"]["median"] > 1
    assert [row[0] for row in report["table"]["rows"]] == [*starts]
