"""What every test runs under: strict promotion, exact products, no surprises from hypothesis."""

import os
from contextlib import contextmanager
from pathlib import Path

# Two workers compile side by side: each on one thread of its own. Read when jax starts, so set before.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("minillm", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("minillm")


def pytest_configure(config):
    """Quick tests compile unoptimised, in half of the time; slow and oracle tests run what users run."""
    if "not slow" in config.getoption("markexpr"):
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_addoption(parser):
    """`-m slow --share 2/3` runs every third of the slow tests, beginning with the second."""
    parser.addoption("--share", metavar="K/N", default="1/1", help="every N-th of the chosen tests, from the K-th")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leave the tests of other shares out, after those that `-m` and `-k` leave out."""
    k, n = map(int, config.getoption("share").split("/"))
    mine = items[k - 1 :: n]
    config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % n != k - 1])
    items[:] = mine


MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000  # of the 65,530 that Linux grants a process
LOOK_AFTER = 300  # programs: to read so many lines takes longer than most tests do


@pytest.fixture(scope="session")
def _programs():
    """Counts the programs that this process compiles, or loads from disk."""
    from minillm.xla import Programs

    with Programs() as programs:
        yield programs


@pytest.fixture(autouse=True)
def _few_programs(_programs):
    """Every compiled program takes some memory mappings, and a process that has no more of them dies."""
    yield
    if _programs.count >= LOOK_AFTER and MAPS.exists():
        _programs.count = 0
        if MAPS.read_bytes().count(b"\n") > MOST_MAPS:
            jax.clear_caches()


@pytest.fixture(autouse=True)
def _strict():
    """No silent widening, and products as exact as the dtype allows."""
    with jax.numpy_dtype_promotion("strict"), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def recompiled(options):
    """Compile the library's programs with these options."""
    from minillm import generate, laws, lm, runner, session
    from minillm.speculative import decode, draft_model

    state: dict = {"donate_argnames": "state"}
    both: dict = {"donate_argnames": ("state", "history")}
    programs = [(laws, "advance", state), (laws, "read_whole", {}), (lm, "score", {})]
    programs += [(generate, "advance", both), (session, "advance", both), (runner, "read", both)]
    programs += [(runner, "verify", both), (decode, "verify", both)]
    programs += [(draft_model, "read_and_guess", {**state, "static_argnames": ("most", "branches")})]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, how in programs:
            patch.setattr(module, name, jax.jit(getattr(module, name).__wrapped__, compiler_options=options, **how))
        yield


@pytest.fixture(scope="module")
def quick_programs():
    """Unoptimised programs in slow tests, too."""
    from agreement import QUICK

    with recompiled(QUICK):
        yield


@pytest.fixture(scope="module")
def optimised_programs():
    """Programs as users have them in quick tests, too: where they run for longer than they compile."""
    from agreement import AS_USERS

    with recompiled(AS_USERS):
        yield


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M, the real model; pulled once.

    Its tests are skipped only where it cannot be pulled and CI is not set: a developer without a network can test
    the rest, and CI, where nothing may be skipped, fails.
    """
    import minillm
    from minillm.checkpoint.pull import pull
    from minillm.errors import UserError

    try:
        pull("smollm2-135m")
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs smollm2-135m: {error}")
    return minillm.load("smollm2-135m")
