import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minillm.span import Span, ancestors

PARENTS = st.sampled_from([1, 6]).flatmap(lambda t: st.tuples(*(st.integers(-1, j - 1) for j in range(t))))


def line_of(j: int, parent: tuple[int, ...]) -> set[int]:
    return set() if j < 0 else {j} | line_of(parent[j], parent)


@given(parent=PARENTS)
def test_ancestors_are_the_tokens_on_the_way_to_the_root(parent):
    found = np.asarray(ancestors(jnp.array([parent], jnp.int32)))[0]
    for j in range(len(parent)):
        assert set(np.flatnonzero(found[j])) == line_of(j, parent)


def test_a_chain_is_the_tree_in_which_each_token_follows_the_one_before():
    start, n = jnp.array([3, 0], jnp.int32), jnp.array([2, 4], jnp.int32)
    chain = Span.chain(start, n, 4)
    tree = Span.tree(start, n, jnp.array([[-1, 0, 1, 2]] * 2, jnp.int32))
    np.testing.assert_array_equal(chain.pos, tree.pos)
    np.testing.assert_array_equal(chain.query_pos, tree.query_pos)
    np.testing.assert_array_equal(chain.row_pos(jnp.arange(9)), tree.row_pos(jnp.arange(9)))
    seen = np.asarray(chain.row_pos(jnp.arange(9)))[:, None] <= np.asarray(chain.pos)[:, :, None]
    seen &= np.asarray(chain.row_pos(jnp.arange(9)))[:, None] >= 0
    mask = tree.row_mask(jnp.arange(9))
    assert mask is not None
    for row in range(2):
        real = int(n[row])
        np.testing.assert_array_equal(
            seen[row, :real],
            (np.asarray(mask) & (np.asarray(tree.row_pos(jnp.arange(9))) >= 0)[:, None])[row, :real],
        )


def test_rows_past_the_real_tokens_hold_nothing():
    span = Span.chain(jnp.array([2], jnp.int32), jnp.array([3], jnp.int32), 5)
    np.testing.assert_array_equal(span.row_pos(jnp.arange(8))[0], [0, 1, 2, 3, 4, -1, -1, -1])
    np.testing.assert_array_equal(span.query_pos[0], [2, 3, 4, -1, -1])
