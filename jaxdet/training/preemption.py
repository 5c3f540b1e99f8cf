"""A run that is told to end (SIGTERM, as schedulers send it) saves the step in hand first."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit code of a run that can be started again (EX_TEMPFAIL of sysexits.h)


class Preemption:
    """`preempted(step)`, asked after each step: whether to save and end now, with the same answer in all processes."""

    def __init__(self):
        self.told, self.before = False, None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_):
        self.told = True

    def close(self):
        """Leaves the signal to whom it belonged."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def __call__(self, step):
        # of several processes JAX's own service hears the signal and chooses a step that all of them will reach
        return self.told if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
