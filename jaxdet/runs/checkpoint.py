"""Checkpoints of a run, by Orbax: atomic, the last few and the best.

W/checkpoints/STEP/     a whole TrainState; a folder under its final name is complete
W/checkpoints/deleted/  what is about to be removed
"""

import json
import pathlib
import shutil

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from jaxdet.runs.files import write_whole
from jaxdet.runs.mesh import device_mesh, is_first, replicated, wait_for_all

# A checkpoint that is no longer kept is first renamed into this folder, then removed. If the process dies in between,
# no half of a checkpoint is left under its own name.
DELETED = "deleted"


class Checkpoints:
    """The checkpoints in a folder. Keeps the last `last` and the one with the highest "AP"."""

    def __init__(self, folder, last=2, read_only=False):
        folder = pathlib.Path(folder).resolve()
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(last),
                keep.BestN(get_metric_fn=_average_precision, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_average_precision,
            read_only=read_only,
            create=not read_only,
            enable_async_checkpointing=False,
            todelete_subdir=None if read_only else DELETED,
        )
        _check_metrics(folder)
        handler = ocp.StandardCheckpointHandler()
        self.folder = folder
        self.manager = ocp.CheckpointManager(folder, options=options, item_handlers=handler)
        # With several processes, Orbax would ask JAX's preemption service at every save, by the step.
        # training.preemption asks the same service by a count of its own.
        self.manager.reached_preemption = lambda step: False
        if not read_only:
            self._remove_deleted()

    def latest_step(self):
        """Step of the newest checkpoint; None without a checkpoint."""
        return self.manager.latest_step()

    def best_step(self):
        """Step of the checkpoint with the highest AP; the newest if none was evaluated; None without a checkpoint."""
        best = self.manager.best_step()
        return self.latest_step() if best is None else best

    def is_evaluated(self, step):
        """Whether the AP of the checkpoint of `step` is recorded."""
        return self.manager.metrics(step) is not None

    def save(self, step, state):
        """Writes the state at `step`; returns when it is whole on disk.

        Raises OSError if it cannot be written, for example on a full disk. The message says what is left; earlier
        checkpoints stay as they are.
        """
        before = self.latest_step()
        try:
            self.manager.save(step, args=ocp.args.StandardSave(state), force=True)
            self.manager.wait_until_finished()
            self._remove_deleted()
        except Exception as error:  # of Orbax, TensorStore or the system
            free = shutil.disk_usage(self.folder).free / 2**20
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
            left = "none was saved before" if before is None else f"that of step {before} is whole"
            reason = str(error).strip().split("\n")[0][:300]
            raise OSError(
                f"the checkpoint of step {step} ({size:.0f} MiB) cannot be written to {self.folder}, where "
                f"{free:.0f} MiB are free; {left}. Make room and start again.\n{type(error).__name__}: {reason}"
            ) from error

    def record(self, step, average_precision):
        """Adds the AP to the checkpoint of `step`, in the file from which Orbax chooses what to keep."""
        if is_first():
            folder = self.folder / str(step) / "metrics"
            folder.mkdir(exist_ok=True)
            write_whole(folder / "metrics", json.dumps({"AP": float(average_precision)}))
        wait_for_all(f"recorded {step}")
        self.manager.reload()

    def restore(self, step, like):
        """The state of `step`, with the structure, shapes and shardings of `like` (arrays or ShapeDtypeStructs).

        Raises FileNotFoundError if there is none, OSError if it is damaged.
        """
        return self._restore(step, lambda: jax.tree.map(ocp.utils.to_shape_dtype_struct, like))

    def restore_arrays(self, step):
        """The state of `step` as nested dicts of arrays, however it was saved.

        On the first device; with several processes, whole on every device. Raises as `restore`.
        """
        several = jax.process_count() > 1
        device = replicated(device_mesh()) if several else jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def like():
            saved = self.manager.item_metadata(step)
            return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), saved)

        return self._restore(step, like)

    def _restore(self, step, like):
        try:
            return self.manager.restore(step, args=ocp.args.StandardRestore(like()))
        except Exception as error:  # of Orbax, TensorStore or the system
            self.manager.reload()  # a training may have saved and removed some in the meantime
            path, steps = self.folder / str(step), sorted(self.manager.all_steps())
            if step not in steps:
                raise FileNotFoundError(f"no checkpoint {path}; there are those of the steps {steps}") from error
            others = [other for other in steps if other != step]
            left = f"without it that of step {others[-1]} is the newest" if others else "there is no other"
            reason = str(error).strip().split("\n")[0][:300]
            raise OSError(
                f"the checkpoint {path} cannot be read. If it is damaged, move it away; {left}.\n"
                f"{type(error).__name__}: {reason}"
            ) from error

    def _remove_deleted(self):
        if is_first():
            shutil.rmtree(self.folder / DELETED, ignore_errors=True)

    def close(self):
        """Frees Orbax's threads."""
        self.manager.close()


def _check_metrics(folder):
    """Raises ValueError that names a damaged file of APs. Orbax reads all of them but would not name it."""
    for path in folder.glob("*/metrics/metrics"):
        try:
            float(json.loads(path.read_text())["AP"])
        except FileNotFoundError:  # a training has removed it in the meantime
            continue
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); without the folder {path.parent} the checkpoint counts as not evaluated"
            ) from error


def _average_precision(metrics):
    return metrics["AP"]
