"""The log of a run: metrics.jsonl, TensorBoard files and the progress bar."""

import contextlib
import math
import statistics
import time

import tensorboardX
import tqdm


class MetricsLog:
    """Lines of W/metrics.jsonl, one JSON object each with its "step", and the same as TensorBoard scalars.

    When a run resumes from `step`, lines of later steps (written after its last checkpoint) are dropped, so that each
    step is logged once. So is the evaluation of `step` itself, unless it is `evaluated`. Without `active` nothing is
    written, since another process does it.
    """

    def __init__(self, workdir, step, active=True, evaluated=True):
        self.active = active
        if not active:
            return
        self.workdir = workdir
        kept = [line for line in workdir.metrics() if line["step"] <= step]
        if not evaluated:
            kept = [line for line in kept if line["step"] < step or "val/loss" not in line]
        workdir.write_metrics(kept)
        # If the disk is full, its thread dies and nothing empties the queue: a short queue would block the run forever
        self.tensorboard = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1, max_queue=100_000)

    def write(self, step, values):
        """Appends one line; values: dict of name to float. A value that is not finite becomes null."""
        if not self.active:
            return
        self.note(step, **{name: value if math.isfinite(value) else None for name, value in values.items()})
        if not self.tensorboard.file_writer.event_writer._worker.is_alive():
            raise OSError(f"the TensorBoard file in {self.workdir} cannot be written; is the disk full?")
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def note(self, step, **values):
        """Appends one line to metrics.jsonl only; values: anything that JSON can hold."""
        if not self.active:
            return
        self.workdir.add_metrics({"step": step} | values)

    def close(self):
        """Closes the TensorBoard file."""
        if not self.active:
            return
        with contextlib.suppress(OSError):  # a full disk, which was reported already
            self.tensorboard.close()


class Progress:
    """The bar: loss, learning rate, step time, data time, time left. `lap` is called once per step."""

    def __init__(self, start, steps, active=True):
        self.bar = tqdm.tqdm(
            disable=not active,
            initial=start,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            smoothing=0.05,
        )
        self.last, self.step_time, self.data_time = time.perf_counter(), 0.0, 0.0
        self.step_times, self.data_times = [], []

    def lap(self, waited):
        """Ends a step, which waited `waited` seconds for its batch."""
        now = time.perf_counter()
        self.step_time, self.data_time, self.last = now - self.last, waited, now
        self.step_times.append(self.step_time)
        self.data_times.append(self.data_time)
        self.bar.update()

    def show(self, metrics):
        """Shows the newest numbers after the bar."""
        share = 100 * self.data_time / max(self.step_time, 1e-9)
        self.bar.set_postfix_str(
            f"loss {metrics['loss']:.3f}, rate {metrics['learning_rate']:.2g}, "
            f"{self.step_time:.2f} s a step, {share:.0f}% waiting for data"
        )

    def summary(self):
        """A line about all steps but the first, whose batch could not be read ahead."""
        steps, waits = self.step_times[1:] or self.step_times, self.data_times[1:] or self.data_times
        return f"{statistics.median(steps):.2f} s a step, {100 * sum(waits) / sum(steps):.1f}% waiting for data"

    def pause(self):
        """The next lap starts now (after an evaluation or a save)."""
        self.last = time.perf_counter()

    def close(self):
        """Leaves the bar as it is."""
        self.bar.close()
