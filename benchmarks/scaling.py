"""The training step on many devices, on paper: what one device computes, keeps and sends.

    python -m benchmarks.scaling --config configs/person.py --devices 1 8 64 256
    python -m benchmarks.scaling --config configs/person.py --dtype bfloat16 --tpu v5e:2x4 v5e:8x8 v5e:16x16

Nothing is run and no data read: the step is compiled, for so many virtual CPU devices or, with `pip install libtpu` and
without any TPU, for slices of TPUs, and asked for its `cost_analysis()`, its `memory_analysis()` and the collectives in
its text. What stands inside of a loop is counted once, though it runs once a round.
"""

import argparse
import functools
import os
import re
import time

MIB = 2**20
COLLECTIVES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
# %name = SHAPE OPERATION(..., where SHAPE is f32[8,16]{1,0} or a tuple of such
INSTRUCTION = re.compile(rf" = (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(-start)?\(")
SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


def collectives(text):
    """What the text of a compiled module sends: {(operation, outside of the main computation, as in a loop): (how many,
    bytes)}.
    """
    found, entry = {}, False
    for line in text.splitlines():
        if line and not line[0].isspace():
            entry = line.startswith("ENTRY")
        match = INSTRUCTION.search(line)
        if not match:
            continue
        shapes, operation, started = match.groups()
        sizes = [_size(*shape) for shape in SHAPE.findall(shapes)]
        if started and operation in ("all-gather", "collective-permute"):  # its tuple holds operands first
            sizes = sizes[len(sizes) // 2 :]
        count, total = found.get((operation, not entry), (0, 0))
        found[operation, not entry] = count + 1, total + sum(sizes)
    return found


def _size(kind, dimensions):
    size = BYTES.get(kind, 4)
    for dimension in dimensions.split(","):
        size *= int(dimension or 1)
    return size


def compile_step(config, mesh, batch_size, height, width):
    """The training step of `config` compiled for the devices of a mesh."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxdet.data import pipeline
    from jaxdet.data.resizing import Resizing
    from jaxdet.models import FasterRCNN
    from jaxdet.runs.mesh import replicated, state_sharding
    from jaxdet.training.optimizer import optimizer
    from jaxdet.training.step import create_state, train_step

    model, update = FasterRCNN(**config.model), optimizer(config)
    state = jax.eval_shape(functools.partial(create_state, model, update, config))
    shardings = state_sharding(mesh, state)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings
    )
    split = NamedSharding(mesh, PartitionSpec(("data", "model")))
    dtype = Resizing.of(config.data.train).dtype
    batch = pipeline.empty_batch(batch_size, (height, width), 16, dtype)
    batch["image_ids"] = batch["image_ids"].astype("int32")
    batch = {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=split) for name, value in batch.items()}
    step = functools.partial(train_step, model=model, optimizer=update, config=config)
    step = jax.jit(step, donate_argnums=(0,), out_shardings=(shardings, replicated(mesh)))
    with jax.set_mesh(mesh):
        return step.lower(state, batch).compile()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="FILE[:ARGS]")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8], help="virtual CPU devices")
    parser.add_argument("--tpu", nargs="+", metavar="SLICE", help="such as v5e:4x4 or v5p:2x2x2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=2, help="images a device")
    parser.add_argument("--shard-parameters", type=int, default=1, help="as config.train.shard_parameters")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(options.devices)}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks Google's servers which TPU it runs on

    import jax
    from jax.experimental import topologies

    from jaxdet.config.command_line import load_config
    from jaxdet.runs.mesh import device_mesh

    config = load_config(options.config)
    if options.dtype:
        config.model.dtype = options.dtype
    if options.tpu:
        slices = {name: topologies.get_topology_desc(name, platform="tpu").devices for name in options.tpu}
    else:
        slices = {f"{count} x cpu": jax.devices()[:count] for count in options.devices}
    print(f"{options.batch} images of {options.height}x{options.width} a device, {config.model.dtype}; a device:")
    for name, devices in slices.items():
        started = time.perf_counter()
        mesh = device_mesh(options.shard_parameters, devices)
        compiled = compile_step(config, mesh, options.batch * mesh.size, options.height, options.width)
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        print(
            f"{name}: {mesh.size} devices, {cost['flops'] / 1e9:,.0f} GFLOP, "
            f"{cost['bytes accessed'] / 1e9:,.1f} GB moved, "
            f"{memory.argument_size_in_bytes / MIB:,.0f} MiB of arguments, {memory.temp_size_in_bytes / MIB:,.0f} MiB "
            f"temporary, compiled in {time.perf_counter() - started:.0f} s"
        )
        for (operation, looped), (count, size) in sorted(collectives(compiled.as_text()).items()):
            print(f"    {operation}{', in loops and branches' * looped}: {count}, {size / MIB:,.3f} MiB", flush=True)


if __name__ == "__main__":
    main()
