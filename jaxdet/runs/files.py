"""Files of a workdir: whole or not there, and one training at a time."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time


def write_whole(path, text):
    """Writes a text file so that a crash in between leaves the older one, or none. Raises OSError that names it.

    What UTF-8 cannot hold, half surrogates out of file names and JSON, becomes an escape.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name and no content
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_line(path, text):
    """Adds a line to a text file, at once and unbuffered: a kill later loses nothing. Raises OSError that names the file."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def only_one(path, active=True):
    """Holds a lock file, so that no second training writes into its folder; the system frees it with this process.

    Without `active` nothing is held: of several processes of one run the first does it. Raises ValueError that says who
    holds it. Where the file system has no locks it says so and goes on.
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
                f"{path.parent} is in use by {file.read().strip() or 'another process'}; let it end, or take another workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(
                f"{path.parent} lies on a file system without locks: see to it that one training writes there"
            )
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        file.flush()
        yield
