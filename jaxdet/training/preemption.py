"""A run that is told to end (SIGTERM, as schedulers send it) saves the step in hand first, from the middle of an evaluation too."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit code of a run that can be started again (EX_TEMPFAIL of sysexits.h)


class Preemption:
    """`preempted()`, asked after each step and each batch of an evaluation: whether to save and end now.

    All processes get the same answer, as long as all ask equally often; once yes, it stays so.
    """

    def __init__(self):
        self.told, self.asked, self.before = False, 0, None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_):
        self.told = True

    def close(self):
        """Leaves the signal to whom it belonged."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def __call__(self):
        if not self.told and jax.process_count() > 1:
            # JAX's own service hears the signal and chooses a question that all processes will come to
            self.asked += 1
            self.told = multihost_utils.reached_preemption_sync_point(self.asked)
        return self.told
