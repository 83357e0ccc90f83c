"""Traffic, kernels, and collectives of small programs, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from hjepa_jax.tools.plan.program_text import (
    Counts,
    array_bytes,
    count_program,
    parse_program,
    sent_bytes,
)

HEAD = "HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[]}\n\n"
FUSED = """%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: f32[64,8], q: s32[]) -> f32[1,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={1,8}
}

%update (p.1: f32[64,8], q.1: f32[1,8], r.1: s32[]) -> (f32[64,8], f32[1,8]) {
  %p.1 = f32[64,8]{1,0} parameter(0)
  %q.1 = f32[1,8]{1,0} parameter(1)
  %r.1 = s32[] parameter(2)
  %none = s32[] constant(0)
  %twice = f32[1,8]{1,0} add(%q.1, %q.1)
  %new = f32[64,8]{1,0} dynamic-update-slice(%p.1, %twice, %r.1, %none)
  ROOT %both = (f32[64,8]{1,0}, /*index=1*/f32[1,8]{1,0}) tuple(%new, %twice)
}

"""


def program(*lines: str, others: str = FUSED) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEAD}{others}ENTRY %main (x: f32[64,8]) -> f32[] {{\n{body}\n}}\n"


def test_sizes_of_arrays() -> None:
    assert array_bytes("f32[8,16]{1,0:T(8,128)}") == [512]
    assert array_bytes("(bf16[3]{0}, pred[], /*index=2*/u4[5]{0}, token[])") == [6, 1, 3, 0]
    assert array_bytes("f8e4m3fn[7]{0}") == [7]
    moved = "(f32[4]{0:T(128)S(1)}, f32[4]{0:T(128)}, u32[]{:S(2)})"
    assert array_bytes(moved) == [16, 16, 4]
    assert array_bytes(moved, main_memory=True) == [0, 16, 0]


def test_a_kernel_reads_its_operands_and_writes_its_result() -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0} parameter(0)",
            '%t = f32[8,64]{1,0} transpose(%x), metadata={op_name="jit(f)/(a)" stack_frame_id=1}',
            "%b = f32[512]{0} bitcast(%t)",
            "ROOT %c = bf16[512]{0} convert(%b)",
        )
    )
    assert counts.traffic == 2048 + 2048 + 2048 + 1024
    assert counts.kernels == {"transpose": 1, "convert": 1}
    assert not counts.collectives


def test_a_fusion_that_takes_a_slice_reads_the_slice() -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0} parameter(0)",
            "%i = s32[] parameter(1)",
            "ROOT %f = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused",
        )
    )
    assert counts.traffic == 32 + 4 + 32


def test_a_fusion_that_updates_a_slice_writes_the_slice() -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0} parameter(0)",
            "%y = f32[1,8]{1,0} parameter(1)",
            "%i = s32[] parameter(2)",
            "ROOT %f = (f32[64,8]{1,0}, f32[1,8]{1,0}) fusion(%x, %y, %i), kind=kLoop, "
            "calls=%update",
        )
    )
    assert counts.traffic == 32 + 4 + 32 + 32


def test_arrays_outside_the_main_memory_are_free() -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0:T(8,128)} parameter(0)",
            "%s = (f32[64,8]{1,0:T(8,128)S(1)}, f32[64,8]{1,0:T(8,128)}, u32[]{:S(2)}) "
            "copy-start(%x)",
            "%d = f32[64,8]{1,0:T(8,128)S(1)} copy-done(%s)",
            "ROOT %n = f32[64,8]{1,0:T(8,128)S(1)} negate(%d)",
        )
    )
    assert counts.traffic == 2048
    assert counts.kernels == {"copy": 1, "negate": 1}


def test_a_slice_that_is_moved_apart_is_not_its_whole_array() -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0:T(8,128)} parameter(0)",
            "%s = ((f32[64,8]{1,0:T(8,128)}), f32[16,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) "
            "slice-start(%x), slice={[0:16], [0:8]}",
            "ROOT %d = f32[16,8]{1,0:T(8,128)S(1)} slice-done(%s)",
        )
    )
    assert counts.traffic == 512
    assert counts.kernels == {"slice": 1}


LOOP = """%body (s: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %s = (s32[], f32[64,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %v = f32[64,8]{1,0} get-tuple-element(%s), index=1
  %r = f32[64,8]{1,0} all-reduce(%v), replica_groups={{0,1}}, to_apply=%sum
  ROOT %o = (s32[], f32[64,8]{1,0}) tuple(%n, %r)
}

%test (c: (s32[], f32[64,8])) -> pred[] {
  %c = (s32[], f32[64,8]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

"""


@pytest.mark.parametrize(
    ("config", "turns", "endless"),
    [
        ('{"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}', 5, 0),
        ("{}", 1, 1),
    ],
)
def test_loops_count_each_turn(config: str, turns: int, endless: int) -> None:
    counts = count_program(
        program(
            "%x = (s32[], f32[64,8]{1,0}) parameter(0)",
            "ROOT %w = (s32[], f32[64,8]{1,0}) while(%x), condition=%test, body=%body, "
            f"backend_config={config}",
            others=FUSED + LOOP,
        )
    )
    assert counts.collectives == {"all-reduce": turns}
    assert counts.reduced == {"all-reduce": turns * 2048}
    assert counts.traffic == turns * 4096
    assert counts.endless == endless


BRANCHES = """%cheap (m: f32[64,8]) -> f32[64,8] {
  ROOT %m = f32[64,8]{1,0} parameter(0)
}

%dear (k: f32[64,8]) -> f32[64,8] {
  %k = f32[64,8]{1,0} parameter(0)
  ROOT %z = f32[64,8]{1,0} negate(%k)
}

"""


@pytest.mark.parametrize(
    "named",
    [
        "branch_computations={%dear, %cheap}",
        "true_computation=%dear, false_computation=%cheap",
        "true_computation=%cheap, false_computation=%dear",
    ],
)
def test_a_conditional_counts_as_its_cheaper_branch(named: str) -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0} parameter(0)",
            "%p = pred[] parameter(1)",
            f"%c = f32[64,8]{{1,0}} conditional(%p, %x, %x), {named}",
            "ROOT %l = f32[64,8]{1,0} call(%c), to_apply=%dear",
            others=BRANCHES,
        )
    )
    assert counts.kernels == {"negate": 1}
    assert counts.traffic == 4096


def test_collectives_started_apart_are_counted_once() -> None:
    counts = count_program(
        program(
            "%x = f32[64,8]{1,0} parameter(0)",
            "%y = bf16[8]{0} parameter(1)",
            "%s = (f32[64,8]{1,0}, bf16[8]{0}) all-reduce-start(%x, %y), to_apply=%sum",
            "%d = (f32[64,8]{1,0}, bf16[8]{0}) all-reduce-done(%s)",
            "%g = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%y), dimensions={0}",
            "%h = bf16[32]{0} all-gather-done(%g)",
            "ROOT %r = f32[16,8]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%sum",
        )
    )
    assert counts.collectives == {"all-reduce": 1, "all-gather": 1, "reduce-scatter": 1}
    assert counts.reduced == {"all-reduce": 2064, "all-gather": 16, "reduce-scatter": 2048}
    assert counts.traffic == 2 * 2064 + (16 + 64) + (2048 + 512)
    # Rings of four: an all-reduce sends 6/4 of what it is given, and so on.
    assert sent_bytes(counts, 4) == 1.5 * 2064 + 3 * 16 + 0.75 * 2048
    assert sent_bytes(counts, 1) == 0
    assert sent_bytes(Counts(), 8) == 0


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_program("module @jit_f {}")


def test_a_program_of_this_compiler_is_read() -> None:
    """What XLA prints today: a product of two matrices, of which nothing else is left."""
    x, y = jnp.ones((32, 16)), jnp.ones((16, 8))
    text = jax.jit(lambda a, b: a @ b).lower(x, y).compile().as_text()
    counts = count_program(text)
    assert sum(counts.kernels.values()) == 1
    assert counts.traffic == 4 * (32 * 16 + 16 * 8 + 32 * 8)
