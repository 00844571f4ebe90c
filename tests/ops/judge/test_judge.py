import functools
import json
import sys
from dataclasses import replace
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm import ops
from minillm.ops.cases import Case, Law, Op
from minillm.ops.judge import verdict
from minillm.ops.judge.accuracy import UNIT32, Ideal, ratios, rounding_of
from minillm.ops.judge.kernel import Kernel, to_library, to_numpy
from minillm.ops.judge.report import Report
from minillm.ops.judge.trials import Trial, first_wrong, run_trial
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
    assert report.ran["accuracy"] == 10
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


def test_a_wrong_kernel_fails_and_shrinks_to_the_smallest_size_that_shows_it(monkeypatch):
    monkeypatch.setattr(verdict, "SHRINK_SECONDS", 600.0)  # so that a busy machine finds as much
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
    assert {name for name, counts in verdicts.items() if not counts["failed"]} >= {
        "flash-linear-attention",
        "allclose(1e-2)",
    }
    assert verdicts["flash-attention"]["failed"]


def test_conventions_are_counted_and_said_to_decide_nothing():
    report = Report("norm", "f", "float32")
    for passed in (True, False, True):
        report.note(None, {"strict": passed, "mild": True})
    assert "other conventions (they decide nothing): strict fails 1 of 3, mild passes" in str(report)


def simple_and_complex(kernel, **options):
    """The report on a kernel of NORM with a simple case, then one that the judge tries first."""
    small = Case("small", {"b": 2, "d": 8}, {"eps": 0.0})
    everything = Case("everything", {"b": 3, "d": 64}, {"eps": 0.5})
    return ops.validate(replace(NORM, cases=(small, everything)), kernel, arrays="numpy", **options)


def test_a_failure_is_reported_on_the_simplest_case_that_fails():
    def doubled(x, weight, eps):
        return numpy_norm(x, weight, eps) * 2

    assert simple_and_complex(doubled, shrink=False).failures[0].trial.startswith("accuracy; everything;")
    assert simple_and_complex(doubled).failures[0].trial.startswith("accuracy; small;")


def test_shrinking_has_one_cap_for_all_failures_and_says_how_far_it_is():
    told = []
    report = judge(wrong_in_channel_5, progress=lambda *news: told.append(news))
    assert told[0][0] == "trials"
    assert told[-1] == ("shrinking", len(report.failures), len(report.failures))


def test_what_was_found_before_an_interruption_is_kept_while_shrinking(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verdict, "shrunk", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        judge(wrong_in_channel_5)
    report = stopped.value.report  # pyright: ignore[reportAttributeAccessIssue]
    assert report.failures
    assert not report.ok


def test_what_raises_names_the_innermost_line_of_the_user_and_is_told_once():
    def calls_crashes(x, weight, eps):
        return crashes(x, weight, eps)

    (failure,) = judge(calls_crashes).failures
    line = crashes.__code__.co_firstlineno + 1
    assert failure.fault == f"raised IndexError: tile 3 (test_judge.py:{line})"
    assert {trial.split(";")[0] for trial in failure.also} >= {"exact", "law same call, same bits"}


def test_where_nothing_is_judged_that_is_said_with_what_a_kernel_is_given():
    report = judge(numpy_norm, supports={"d": (7,)})
    assert not report.ok
    assert "norm in float32: NOTHING JUDGED" in str(report)
    assert "x, weight; eps -> y" in str(report)
    assert "not covered, d = 64: many" in str(report)


def test_one_trial_is_one_trial():
    assert "  1 trial: 1 accuracy" in str(judge(numpy_norm, only="accuracy; many; seed 0"))


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
    report = judge(numpy_norm, supports={"style": ("other memory order",)})
    assert report.ok
    assert report.uncovered == {"outlier channel inputs": "style"}


def test_an_option_left_to_the_op_counts_with_its_default():
    def without_weight_shift(x, weight, shift=0.0):
        return rms_norm_ref(x, weight + shift, 0.0)

    cases = (Case("as it is", {"b": 1, "d": 2}), Case("shifted", {"b": 1, "d": 2}, {"shift": 1.0}))
    forms = {"norm": lambda x, weight, shift=0.0: rms_norm(x, weight + jnp.float32(shift), 0.0)}
    op = Op("shifting", without_weight_shift, forms, ("x", "weight"), ("y",), cases, draw)

    def always_shifted(x, weight, shift=1.0):
        return without_weight_shift(x, weight, 1.0)

    report = ops.validate(op, always_shifted, arrays="numpy", supports={"shift": (1.0,)})
    report.assert_ok()
    assert report.uncovered == {"as it is": "shift = 0.0"}


def test_a_kernel_may_refuse_views_in_another_memory_order():
    def contiguous_only(x, weight, eps):
        assert x.flags.c_contiguous
        return numpy_norm(x, weight, eps)

    report = judge(contiguous_only)
    report.assert_ok()
    assert report.uncovered == {"other memory order inputs": "refused"}


def test_what_a_kernel_does_to_numpys_error_handling_stays_with_it():
    def raises_from_now_on(x, weight, eps):
        y = numpy_norm(x, weight, eps)
        np.seterr(all="raise")
        return y

    before = np.geterr()
    judge(raises_from_now_on).assert_ok()
    assert np.geterr() == before


def test_a_rounding_is_no_less_than_that_of_the_value_itself_and_of_float32_on_the_whole():
    y = np.array([[1.0, 1e-6, 1e-6, 1e-6], [1e-6] * 4])
    narrow, wide = (rounding_of(y, [y], jnp.dtype(dtype), 1) for dtype in ("bfloat16", "float32"))
    assert narrow[0, 0] >= 2.0**-8
    assert narrow[1].max() < 1e-6
    assert wide.min() >= UNIT32 * np.sqrt(np.mean(np.square(y)))


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


workspace = functools.cache(np.empty)


def reuses_memory(x, weight, eps):
    y = workspace(x.shape)
    y[...] = numpy_norm(x, weight, eps)
    return y


def misreads_strides(x, weight, eps):
    return numpy_norm(x.ravel(order="K").reshape(x.shape), weight, eps)


def leaves(x, weight, eps):
    sys.exit(0)


def rings(x, weight, eps):
    raise ValueError("a\nb \x1b[31m\x07 \ud800" + "c" * 5000)


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError


def says_nothing(x, weight, eps):
    raise MuteError


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (overwrites, "overwrote its argument x"),
        (reuses_memory, "overwrote the result of an earlier call"),
        (misreads_strides, "times the naive form's"),
        (leaves, "raised RuntimeError: SystemExit: 0"),
        (rings, "raised ValueError: a b [31m cccc"),
        (says_nothing, "raised MuteError: (a message that cannot be read)"),
        (lambda x, weight, eps: None, "returned a NoneType, expected an array"),
        (lambda x, weight, eps: [[1.0]], "returned a list, expected an array"),
        (lambda x, weight, eps: numpy_norm(x, weight, eps) + 1j, "returned an array of complex64, expected real"),
        (lambda x, weight, eps: numpy_norm(x, weight, eps).astype(str), "expected real numbers"),
        (
            lambda x, weight, eps: numpy_norm(x, weight, eps).astype(np.float16),
            "y is float16, the naive form's is float32",
        ),
        (wobbles, "y differs by"),
        (mixes_rows, "y differs by"),
        (wrong_shape, "y has shape"),
        (too_many, "returned 2 outputs, expected 1"),
        (crashes, "raised IndexError: tile 3"),
        (
            lambda x, weight, eps: numpy_norm(x, weight, eps) * np.float32("nan"),
            "y[0, 0] is nan, the definition gives ",
        ),
    ],
)
def test_each_kind_of_fault_is_named(kernel, fault):
    faults = [failure.fault for failure in judge(kernel, shrink=False).failures]
    assert any(fault in one for one in faults)
    assert all(one.isprintable() and len(one) < 600 for one in faults)


def test_of_two_results_that_are_not_numbers_neither_is_called_right():
    nan, half = np.full(1, np.nan), np.full(1, 0.5)
    told = [first_wrong("y", nan, "the other way", other, np.isnan(nan)) for other in (nan, half)]
    assert [one.partition(";")[0] for one in told] == [
        "y[0] is nan, expected a number",
        "y[0] is nan, the other way 0.5",
    ]


def test_a_jax_kernel_may_not_donate_what_it_was_given():
    kernel = jax.jit(lambda x, weight, eps: rms_norm(x, weight, eps), static_argnames="eps", donate_argnums=0)
    assert "overwrote its argument x" in judge(kernel, arrays="jax", shrink=False).failures[0].fault


@pytest.mark.parametrize("kernel", [functools.partial(crashes), lambda x, weight, eps: crashes(x, weight, eps)])
def test_the_line_that_repeats_a_trial_can_be_run_though_the_kernel_has_no_name(kernel):
    given = {"arrays": "numpy", "supports": {"d": np.array([1, 2])}}
    failure = ops.validate("rms_norm", kernel, **given, only="accuracy; two; seed 0").failures[0]
    assert eval(failure.reproduce, {"ops": ops, "kernel": kernel}).failures == [failure]


def test_what_took_long_is_not_shrunk_and_what_hangs_is_not_tried_in_every_check(monkeypatch):
    monkeypatch.setattr(verdict, "SHRINK_SECONDS", 0.0)
    report = judge(wrong_in_channel_5)
    assert report.failures
    assert not any("=" in failure.trial for failure in report.failures)
    monkeypatch.setattr(verdict, "HANGING_SECONDS", 0.0)
    report = judge(crashes)
    assert sum(report.ran.values()) == 1
    assert "trials left out" in str(report)


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


def test_what_a_program_prints_need_not_be_text(tmp_path):
    script = tmp_path / "norm.py"
    script.write_text(PROGRAM + "sys.stdout.buffer.write(b'\\xb0')")
    judge(ops.judge.program([sys.executable, str(script)]), only="accuracy; many; seed 0").assert_ok()


def test_a_program_that_names_its_outputs_otherwise_is_told_so(tmp_path):
    script = tmp_path / "norm.py"
    script.write_text(PROGRAM.replace('"0": y', '"y": y'))
    report = judge(ops.judge.program([sys.executable, str(script)]), only="accuracy; many; seed 0")
    assert "wrote y, expected 0" in report.failures[0].fault


def test_the_report_is_json():
    out = json.loads(judge(wrong_in_channel_5, shrink=False).to_json())
    assert out["ok"] is False
    assert out["failures"][0]["reproduce"].startswith("ops.validate(")
    assert set(out["worst"]) == {"max", "p99.9", "rms"}


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"op is 'atention', did you mean 'attention'\? Expected one of: "):
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
    with pytest.raises(ValueError, match="supports says dtype = 'bf16', expected one of: 'float32', 'bfloat16'"):
        judge(numpy_norm, supports={"dtype": ("bf16",)})


@pytest.mark.parametrize("supports", [5, {"d": 64}, {"dtype": "float32"}])
def test_supports_maps_names_to_the_values_allowed(supports):
    with pytest.raises(ValueError, match=r"supports is .* expected the values allowed by name"):
        judge(numpy_norm, supports=supports)


@pytest.mark.parametrize(
    "line",
    ["", "accuracy; many", "accuracy; many; seed -1", "accuracy; many; seed 0; z=3", "accuracy; many; seed 0; d=0"],
)
def test_a_trial_that_there_cannot_be_is_refused(line):
    with pytest.raises(ValueError, match=r"expected 'CHECK; CASE|norm cannot be asked for"):
        judge(numpy_norm, only=line)


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


@pytest.mark.parametrize("sizes", ["", "; past=1 g=1 k=1 j=1"])
def test_a_look_up_that_is_an_average_is_not_judged_by_equality(sizes):
    case = "600 keys" if sizes else "one channel"
    for seed in range(12):
        only = f"exact; {case}; seed {seed}{sizes}"
        assert not ops.validate("attention", ops.naive_attention, only=only).failures


def test_a_cast_that_rounds_in_another_way_is_told_which_one_it_is_held_to():
    def truncating(x, *, format, group, affine):
        _, scales, _ = ops.encode_ints_ref(x, format, group=group)
        return np.trunc(x / np.repeat(scales, x.shape[-1] // scales.shape[-1], -1)).astype(np.int8), scales

    supports = {"format": ("int8",), "group": (8,)}
    report = ops.validate("encode_ints", truncating, arrays="numpy", supports=supports)
    assert "held to: scale max|x| * f32(1/127)" in str(report)
