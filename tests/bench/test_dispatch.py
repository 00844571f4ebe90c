"""The three models are one: they give the same numbers, remember the same, and have as many arrays."""

import jax
import numpy as np

from bench import dispatch


def test_all_compute_the_same(monkeypatch):
    monkeypatch.setattr(dispatch, "LAYERS", 1)
    steps = dispatch.steps()
    first, second = (np.asarray(steps[dispatch.OURS]()) for _ in range(2))
    assert (first != second).all()  # the second knows of the first
    for name in (dispatch.LINEN, dispatch.NNX):
        np.testing.assert_allclose(steps[name](), first, rtol=1e-5)
        np.testing.assert_allclose(steps[name](), second, rtol=1e-5)


def test_none_has_fewer_arrays(monkeypatch):
    monkeypatch.setattr(dispatch, "LAYERS", 3)
    arrays = 3 * (3 + len(dispatch.MATRICES))
    variables = dispatch.LinenLayers().init(jax.random.key(0), np.ones((1, dispatch.D), np.float32))
    assert len(jax.tree.leaves(variables)) == arrays
    assert len(jax.tree.leaves(dispatch.nnx.state(dispatch.NnxLayers()))) == arrays
