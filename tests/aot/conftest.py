"""Compiled for devices that are not there, with the extras aot-tpu and aot-cuda: see `compile/topology.py`."""

from contextlib import suppress

import jax

with suppress(RuntimeError):  # too late: JAX has started, and these tests are not the ones that are run
    jax.config.update("jax_platforms", "cpu")  # what is compiled for must not be looked for
