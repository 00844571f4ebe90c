import json
import sys
from itertools import count

import jax.numpy as jnp
import numpy as np
import pytest

from minillm import ops
from minillm.ops.cases import Case, Law, Op
from minillm.ops.judge.accuracy import Ideal, ratios
from minillm.ops.judge.kernel import Kernel, to_library, to_numpy
from minillm.ops.judge.trials import Trial, run_trial
from minillm.ops.norm import rms_norm, rms_norm_ref


def draw(case, rng):
    b, d = case.sizes["b"], case.sizes["d"]
    return {"x": rng.normal(size=(b, d)), "weight": rng.normal(size=d)}


def with_outlier(arrays, case, rng):
    return {**arrays, "x": arrays["x"] * np.where(np.arange(case.sizes["d"]) == 0, 1000, 1)}


def exact(case, rng):
    b, d = case.sizes["b"], case.sizes["d"]
    return {"x": rng.choice([-2.0, 2.0], (b, d)), "weight": rng.integers(-4, 5, d).astype(float)}


def scaled(call, arrays, options, rng):
    return call(**arrays, **options), call(**{**arrays, "x": arrays["x"] * 2}, **options)


# All it takes to have an op judged: this is the example of ops/README.md.
NORM = Op(
    "norm",
    rms_norm_ref,
    {"rms_norm": rms_norm},
    required=("x", "weight"),
    outputs=("y",),
    cases=(Case("one", {"b": 1, "d": 1}, {"eps": 0.0}), Case("many", {"b": 3, "d": 64}, {"eps": 0.0})),
    draw=draw,
    styles={"outlier channel": with_outlier},
    exact=exact,
    laws=(Law("scale does not matter", scaled),),
    batched=("x",),
)


def numpy_norm(x, weight, eps):
    wide = x.astype(np.float32)
    y = wide / np.sqrt(np.mean(np.square(wide), axis=-1, keepdims=True) + np.float32(eps))
    return (y * weight.astype(np.float32)).astype(x.dtype)


def judge(kernel, **options):
    return ops.validate(NORM, kernel, **{"arrays": "numpy", **options})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_correct_kernel_in_numpy_passes_and_was_really_tried(dtype):
    report = judge(numpy_norm, dtype=dtype)
    report.assert_ok()
    assert report.ran["accuracy"] == 8
    assert report.ran["exact"] == 6
    assert report.ran["law scale does not matter"] == 2
    assert not report.unused


def test_a_correct_form_in_jax_passes():
    judge(ops.judge.compiled(rms_norm), arrays="jax").assert_ok()


def wrong_in_channel_5(x, weight, eps):
    y = numpy_norm(x, weight, eps)
    if y.shape[1] > 5:
        y[:, 5] *= 1.001
    return y


def test_a_wrong_kernel_fails_and_shrinks_to_the_smallest_size_that_shows_it():
    report = judge(wrong_in_channel_5)
    assert not report.ok
    assert {failure.trial.split(";")[0] for failure in report.failures} == {"accuracy", "exact"}
    assert all("b=1 d=6" in failure.trial for failure in report.failures)
    assert all(failure.trial in failure.reproduce for failure in report.failures)
    with pytest.raises(AssertionError, match="FAILED accuracy; many"):
        report.assert_ok()


def test_a_failing_trial_can_be_repeated_from_its_line():
    line = judge(wrong_in_channel_5).failures[0].trial
    again = judge(wrong_in_channel_5, only=line)
    assert [failure.trial for failure in again.failures] == [line]
    assert sum(again.ran.values()) == 1
    assert judge(numpy_norm, only=line).ok


def test_conventions_of_others_let_a_small_bug_pass_and_say_so():
    verdicts = judge(wrong_in_channel_5, shrink=False).conventions
    assert not verdicts["flash-attention"]
    assert verdicts["flash-linear-attention"]
    assert verdicts["allclose(1e-2)"]


def test_what_a_kernel_does_not_take_is_reported_and_never_passed():
    def without_eps(x, weight):
        return numpy_norm(x, weight, 0.0)

    report = judge(without_eps)
    assert not report.ok
    assert set(report.uncovered.values()) == {"no keyword 'eps'"}
    report = judge(numpy_norm, supports={"d": (64,)})
    assert report.ok
    assert report.uncovered == {"one": "d = 1"}
    assert "not covered, d = 1: one" in str(report)
    assert not judge(numpy_norm, supports={"dtype": ("bfloat16",)}).ok


def test_a_kernel_may_carry_what_it_supports():
    def kernel(x, weight, eps):
        return numpy_norm(x, weight, eps)

    kernel.supports = {"d": (1,)}  # pyright: ignore[reportFunctionMemberAccess]
    assert judge(kernel).uncovered == {"many": "d = 64"}


def test_what_a_compiled_kernel_declares_is_kept():
    def kernel(x, weight, eps):
        return rms_norm(x, weight, eps)

    kernel.supports = {"d": (1,)}  # pyright: ignore[reportFunctionMemberAccess]
    assert judge(ops.judge.compiled(kernel), arrays="jax").uncovered == {"many": "d = 64"}


def test_a_style_that_is_not_supported_is_reported():
    report = judge(numpy_norm, supports={"style": ()})
    assert report.ok
    assert report.uncovered == {"outlier channel inputs": "style"}


def test_where_the_naive_form_overflows_nothing_is_asked_and_elsewhere_everything():
    ones, wrong = np.ones(3), np.full(3, np.nan)
    half = Ideal((ones,), (np.array([np.inf, 1, 1]),), (ones * 1e-7,))
    assert ratios((np.array([5, 1, 1]),), half)["max"] == 0
    assert ratios((wrong,), half)["max"] == np.inf
    assert ratios((wrong,), Ideal((ones,), (wrong,), (ones * 1e-7,))) == {}


def overwrites(x, weight, eps):
    x[...] = numpy_norm(x, weight, eps)
    return x


calls = count()


def wobbles(x, weight, eps):
    return numpy_norm(x, weight, eps) * np.float32(1 + 2**-22 * (next(calls) % 2))


def mixes_rows(x, weight, eps):
    return np.concatenate(
        [numpy_norm(x[:1], weight, eps), numpy_norm(x[1:] + 0 * x[:1] + x[:1] * 1e-3, weight, eps)]
    )


def wrong_shape(x, weight, eps):
    return numpy_norm(x, weight, eps).T


def too_many(x, weight, eps):
    return numpy_norm(x, weight, eps), x


def crashes(x, weight, eps):
    raise IndexError("tile 3")


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (overwrites, "overwrote its argument x"),
        (wobbles, "y differs by"),
        (mixes_rows, "y differs by"),
        (wrong_shape, "y has shape"),
        (too_many, "returned 2 outputs, expected 1"),
        (crashes, "raised IndexError: tile 3"),
        (lambda x, weight, eps: numpy_norm(x, weight, eps) * np.float32("nan"), "inf times"),
    ],
)
def test_each_kind_of_fault_is_named(kernel, fault):
    assert any(fault in failure.fault for failure in judge(kernel, shrink=False).failures)


def test_infinite_and_wrong_answers_on_hard_rows_are_counted_in_their_own_roundings():
    trial = Trial("accuracy", "many", "outlier channel")

    def small_channels_lost(x, weight, eps):
        y = numpy_norm(x, weight, eps)
        return np.where(np.abs(y) < 1e-2, 0, y).astype(x.dtype)

    right, wrong = (
        run_trial(NORM, Kernel(f, "numpy"), trial, "float32") for f in (numpy_norm, small_channels_lost)
    )
    assert right
    assert right.fault is None
    assert wrong
    assert wrong.fault


PROGRAM = """
import json, sys
import numpy as np
given = np.load(sys.argv[1])
options = json.loads(str(given["options"]))
def read(name):
    if name in given:
        return given[name]
    return (given[name + ".bfloat16"].astype(np.uint32) << 16).view(np.float32)
x, weight = read("0"), read("1")
y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(options["eps"])) * weight
if "0" in given:
    np.savez(sys.argv[2], **{"0": y})
else:
    bits = y.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    np.savez(sys.argv[2], **{"0.bfloat16": bits.astype(np.uint16)})
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_that_speaks_npz_is_judged(tmp_path, dtype):
    script = tmp_path / "norm.py"
    script.write_text(PROGRAM)
    kernel = ops.judge.program([sys.executable, str(script)])
    judge(kernel, dtype=dtype, only="accuracy; many; seed 0").assert_ok()
    script.write_text(PROGRAM.replace("* weight", "+ weight"))
    assert not judge(kernel, dtype=dtype, only="accuracy; many; seed 0", shrink=False).ok


def test_a_program_that_fails_shows_what_it_wrote():
    kernel = ops.judge.program([sys.executable, "-c", "raise SystemExit('no GPU here')"])
    report = judge(kernel, only="accuracy; many; seed 0", shrink=False)
    assert "no GPU here" in report.failures[0].fault


def test_the_report_is_json():
    out = json.loads(judge(wrong_in_channel_5, shrink=False).to_json())
    assert out["ok"] is False
    assert out["failures"][0]["reproduce"].startswith("ops.validate(")
    assert set(out["worst"]) == {"max", "p99.9", "rms"}


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="op is 'atention', expected one of: "):
        ops.validate("atention", numpy_norm)
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        judge(numpy_norm, dtype="fp8")
    with pytest.raises(ValueError, match="arrays is 'tensorflow'"):
        judge(numpy_norm, arrays="tensorflow")
    with pytest.raises(ValueError, match="trial 'everything': expected"):
        judge(numpy_norm, only="everything")
    with pytest.raises(ValueError, match="norm has no case 'none'; it has: one, many"):
        judge(numpy_norm, only="accuracy; none; seed 0")
    with pytest.raises(ValueError, match="norm has no style 'odd'; it has: outlier channel"):
        judge(numpy_norm, only="accuracy; many; odd; seed 0")
    with pytest.raises(ValueError, match="norm has no law gravity; it has: same call"):
        judge(numpy_norm, only="law gravity; many; seed 0")
    with pytest.raises(ValueError, match="norm has no check 'speed', expected accuracy, exact or law NAME"):
        judge(numpy_norm, only="speed; many; seed 0")
    with pytest.raises(ValueError, match="supports names 'K', expected one of: b, d, dtype, eps, style"):
        judge(numpy_norm, supports={"K": (64,)})


@pytest.mark.parametrize("trial", [Trial("exact", "a b"), Trial("accuracy", "c", "s t", 3, (("b", 1), ("d", 2)))])
def test_a_trial_is_a_line_and_back(trial):
    assert Trial.parse(str(trial)) == trial


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_arrays_reach_a_kernel_and_come_back_bit_for_bit(dtype):
    x = np.arange(6, dtype=np.float32).reshape(2, 3).astype(jnp.dtype(dtype))
    for library in ("jax", "numpy"):
        y = to_numpy(to_library(x, library))
        assert y.dtype == x.dtype
        assert np.array_equal(x, y)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_torch_kernel_is_judged(dtype):
    import torch  # pyright: ignore[reportMissingImports]

    def torch_norm(x, weight, eps):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)

    judge(torch_norm, arrays="torch", dtype=dtype).assert_ok()
    assert not judge(lambda x, weight, eps: torch_norm(x, weight, eps) * 1.01, arrays="torch", dtype=dtype).ok
