"""What Python tells its audit hooks: code from elsewhere that begins to run, files that are touched."""

import contextlib
import sys

# Besides "open" of a file that is to be written
EFFECTS = (
    *("exec", "compile", "import", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "code.__new__"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"),
    *("shutil.rmtree", "socket.connect", "socket.bind", "socket.sendto"),
)
_listeners = []
sys.addaudithook(lambda name, arguments: [listen(name, arguments) for listen in _listeners])


@contextlib.contextmanager
def heard(wanted):
    """Inside, collects (name, arguments) of the events that `wanted(name, arguments)` is true for, of all threads."""
    events = []

    def listen(name, arguments):
        if wanted(name, arguments):
            events.append((name, arguments))

    _listeners.append(listen)
    try:
        yield events
    finally:
        _listeners.remove(listen)


def is_effect(name, arguments):
    """Whether an event runs code, changes a file or reaches out."""
    return name in EFFECTS or (name == "open" and arguments[1] not in ("r", "rb"))


@contextlib.contextmanager
def nothing_executed():
    """Fails where an `is_effect` happens inside, whether or not it raises."""
    with heard(is_effect) as events:
        try:
            yield
        finally:
            assert events == []
