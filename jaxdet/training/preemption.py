"""On SIGTERM, as schedulers send it, a run saves the current step and ends, even in the middle of an evaluation."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit code of a run that can be started again (EX_TEMPFAIL in sysexits.h)


class Preemption:
    """`preempted()` returns whether to save and end now. Call it after each step and each batch of an evaluation.

    All processes get the same answer, as long as all ask equally often. Once True, it stays True.
    """

    def __init__(self):
        self.told, self.asked, self.before = False, 0, None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_):
        self.told = True

    def close(self):
        """Restores the earlier handler of the signal."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def __call__(self):
        if not self.told and jax.process_count() > 1:
            # JAX's own service receives the signal and picks a call that all processes will reach
            self.asked += 1
            self.told = multihost_utils.reached_preemption_sync_point(self.asked)
        return self.told
