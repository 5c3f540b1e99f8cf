"""What freezing saves: memory of the compiled training step and of the optimiser for each `freeze_at`.

    python -m benchmarks.frozen_memory --config configs/person.py --batch 2 --height 800 --width 1344

Nothing is run and no data read: the step is compiled and asked for its `memory_analysis()`.
"""

import argparse
import functools
import runpy

import jax

from jaxdet.mesh import device_mesh, replicated
from jaxdet.models import FasterRCNN
from jaxdet.training.optimizer import optimizer
from jaxdet.training.step import create_state, train_step
from jaxdet.validation import compile_shapes

MIB = 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--freeze-at", type=int, nargs="+", default=[0, 2, 5], metavar="STAGE")
    options = parser.parse_args()
    shape, rows = (options.height, options.width), []
    for freeze_at in options.freeze_at:
        config = runpy.run_path(options.config)["get_config"]()
        config.model.backbone.freeze_at = freeze_at
        model, update = FasterRCNN(**config.model), optimizer(config)
        state = jax.eval_shape(functools.partial(create_state, model, update, config))
        step = functools.partial(train_step, model=model, optimizer=update, config=config)
        sizes = [shape], options.batch, 16, config.data.train.resizing
        mesh = device_mesh()
        compiled = compile_shapes("training", step, state, *sizes, mesh, replicated(mesh))[shape]
        temporary = compiled.memory_analysis().temp_size_in_bytes
        kept = [
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
            for tree in (state.trainable, state.optimizer)
        ]
        rows.append((freeze_at, *(f"{size / MIB:,.0f}" for size in (temporary, *kept))))
    print(f"\n{options.batch} x {shape[0]} x {shape[1]}, MiB\nfreeze_at  temporary  trainable  optimiser")
    for row in rows:
        print("{:>9}  {:>9}  {:>9}  {:>9}".format(*row))


if __name__ == "__main__":
    main()
