"""A process for each lesson: some say how JAX is to start, and it starts once in a process."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def alone(function: Callable, *arguments: Any) -> Any:
    """What an importable function returns or raises in a fresh process, which prints where this one does."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
