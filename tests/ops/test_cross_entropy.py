import jax.numpy as jnp
import numpy as np
import pytest

from minillm.ops.cross_entropy import blocked_cross_entropy, cross_entropy, cross_entropy_ref

FORMS = {"cross_entropy": cross_entropy, "blocked_cross_entropy": blocked_cross_entropy}
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
def test_a_model_that_knows_nothing_is_surprised_by_log_v(form):
    assert np.allclose(FORMS[form](jnp.zeros((2, 8)), jnp.array([3, -1])), [np.log(8), 0], rtol=1e-6)


@every_form
def test_an_impossible_target_costs_infinity(form):
    logits = jnp.array([[0, -jnp.inf, 1]])
    assert FORMS[form](logits, jnp.array([1])) == np.inf


@every_form
def test_bfloat16_logits_give_float32_losses(form):
    assert FORMS[form](jnp.zeros((2, 8), jnp.bfloat16), jnp.array([3, 1])).dtype == np.float32


@pytest.mark.parametrize("block", [1, 4, 5, 6, 7, 100])
def test_the_block_does_not_show(block):
    """Eleven tokens: blocks that divide 11 - 1, 11 + 1 and nothing; one and many."""
    rng = np.random.default_rng(block)
    logits, targets = 8 * rng.normal(size=(5, 11)).astype(np.float32), np.array([0, 10, 5, 6, -1], np.int32)
    nll = blocked_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), block=block)
    assert np.allclose(nll, cross_entropy_ref(logits, targets), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named():
    logits, targets = jnp.zeros((2, 3, 8)), jnp.zeros((2, 4), jnp.int32)
    for name, form in FORMS.items():
        with pytest.raises(ValueError, match=rf"{name}: targets has shape \[2, 4\], expected \[2, 3\]"):
            form(logits, targets)
        with pytest.raises(ValueError, match=f"{name}: targets .* has dtype float32, expected int"):
            form(logits, targets.astype(jnp.float32))
    with pytest.raises(ValueError, match="blocked_cross_entropy: block is 0, expected 1 or more"):
        blocked_cross_entropy(logits, targets[:, :3], block=0)
