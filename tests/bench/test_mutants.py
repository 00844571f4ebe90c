from pathlib import Path

import pytest

from bench.mutants.catalogue import MUTANTS
from bench.mutants.mutant import OPS as FOLDER
from bench.mutants.mutant import Mutant, broken
from bench.mutants.score import first_failure, score
from minillm import ops
from minillm.ops.judge import OPS, compiled

ids = [f"{mutant.op}: {mutant.bug}" for mutant in MUTANTS]


def test_there_are_many_seeded_bugs_in_every_op_of_weight():
    assert len(MUTANTS) >= 60
    assert {"attention", "paged_attention", "mla", "selective_scan", "ssd", "gated_delta", "route", "moe"} <= {
        mutant.op for mutant in MUTANTS
    }
    assert len(set(ids)) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=ids)
def test_a_seeded_bug_fits_the_source_it_is_seeded_into(mutant):
    assert mutant.form in OPS[mutant.op].forms
    source = Path(FOLDER / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")


# A line of data is all that a new bug takes; this is the example of ops/README.md.
NEW = Mutant("rms_norm", "rms_norm", "mean of |x|", "norm.py", "jnp.square(x_wide)", "jnp.abs(x_wide)")


def test_a_new_bug_is_one_line_of_data_and_is_caught():
    assert score(NEW).caught_by
    assert ops.rms_norm.__wrapped__.__code__ is OPS["rms_norm"].forms["rms_norm"].__wrapped__.__code__


def test_a_bug_in_a_shared_file_reaches_the_form_and_leaves_the_real_one_alone():
    mutant = next(mutant for mutant in MUTANTS if mutant.file == "attention/scores.py")
    op = OPS[mutant.op]
    assert first_failure(op, compiled(broken(mutant, op.forms[mutant.form])), "float32")
    assert ops.validate(op, compiled(op.forms[mutant.form]), quick=True).ok


def test_a_text_that_does_not_stand_there_once_is_refused():
    with pytest.raises(ValueError, match=r"stands 0 times in norm\.py, expected once"):
        broken(NEW._replace(old="no such text"), ops.rms_norm)
