"""What the runtime is told about programs and memory."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from minillm.xla import COMPILED, LONG, give_memory_back


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="only there glibc keeps what was freed")
def test_what_was_freed_goes_back_to_the_system_once_a_program_that_took_long_is_compiled():
    give_memory_back()
    pieces = [np.ones(1 << 13) for _ in range(2000)]  # 64 KB each, which come from one heap
    pieces = pieces[::50]  # what is left of them holds its end
    before = resident()
    jax.monitoring.record_event_duration_secs(COMPILED, LONG / 2)
    assert before - resident() < 10e6
    jax.monitoring.record_event_duration_secs(COMPILED, LONG * 2)
    assert before - resident() > 100e6
    assert all(np.all(piece == 1) for piece in pieces)
