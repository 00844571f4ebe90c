"""What `cost.py` knows of the equations of a jaxpr: their kinds by name, and the operations of a product."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"}
VIEWS = set("reshape transpose squeeze expand_dims broadcast_in_dim convert_element_type copy rev".split())
SAME = {"pvary", "pcast", "mesh_cast", "reshard", "sharding_constraint", "optimization_barrier", "stop_gradient"}
SLICES = {"slice", "dynamic_slice", "gather", "split"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "cumsum", "cumlogsumexp", "cummax"}
ARITHMETIC = set(
    """add add_any sub mul div max min neg abs exp exp2 log log1p expm1 tanh logistic rsqrt sqrt square pow
    integer_pow sin cos erf erfc erf_inv sign floor ceil round rem nextafter clamp""".split()
)
PLACES = {"sharding", "out_sharding"}  # parameters that say on which devices a result lies
MESSAGES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
}


def counted(cond: Jaxpr, first: int, body: Jaxpr, consts: int) -> tuple[int, int]:
    """Which carried number counts up by one, and which one it stays below."""
    carried = cond.invars[first:]
    test = cond.eqns[0] if len(cond.eqns) == 1 else None
    if test is not None and test.primitive.name == "lt" and all(var in carried for var in test.invars):
        variables: Any = test.invars
        place, limit = (carried.index(var) for var in variables)
        mine = body.invars[consts:]
        steps = [eqn for eqn in body.eqns if body.outvars[place] in eqn.outvars]
        up = steps and steps[0].primitive.name == "add" and steps[0].invars[0] is mine[place]
        one = up and isinstance(steps[0].invars[1], Literal) and steps[0].invars[1].val == 1
        if one and body.outvars[limit] is mine[limit]:
            return place, limit
    raise NotImplementedError("cost: a loop does not count up by one to a limit")


def dot_flops(eqn: Any) -> float:
    """A multiplication and an addition for each number of the result and each that is summed over."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


def conv_flops(eqn: Any) -> float:
    """The same, summed over the window and the channels of a group."""
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * size(eqn.outvars[0]) * math.prod(kernel) / outputs


PRODUCTS: dict[str, Callable[[Any], float]] = {"dot_general": dot_flops, "conv_general_dilated": conv_flops}


def size(var: Any) -> int:
    """How many numbers."""
    return math.prod(var.aval.shape)


def itemsize(var: Any) -> int:
    """Bytes of a number."""
    return var.aval.dtype.itemsize


def nbytes(var: Any) -> int:
    """Bytes of an array."""
    return size(var) * itemsize(var)


def is_float(var: Any) -> bool:
    """Whether it holds floating-point numbers."""
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)
