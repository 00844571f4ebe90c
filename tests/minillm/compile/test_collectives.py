"""What is read out of compiled HLO."""

import pytest

from minillm.compile.collectives import collectives, received

HLO = """\
HloModule jit_step, is_scheduled=true

%body.7 (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %permute.1 = f32[8,128]{1,0} collective-permute(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main.9 (p0: bf16[4,256]) -> bf16[4,256] {
  %all-reduce.2 = bf16[4,256]{1,0:T(8,128)(2,1)} all-reduce(%fusion), replica_groups={{0,1,2,3}}, to_apply=%add
  %all-reduce-start = (f32[16]{0}, f32[16]{0}) all-reduce-start(%a, %b), replica_groups=[2,4]<=[8], to_apply=%add
  %all-reduce-done = f32[16]{0} all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%c), replica_groups=[1,4]<=[4], dimensions={0}
  %while.3 = (s32[], f32[8,128]) while(%t), body=%body.7, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_each_kind_is_counted_loops_as_often_as_they_turn():
    calls, total = collectives(HLO)
    assert calls == {"all-reduce": 2, "all-gather": 1, "collective-permute": 5}
    assert total["all-reduce"] == 2 * 3 / 4 * (2 * 4 * 256) + 2 * 3 / 4 * (4 * 16)
    assert total["all-gather"] == 3 / 4 * (4 * 8 * 8)
    assert total["collective-permute"] == 5 * 4 * 8 * 128


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"])
def test_a_lone_device_receives_nothing(kind):
    assert received(kind, 1, 1000) == 0


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    n, nbytes = 8, 4096
    assert received("all-reduce", n, nbytes) == received("reduce-scatter", n, nbytes / n) + received(
        "all-gather", n, nbytes
    )
