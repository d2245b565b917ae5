"""Reading compiled programs, on a program written by hand."""

import pytest

from recogdrive.ahead_of_time.hlo import read_program

PROGRAM = """HloModule jit_train_step, is_scheduled=true

%all-reduce-scatter.1 (input: bf16[8,128]) -> bf16[2,128] {
  %input = bf16[8,128]{1,0} parameter(0)
  %all-reduce.9 = bf16[8,128]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = bf16[2,128]{1,0} dynamic-slice(%all-reduce.9)
}

%condition (state: (s32[])) -> pred[] {
  %state = (s32[]) parameter(0)
  %count = s32[] constant(28)
  ROOT %less = pred[] compare(%state, %count), direction=LT
}

%open (state: (s32[])) -> pred[] {
  %state.1 = (s32[]) parameter(0)
  ROOT %unknown = pred[] get-tuple-element(%state.1), index=0
}

%body (state: (s32[])) -> (s32[]) {
  %gather = bf16[1,16,128]{2,1,0} all-gather(%piece), replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={1}
  %product = f32[16,16]{1,0} fusion(%gather), calls=%inner, metadata={op_name="jit(f)/dot"}, \
backend_config={"estimated_cycles":"1000"}
  %summed = bf16[2,128]{1,0} fusion(%product), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]) tuple(%i)
}

%loss (state: (s32[])) -> (s32[]) {
  %work = f32[4]{0} fusion(%x), calls=%inner, backend_config={"estimated_cycles":"10"}
  ROOT %end = (s32[]) tuple(%i)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %layers = (s32[]) while(%start), condition=%condition, body=%body
  %chunks = (s32[]) while(%start), condition=%open, body=%loss
  %total = f32[256]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %moved = f32[256]{0} copy(%x)
  %splash_mqa_fwd.1 = f32[2,4,256,128]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[1,2,2]{2,1,0}, bf16[2,4,256,128]{3,2,1,0}, s32[256,128]{1,0}, s32[256,128]{1,0}}, x={}
  %tiles.2 = f32[4]{0} custom-call(%q), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":\
{"body":"","cost_estimate":{"bytes_accessed":"8","flops":"4000","transcendentals":"3"}}}
  ROOT %out = f32[4]{0} add(%x, %x)
}
"""


@pytest.fixture(scope="module")
def program():
    return read_program(PROGRAM, dynamic_trips=3)


def test_cycles_in_loops_count_as_often_as_they_run(program):
    assert program.cycles == 28 * 1000 + 3 * 10
    assert program.dynamic_loops == 1
    assert program.cycles_by_operation["jit(f)/dot"] == 28_000


def test_a_chip_sends_what_rings_send(program):
    sent = program.sent_bytes()
    assert sent["all-gather"] == 28 * (16 * 128 * 2) * 3 / 4
    assert sent["reduce-scatter"] == 28 * (2 * 128 * 2) * 3
    assert sent["all-reduce"] == 2 * (256 * 4) * 3 / 4


def test_a_sum_of_which_a_part_is_kept_is_no_all_reduce(program):
    (scatter,) = [c for c in program.collectives if c.kind == "reduce-scatter"]
    assert (scatter.loops, scatter.times, scatter.group) == (1, 28, 4)
    assert program.result_bytes()["reduce-scatter"] == 28 * 2 * 128 * 2


def test_a_causal_kernel_computes_half_of_the_products(program):
    assert program.kernel_flops["splash_mqa_fwd"] == 2 * 2 * (2 * 4 * 256) * 256 * 128 / 2
    assert program.copied_bytes == 2 * 256 * 4


def test_a_kernel_that_states_its_operations_is_believed(program):
    assert program.kernel_flops["tiles"] == 4000 and program.kernels["tiles"] == 1


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("nothing")
