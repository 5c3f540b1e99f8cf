"""Reading other libraries' files as {name: array}, without running anything that they hold."""

import io
import pathlib
import pickle
import re
import struct

import numpy as np
from safetensors.numpy import load_file


def read(path):
    """Arrays of a .safetensors, .pth (or .pt; needs torch) or .pkl file of detectron2, by name.

    Raises FileNotFoundError, and ValueError naming what in the file is not an array of numbers.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    torch = _read_torch, _of_tensor
    readers = {
        ".safetensors": (load_file, lambda array: array),
        ".pth": torch,
        ".pt": torch,
        ".pkl": (_read_pickle, lambda item: getattr(item, "value", item)),
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: not one of {', '.join(readers)}")
    load, as_array = readers[path.suffix]
    try:
        content = load(path)
        for name in ("model", "state_dict", "blobs"):  # what training scripts wrap around it
            if isinstance(content, dict) and isinstance(content.get(name), dict):
                content = content[name]
        if isinstance(content, dict):
            content = {name: as_array(item) for name, item in content.items()}
    except (OSError, ImportError):
        raise
    except TypeError as error:
        if "bfloat16" in str(error):
            raise ValueError(f"{path} holds bfloat16, which NumPy has not; save it as float32") from None
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # each library has its own for a damaged file
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no parameters by name")
    for name, value in content.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: a key of type {type(name).__name__} is no name of a parameter")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} is no array of numbers")
        if not np.isfinite(value).all():
            raise ValueError(f"{path}: {name} is not finite")
    return content


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise ImportError(f"{path} needs torch to be read: pip install torch, or save it as .safetensors") from None

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ImportError(f"{path} needs torch 2.6 or newer: a file can make older ones execute code (CVE-2025-32434)")

    return torch.load(path, map_location="cpu", weights_only=True)


def _of_tensor(value):
    if not hasattr(value, "is_floating_point"):
        return value
    return (value.float() if value.is_floating_point() else value).detach().numpy()


def _stand_ins(size):
    """{(module, name): callable} of all that a pickle of arrays asks for, in the spellings of NumPy 1 and 2.

    NumPy's own would take item sizes and flags from the file, and with them addresses for objects. New ones for each
    file, since a file could change them. Together they copy no more than `size`, the bytes of the file: each
    honest text and pair is copied once.
    """
    left = size

    def copied(items):
        nonlocal left
        left -= len(items)
        if left < 0:
            raise pickle.UnpicklingError("it asks for more copies of itself than arrays need")
        return items

    class Type:
        def __init__(self, name, *_):
            if not re.fullmatch(r"[<>=|]?[fiu][1248]", name):
                raise pickle.UnpicklingError(f"it has values of type {name!r:.20}; only numbers are read")
            self.dtype = np.dtype(name)

        def __setstate__(self, state):
            self.dtype = self.dtype.newbyteorder(state[1])

    class Array:
        def __setstate__(self, state):
            _, shape, kind, fortran, data = state
            data = copied(data).encode("latin1") if isinstance(data, str) else data
            self.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def encode(text, encoding):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it has bytes written as {encoding!r:.20}")
        return copied(text).encode("latin1")

    def ordered(pairs=()):
        _check_keys([key for key, _ in copied(pairs)])
        return dict(pairs)

    def from_buffer(buffer, kind, shape, order):
        return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)

    def scalar(kind, data):
        data = copied(data).encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, kind.dtype)[0]

    known = {
        ("collections", "OrderedDict"): ordered,
        ("_codecs", "encode"): encode,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): Type,
    }
    for numpy in ("numpy.core", "numpy._core"):
        known[f"{numpy}.multiarray", "_reconstruct"] = lambda *_: Array()
        known[f"{numpy}.multiarray", "scalar"] = scalar
        known[f"{numpy}.numeric", "_frombuffer"] = from_buffer
    return known


class _ArraysOnly(pickle._Unpickler):
    """Python's own unpickler: the one in C takes as much memory as a number in the file says, before it looks further.

    Without what arrays by name never need, such as sets, and with texts and numbers alone as keys: hashing nested
    tuples that share their parts takes as long as a file likes.
    """

    def __init__(self, data):
        # BytesIO: of a file on disk, read(n) takes n bytes at once, however few there are
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.known = _stand_ins(len(data))

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only arrays are read")
        return self.known[module, name]

    def load_bytearray8(self):
        # the inherited one takes `length` bytes before it reads them
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def load_setitem(self):
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self):
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_build(self):
        if type(self.stack[-2]).__module__ != __name__:  # the stand-ins alone have a state to be set
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-2]).__name__}")
        super().load_build()

    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)
    } | {
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.BUILD[0]: load_build,
    }


def _check_keys(keys):
    for key in keys:
        if type(key) not in (str, int, bytes):
            raise pickle.UnpicklingError(f"it has a key of type {type(key).__name__}")


def _read_pickle(path):
    return _ArraysOnly(path.read_bytes()).load()
