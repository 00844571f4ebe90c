"""Samples are read as perf prints them, and shares of the work add up."""

import pytest

from bench.profile import KINDS, RATE, REST, kind_of, samples_in, summary, table_of

SCRIPT = """
   28290 12345.000000:      7fbbb1a540e5 [unknown] (/tmp/perf-28290.map)
   28291 12345.500000:      7fbbb1a540e7 ynn::dot_fp32_8x4x4_avx512 (/site-packages/jaxlib/libjax_common.so)
   28291 12346.000000:      7fbbb1a540e7 slinky::function<void (long, long const*)>::call (/jaxlib/libjax_common.so)
perf: a line that is no sample
"""


def test_samples_are_read_as_perf_prints_them():
    jit, product, rest = samples_in(SCRIPT)
    assert (jit.thread, jit.when, jit.function, jit.library) == (28290, 12345.0, "[unknown]", "perf-28290.map")
    assert [kind_of(one) for one in (jit, product, rest)] == ["generated", "products", REST]
    assert rest.function == "slinky::function<void (long, long const*)>::call"


@pytest.mark.parametrize(
    ("library", "function", "kind"),
    [
        ("libtorch_cpu.so", "mkl_blas_def_xsgemv", "products"),
        ("libtorch_cpu.so", "mkl_blas_def_sgemm_kernel_0_zen", "products"),
        ("libtorch_cpu.so", "mkl_blas_def_sgemm_scopy_right16_bdz", "rearranging"),
        ("libjax_common.so", "ynn::transpose_x32_avx512", "rearranging"),
        ("libggml-cpu.so", "ggml_vec_dot_q4_1_q8_1", "products"),
        ("libgomp.so.1", "[unknown]", "waiting"),
        ("libpython3.11.so", "_PyEval_EvalFrameDefault", REST),
    ],
)
def test_functions_are_told_apart_by_name(library, function, kind):
    [sample] = samples_in(f"  1 2.0:  ab {function} ({library})")
    assert kind_of(sample) == kind


def test_shares_are_of_the_work_and_cores_are_counted():
    lines = [f"  1 {10 + i / RATE:.6f}:  ab dot_fp32 (x)" for i in range(RATE + 1)]
    lines += [f"  2 {10 + i / RATE:.6f}:  ab sched_yield (x)" for i in range(RATE // 3)]  # of the same second
    found = summary([*samples_in("\n".join(lines))])
    assert found["shares"]["products"] == pytest.approx(0.75, abs=0.01)
    assert found["shares"]["waiting"] == pytest.approx(0.25, abs=0.01)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    assert found["cores_busy"] == pytest.approx(4 / 3, abs=0.01)
    assert found["threads"] == pytest.approx([0.75, 0.25], abs=0.01)
    assert next(iter(found["functions"])) == "dot_fp32"
    trace = {"ms": {"products": 9.0, "other operations": 2.0, "nothing": 1.0}}
    trace |= {"operations": {"products": 3, "others": 7}, "GB/s of products": 20.0}
    table = table_of({"one text": {"minillm": found | {"trace": trace}, "other": found}})
    ours, other = table["rows"]
    assert ours[:3] == ["one text", "minillm", "0%"]
    assert ours[-1] == "9.0 ms 3 products at 20 GB/s, 2.0 ms only 7 others, 1.0 ms nothing"
    assert other[-1] == "–"
    assert len(table["columns"]) == len(ours) == len(other) == 6 + len(KINDS)
