"""What a training step needs: memory of the compiled step against batch, boxes, frozen and rematerialised stages.

    python -m benchmarks.memory --config configs/person.py --batch 1 2 4
    python -m benchmarks.memory --config configs/person.py --boxes 16 500
    python -m benchmarks.memory --config configs/person.py --freeze-at 0 2 5
    python -m benchmarks.memory --config configs/person.py --remat none 2345 --freeze-at 0

One row for each combination. Nothing is run and no data read: the step is compiled and asked for its
`memory_analysis()` and `cost_analysis()`.
"""

import argparse
import functools
import itertools

import jax

from jaxdet.config.command_line import load_config
from jaxdet.data.pipeline import empty_batch
from jaxdet.data.resizing import Resizing
from jaxdet.models import FasterRCNN
from jaxdet.runs.mesh import device_mesh, replicated
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state, train_step
from jaxdet.training.validation import compile_shapes, remat_options

MIB = 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--boxes", type=int, nargs="+", default=[16], help="rows of ground truth an image")
    parser.add_argument("--freeze-at", type=int, nargs="+", default=[2], metavar="STAGE")
    parser.add_argument("--remat", nargs="+", default=["none"], metavar="STAGES", help="none, or digits: 45 for (4, 5)")
    arguments = parser.parse_args()
    shape, rows = (arguments.height, arguments.width), []
    for batch, boxes, freeze_at, remat in itertools.product(
        arguments.batch, arguments.boxes, arguments.freeze_at, arguments.remat
    ):
        config = load_config(arguments.config)
        config.model.dtype = arguments.dtype
        stages = () if remat == "none" else tuple(map(int, remat))
        config.model.backbone.update(freeze_at=freeze_at, remat=stages)
        model, update = FasterRCNN(**config.model), optimizer(config)
        state = jax.eval_shape(functools.partial(create_state, model, update, config))
        step = functools.partial(train_step, model=model, optimizer=update, config=config)
        mesh = device_mesh(devices=jax.devices()[:1])
        example = empty_batch(batch, shape, boxes, Resizing.of(config.data.train).dtype)
        compiled = compile_shapes(
            step,
            state,
            [example],
            mesh,
            purpose="training",
            donate="state",
            out_shardings=replicated(mesh),
            options=remat_options(config),
        )[shape]
        cost = compiled.cost_analysis()
        kept = [
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / MIB
            for tree in (state.trainable, state.optimizer)
        ]
        temporary = compiled.memory_analysis().temp_size_in_bytes / MIB
        rows.append(
            (batch, boxes, freeze_at, remat, temporary, *kept, cost["flops"] / 1e9, cost["bytes accessed"] / 1e9)
        )
    heads = "batch", "boxes", "freeze_at", "remat", "temporary", "trainable", "optimiser", "GFLOP", "GB moved"
    print(f"\n{shape[0]} x {shape[1]}, {arguments.dtype}; temporary, trainable and optimiser in MiB")
    print("  ".join(f"{head:>9}" for head in heads))
    for row in rows:
        print("  ".join(f"{cell:>9,.0f}" if isinstance(cell, float) else f"{cell:>9}" for cell in row))


if __name__ == "__main__":
    main()
