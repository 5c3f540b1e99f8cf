"""Where the time of a training step of person.py goes: a profiler trace, reduced to a table.

    python -m benchmarks.trace --batch 16                              on a GPU
    python -m benchmarks.trace --batch 2 --height 256 --width 320      on a CPU

Each event of the device names an instruction of the compiled program, and the program names the operation of the source
that each instruction comes from, with the modules and scopes around it. A fused kernel counts for the operation it ends
with. `idle` is the time in which the device ran nothing. On a CPU it includes work that an operation leaves to other
threads, which is much in bfloat16. If a device runs several kernels at a time, the
parts add up to more than the step. The trace itself stays in --folder, for TensorBoard or Perfetto.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re

import jax

from benchmarks import rows

# row of the table -> what the name of its operations matches; the first that does counts
PARTS = {
    "optimizer": r"\boptimizer\b",
    "stage 2": r"\bstage2_",
    "stage 3": r"\bstage3_",
    "stage 4": r"\bstage4_",
    "stage 5": r"\bstage5_",
    "stem": r"\bresnet\b",
    "FPN": r"\bpyramid\b",
    "RPN head": r"\brpn_head\b",
    "top-k": r"\bproposals\b.*\btop_k\b",
    "NMS": r"\bnms\b",
    "proposals, all else": r"\bproposals\b",
    "matching and sampling": r"\btargets\b",
    "RoIAlign": r"\broi_align\b",
    "box head": r"\bbox_head\b",
    "losses": r"\bFasterRCNN\._losses\b",
    "images": r"\bFasterRCNN\.features\b",
    "other": "",
}
LARGEST = 20  # instructions that are listed by themselves


def part_of(name):
    """Row of the table for an operation such as jit(train_step)/jvp(FasterRCNN.losses)/box_head/vmap(roi_align)/add."""
    return next(part for part, pattern in PARTS.items() if re.search(pattern, name))


def is_backward(name):
    """Whether an operation belongs to the backward pass."""
    return "transpose(jvp(" in name


def operation_names(program):
    """{instruction: operation of the source} of a compiled program's text (HLO).

    What the compiler made itself has no name: a fusion takes that of most of its instructions, anything else, such as a
    change of layout, that of its first operand.
    """
    names, computations, inside = {}, {}, []
    for line in program.splitlines():
        if line.endswith("{") and (start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line)):
            inside = computations[start[1]] = []
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            named, fused = re.search(r'op_name="([^"]+)"', line), re.search(r"calls=%?([\w.\-]+)", line)
            operand = re.search(r"%([\w.\-]+)", line[instruction.end() :])
            if named:
                name = named[1]
            elif fused and computations.get(fused[1]):
                name = collections.Counter(computations[fused[1]]).most_common(1)[0][0]
            else:
                name = names.get(operand[1], "") if operand else ""
            names[instruction[1]] = name
            inside += [name] if name else []
    return names


def device_events(events):
    """What the device ran: events of a GPU's streams; without a GPU, events that name an instruction."""
    threads = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event.get("name") == "thread_name"
    }
    ran = [event for event in events if event.get("ph") == "X"]
    streams = [event for event in ran if threads.get((event["pid"], event["tid"]), "").startswith("Stream")]
    return streams or [event for event in ran if "hlo_op" in event.get("args", {})]


def own_times(events):
    """Pairs of event and its own microseconds, without those of events inside it (a loop's, on a CPU)."""
    own, open_ones = [], {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        around = open_ones.setdefault((event["pid"], event["tid"]), [])
        while around and own[around[-1]][0]["ts"] + own[around[-1]][0]["dur"] <= event["ts"]:
            around.pop()
        if around:
            own[around[-1]][1] -= event["dur"]
        around.append(len(own))
        own.append([event, event["dur"]])
    return own


def busy_time(events):
    """Microseconds in which at least one event ran."""
    total, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event["ts"]):
        start, stop = max(event["ts"], end), event["ts"] + event["dur"]
        total, end = total + max(stop - start, 0.0), max(end, stop)
    return total


def reduce(events, names, steps):
    """The table of a trace of `steps` steps: Chrome trace events, and instruction -> operation -> dict for JSON.

    step_ms and idle_ms of one step, `parts` {row: {"forward_ms", "backward_ms"}} likewise, `largest` the instructions
    that took most. Raises ValueError if the trace has no event of a device.
    """
    events = device_events(events)
    if not events:
        raise ValueError("the trace holds no event of a device; was it stopped before the steps had run?")
    span = max(event["ts"] + event["dur"] for event in events) - min(event["ts"] for event in events)
    parts = {part: {"forward_ms": 0.0, "backward_ms": 0.0} for part in PARTS}
    instructions = collections.Counter()
    for event, microseconds in own_times(events):
        more = event.get("args", {})
        instruction = more.get("hlo_op", event["name"])
        name = names.get(instruction) or more.get("tf_op") or more.get("name") or ""
        milliseconds = microseconds / steps / 1000
        parts[part_of(name)]["backward_ms" if is_backward(name) else "forward_ms"] += milliseconds
        instructions[instruction, name] += milliseconds
    return {
        "step_ms": span / steps / 1000,
        "idle_ms": (span - busy_time(events)) / steps / 1000,
        "parts": parts,
        "largest": [
            {"instruction": instruction, "operation": name, "part": part_of(name), "ms": milliseconds}
            for (instruction, name), milliseconds in instructions.most_common(LARGEST)
        ],
    }


def table(found):
    """`reduce`'s dict as text."""
    lines = [f"{'part':24} {'forward':>10} {'backward':>10} {'of the step':>12}"]
    for part, times in found["parts"].items():
        forward, backward = times["forward_ms"], times["backward_ms"]
        share = (forward + backward) / found["step_ms"]
        lines.append(f"{part:24} {forward:7.2f} ms {backward:7.2f} ms {share:12.1%}")
    lines.append(f"{'idle':24} {found['idle_ms']:7.2f} ms {found['idle_ms'] / found['step_ms']:23.1%}")
    lines.append(f"{'step':24} {found['step_ms']:7.2f} ms")
    lines += ["", "largest instructions"]
    for each in found["largest"]:
        lines.append(f"{each['ms']:8.2f} ms  {each['part']:22} {each['instruction']}  {each['operation']}")
    return "\n".join(lines)


def read_trace(folder):
    """Events of the newest trace under a folder."""
    path = max(pathlib.Path(folder).glob("plugins/profile/*/*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def record(run, steps, folder):
    """Events of a trace of `steps` calls of `run`. `run` does not wait; the trace waits for its result."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        jax.block_until_ready([run() for _ in range(steps)])
    return read_trace(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", default="runs/trace", help="for the trace itself (default: runs/trace)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    options = parser.parse_args()
    step, state, example = rows.training_step(options.height, options.width, options.batch, options.dtype)
    compiled = step.lower(state, example).compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, example)
        return metrics

    jax.block_until_ready([run(), run()])
    found = reduce(record(run, options.steps, options.folder), operation_names(compiled.as_text()), options.steps)
    print(f"{rows.device()}, {options.batch} of {options.height}x{options.width}, {options.dtype}")
    print(table(found))
    if options.json:
        settings = {name: getattr(options, name) for name in ("height", "width", "batch", "dtype", "steps")}
        pathlib.Path(options.json).write_text(json.dumps({"device": rows.device()} | settings | found, indent=2))


if __name__ == "__main__":
    main()
