"""Writing files so that a crash leaves no half of one, and a lock for one training at a time."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time


def write_whole(path, text):
    """Writes a text file. A crash in between leaves the old file, or none. Raises OSError that names the file.

    Half surrogates from file names and JSON, which UTF-8 cannot hold, are escaped.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut could leave the new name without content
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_line(path, text):
    """Adds a line to a text file, unbuffered, so that a kill loses nothing. Raises OSError that names the file."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def only_one(path, active=True):
    """Holds a lock file, so that no second training writes into its folder. The system frees it with this process.

    Without `active` it does nothing; in a run of several processes, only the first holds the lock. Raises ValueError
    that says who holds it. On a file system without locks, it prints this and continues.
    """
    if not active:
        yield
        return
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{path.parent} is in use by {file.read().strip() or 'another process'}; "
                "let it end, or use another workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(f"{path.parent} is on a file system without locks: make sure that only one training writes there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
