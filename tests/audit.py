"""What Python tells its audit hooks: code from elsewhere that begins to run, files that are opened."""

import contextlib
import sys

EXECUTION = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "exec",
    "socket.connect",
)
_listeners = []
sys.addaudithook(lambda name, arguments: [listen(name, arguments) for listen in _listeners])


@contextlib.contextmanager
def heard(wanted):
    """Inside, collects (name, arguments) of the events that `wanted(name)` is true for, of all threads."""
    events = []

    def listen(name, arguments):
        if wanted(name):
            events.append((name, arguments))

    _listeners.append(listen)
    try:
        yield events
    finally:
        _listeners.remove(listen)


@contextlib.contextmanager
def nothing_executed():
    """Fails where something is executed inside, whether or not it raises."""
    with heard(EXECUTION.__contains__) as events:
        try:
            yield
        finally:
            assert events == []
