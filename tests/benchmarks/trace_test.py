import functools
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trace
from jaxdet.models import FasterRCNN
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state, train_step
from tests.models import tiny

STEP = "jit(train_step)/jvp(FasterRCNN.losses)/"
BACKWARD = "jit(train_step)/transpose(jvp(FasterRCNN.losses))/"
PROGRAM = """HloModule jit_train_step

%fused_computation.1 (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  %sine.1 = f32[8]{0} sine(%param_0), metadata={op_name="jit(train_step)/jvp(M)/box_head/sin" stack_frame_id=3}
  ROOT %add.1 = f32[8]{0} add(%sine.1, %sine.1), metadata={op_name="jit(train_step)/jvp(M)/box_head/sin"}
}

ENTRY %main.9 (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0), metadata={op_name="state.trainable[\\'rpn_head\\']"}
  %copy.2 = f32[8]{0:T(256)} copy(%p.1)
  %fusion.1 = f32[8]{0} fusion(%copy.2), kind=kLoop, calls=%fused_computation.1
  ROOT %custom-call.4 = f32[8]{0} custom-call(%fusion.1), metadata={op_name="jit(train_step)/optimizer/mul" line=7}
}
"""


def event(start, duration, instruction, thread=1, **more):
    """Of a device, in microseconds."""
    return {
        "ph": "X", "pid": 1, "tid": thread, "ts": start, "dur": duration, "name": f"kernel of {instruction}",
        "args": {"hlo_op": instruction} | more,
    }  # fmt: skip


def thread_name(thread, name):
    return {"ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": {"name": name}}


def test_names_of_instructions_from_the_program():
    names = trace.operation_names(PROGRAM)
    assert names["custom-call.4"] == "jit(train_step)/optimizer/mul"
    assert names["fusion.1"] == "jit(train_step)/jvp(M)/box_head/sin"  # of what it fuses
    assert trace.part_of(names["copy.2"]) == trace.part_of(names["p.1"]) == "RPN head"  # of what it copies


def test_a_made_trace_of_a_gpu():
    """Two steps of 100 us: kernels of two streams, one of them beside another, a copy without an instruction."""
    names = {
        "conv": STEP + "resnet/stage3_block0/conv1/conv_general_dilated",
        "sort": STEP + "FasterRCNN._losses/proposals/vmap()/top_k",
        "scatter": BACKWARD + "FasterRCNN._losses/box_head/vmap(roi_align)/scatter-add",
    }
    events = [thread_name(1, "Stream #14(Compute)"), thread_name(2, "Stream #15(MemcpyH2D)")]
    events += [thread_name(3, "XLA Ops"), thread_name(4, "python")]
    for start in (1000, 1100):
        events += [event(start, 40, "conv"), event(start + 40, 10, "sort"), event(start + 60, 30, "scatter")]
        events += [event(start + 30, 20, "copy", thread=2), event(start, 90, "conv", thread=3)]  # of a derived line
    events += [{"ph": "X", "pid": 1, "tid": 2, "ts": 1190, "dur": 10, "name": "MemcpyD2D"}]
    events += [{"ph": "X", "pid": 2, "tid": 4, "ts": 0, "dur": 9999, "name": "PjitFunction(step)"}]
    found = trace.reduce(events, names, 2)
    assert found["step_ms"] == pytest.approx(0.1)
    assert found["idle_ms"] == pytest.approx(0.015)  # 50 to 60 in both, 90 to 100 in the first alone
    parts = {name: times for name, times in found["parts"].items() if any(times.values())}
    assert parts == {
        "stage 3": {"forward_ms": pytest.approx(0.04), "backward_ms": 0},
        "top-k": {"forward_ms": pytest.approx(0.01), "backward_ms": 0},
        "RoIAlign": {"forward_ms": 0, "backward_ms": pytest.approx(0.03)},
        "other": {"forward_ms": pytest.approx(0.025), "backward_ms": 0},
    }
    assert [each["instruction"] for each in found["largest"]] == ["conv", "scatter", "copy", "sort", "MemcpyD2D"]
    text = trace.table(found)
    assert re.search(r"stage 3 +0.04 ms +0.00 ms +40.0%", text) and re.search(r"idle +0.01 ms +15.0%", text)


def test_names_that_the_trace_itself_has():
    found = trace.reduce([event(0, 1000, "a", name="jit(step)/optimizer/add")], {}, 1)
    assert found["parts"]["optimizer"]["forward_ms"] == 1


def test_a_loop_does_not_count_what_runs_inside_it_twice():
    """As a CPU's threads have it: the loop lies around its body."""
    names = {"while": STEP + "proposals/vmap(nms)/while", "any": STEP + "proposals/vmap(nms)/while/body/any"}
    names |= {"dot": STEP + "box_head/fc0/dot_general"}
    events = [event(0, 100, "while"), event(10, 20, "any"), event(30, 60, "any"), event(100, 50, "dot")]
    events += [event(20, 100, "dot", thread=2)]
    found = trace.reduce(events, names, 1)
    assert found["step_ms"] == pytest.approx(0.15) and found["idle_ms"] == pytest.approx(0)
    assert found["parts"]["NMS"]["forward_ms"] == pytest.approx(0.1)
    assert found["parts"]["box head"]["forward_ms"] == pytest.approx(0.15)


def test_a_trace_without_a_device():
    with pytest.raises(ValueError, match="no event of a device"):
        trace.reduce([thread_name(1, "python")], {}, 1)


def test_a_real_trace(tmp_path):
    @jax.jit
    def step(x):
        with jax.named_scope("nms"):
            x = jax.lax.fori_loop(0, 5, lambda _, x: jnp.sort(x, 0), x)
        with jax.named_scope("optimizer"):
            return jnp.sin(x) @ x

    x = jnp.ones((200, 200))
    compiled = step.lower(x).compile()
    compiled(x).block_until_ready()
    events = trace.record(lambda: compiled(x), 3, tmp_path)
    found = trace.reduce(events, trace.operation_names(compiled.as_text()), 3)
    times = {name: sum(times.values()) for name, times in found["parts"].items()}
    assert times["NMS"] > 0 and times["optimizer"] > 0
    assert times["NMS"] + times["optimizer"] == pytest.approx(sum(times.values()), rel=0.2)
    assert 0 <= found["idle_ms"] < found["step_ms"]


def test_every_part_is_named_in_the_training_step():
    """By a module or a scope: all rows of the table have operations, and hardly any operation is without a row."""
    config = tiny.config()
    model, update = FasterRCNN(**config.model), optimizer(config)
    state = jax.eval_shape(functools.partial(create_state, model, update, config))
    step = functools.partial(train_step, model=model, optimizer=update, config=config)
    text = jax.jit(step).lower(state, tiny.batch()).as_text(debug_info=True)
    operations = set(re.findall(r'loc\("(jit\(train_step\)/[^"]*)"', text))
    found = {(trace.part_of(name), trace.is_backward(name)) for name in operations}
    assert {part for part, _ in found} == set(trace.PARTS)
    learned = {"stage 2", "stage 3", "stage 4", "stage 5", "stem", "FPN", "RPN head", "RoIAlign", "box head"}
    assert {part for part, backward in found if backward} == learned | {"losses"}
    other = [name for name in operations if trace.part_of(name) == "other"]
    assert len(other) < len(operations) / 20, other
