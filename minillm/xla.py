"""XLA at run time: compiled programs are kept on disk, and counted; memory that they took to make goes back.

Compiling takes seconds, so programs are kept in the user's cache folder and a second run loads them. How often
something compiled is a thing to watch: a decoder that compiles for every length is slow for no visible reason.
"""

import ctypes
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import get_ident
from typing import Any, TypeVar

import jax
import numpy as np

from .folders import program_folder

T = TypeVar("T")
COMPILE_EVENTS = "/jax/core/compile/"  # tracing, translating, compiling: one of each for a program
COMPILED = f"{COMPILE_EVENTS}backend_compile_duration"
LONG = 0.2  # seconds of compiling, or of loading from disk, that leave enough memory behind to see to it


def keep_programs() -> None:
    """Keep compiled programs on disk, unless JAX has been told where to keep them."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(program_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # A folder that cannot be used costs time, not correctness, and nobody can act on JAX's lines about it.
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


@cache
def give_memory_back() -> None:
    """From now on have the system get back what was freed, whenever a program that took long has been compiled.

    glibc keeps most of it for what may come: what compiling took, and the float32 weights of a model that is in few
    bits by then. SmolLM2 in W8A8 stayed at 1.17 GB, and is at 0.59. It takes 10 to 50 ms.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def ended(event: str, duration_secs: float, **details) -> None:
        if event == COMPILED and duration_secs > LONG and trim is not None:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(ended)


class Programs:
    """Counts programs that this thread compiled or loaded from disk, and the seconds from call to program.

    with Programs() as programs:
        ...
    programs.count, programs.seconds
    """

    def __init__(self):
        self.count, self.seconds, self.thread = 0, 0.0, get_ident()

    def __enter__(self) -> "Programs":
        jax.monitoring.register_event_duration_secs_listener(self._ended)
        return self

    def __exit__(self, *exception) -> None:
        if jax is not None:  # Python takes modules away when it ends, perhaps with a text half read
            jax.monitoring.unregister_event_duration_listener(self._ended)

    def _ended(self, event: str, duration_secs: float, **details) -> None:
        if event.startswith(COMPILE_EVENTS) and get_ident() == self.thread:
            self.count += event == COMPILED
            self.seconds += duration_secs


def in_background(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call function in a thread of its own."""
    thread = ThreadPoolExecutor(1)
    future = thread.submit(function, *arguments)
    thread.shutdown(wait=False)
    return future


def on_device(array: np.ndarray) -> jax.Array:
    """A JAX array from a NumPy one. Unlike `jnp.zeros` and its kin this compiles nothing."""
    return jax.device_put(array)


def memory_bandwidth() -> float:
    """Bytes a second this machine reads at best, measured with a matrix-vector product too large for caches."""
    matrix = jax.device_put(jax.numpy.ones((1 << 13, 1 << 13), jax.numpy.float32))
    vector = jax.numpy.ones((1, 1 << 13), jax.numpy.float32)
    product = jax.jit(lambda a, x: jax.lax.dot_general(x, a, (((1,), (1,)), ((), ()))))
    product(matrix, vector).block_until_ready()
    best = float("inf")
    for _ in range(15):
        start = time.perf_counter()
        product(matrix, vector).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return matrix.nbytes / best
