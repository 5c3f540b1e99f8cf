"""What a run does if a loss or gradient is not finite: `train.nonfinite`.

The step itself leaves parameters, statistics and optimizer state as they were (training/step.py). This file names the
images.
"""

import jax
import jax.numpy as jnp
import numpy as np

MOST_IN_A_ROW = 20  # skipped steps; after that, nothing is learned any more


class Watch:
    """Checks the metrics of each step and decides what to do if they are not finite."""

    def __init__(self, policy, batches, note):
        """policy: "stop" or "skip". batches: TrainingBatches, which know the images of a step.

        note: called for every skipped step with (number, message, image ids, ids of the culprits).
        """
        self.policy, self.batches, self.note = policy, batches, note
        self.skipped, self.in_a_row = 0, 0

    def __call__(self, number, metrics, search):
        """Metrics of step `number` as floats. Call it once per step, in order.

        search: function of the image ids that finds the culprits; see `culprits`. Raises FloatingPointError, naming
        step and images, if the step is not finite and the policy is "stop", or if MOST_IN_A_ROW steps were skipped.
        """
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if metrics.pop("finite"):
            self.in_a_row = 0
            return metrics
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        ids = self.batches.image_ids(number - 1)
        alone = search(ids)
        what = (
            f"step {number}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}; "
            f"image ids {ids.tolist()}, {_blame(alone, len(ids))}. The parameters of this step were not used"
        )
        if self.policy == "skip" and self.in_a_row < MOST_IN_A_ROW:
            self.note(number, f"{what}; {self.skipped} steps skipped so far", ids.tolist(), alone)
            return metrics
        many = f", the {self.in_a_row}th step in a row" if self.policy == "skip" else ""
        raise FloatingPointError(
            f"{what} and the last checkpoint is good{many}. Look at these images (python -m jaxdet predict), lower "
            "optimizer.learning_rate, set optimizer.clip_norm, or leave such steps out with train.nonfinite=skip."
        )


def _blame(alone, images):
    if not alone:
        return "none of which does it alone"
    return "each of which does it alone" if len(alone) == images else f"of which {alone} do it alone"


def culprits(step, number, state, batch, image_ids, put):
    """Ids of the images that make step `number` not finite by themselves, with all other slots of the batch empty.

    Uses the current parameters, which may be those of one step later. All processes must call it together.

    step: the compiled step, which overwrites the buffers of its state. batch: this process's part of the batch (NumPy).
    image_ids: those of the whole batch. put: places a batch on the devices.
    """
    local = len(batch["image_ids"])
    first, found = jax.process_index() * local, []
    # the step number, for the same random numbers
    state = state.replace(step=jax.device_put(np.int32(number - 1), state.step.sharding))
    for slot, image_id in enumerate(image_ids.tolist()):
        here = np.arange(first, first + local) == slot
        arrays = batch | {
            "image_sizes": batch["image_sizes"] * here[:, None],
            "gt_valid": batch["gt_valid"] & here[:, None],
        }
        _, metrics = step(jax.tree.map(jnp.copy, state), put(arrays))
        if not bool(metrics["finite"]):
            found.append(image_id)
    return found
