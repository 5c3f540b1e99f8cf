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
    readers = {".safetensors": load_file, ".pth": _read_torch, ".pt": _read_torch, ".pkl": _read_pickle}
    if path.suffix not in readers:
        raise ValueError(f"{path}: not one of {', '.join(readers)}")
    try:
        content = readers[path.suffix](path)
    except (OSError, ImportError):
        raise
    except TypeError as error:
        if "bfloat16" in str(error):
            raise ValueError(f"{path} holds bfloat16, which NumPy has not; save it as float32") from None
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # each library has its own for a damaged file
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name in ("model", "state_dict", "blobs"):  # what training scripts wrap around it
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no parameters by name")
    for name, value in content.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: {name!r} is no name of a parameter")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} is no array of numbers")
        if not np.isfinite(value).all():
            raise ValueError(f"{path}: {name} is not finite")
    return content


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path} needs torch to be read: pip install torch, or save it as .safetensors"
        ) from None

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ImportError(
            f"{path} needs torch 2.6 or newer: a file can make older ones execute code (CVE-2025-32434)"
        )

    def numbers(value):
        if isinstance(value, dict):
            return {name: numbers(item) for name, item in value.items()}
        if isinstance(value, torch.Tensor):
            return (value.float() if value.is_floating_point() else value).detach().numpy()
        return value

    return numbers(torch.load(path, map_location="cpu", weights_only=True))


def _stand_ins():
    """{(module, name): callable} of all that a pickle of arrays asks for, in the spellings of NumPy 1 and 2.

    NumPy's own would take item sizes and flags from the file, and with them addresses for objects. Made anew for each
    file, which could change what it is given.
    """

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
            data = data.encode("latin1") if isinstance(data, str) else data
            self.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def encode(text, encoding):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it has bytes written as {encoding!r:.20}")
        return text.encode("latin1")

    def from_buffer(buffer, kind, shape, order):
        return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)

    def scalar(kind, data):
        return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind.dtype)[0]

    known = {
        ("collections", "OrderedDict"): dict,
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
    """Python's own unpickler: the one in C takes as much memory as a number in the file says, before it looks further."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.known = _stand_ins()

    def load_bytearray8(self):
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(
            bytearray(self.read(length))
        )  # no more than there is, where the inherited one takes `length`

    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only arrays are read")
        return self.known[module, name]


def _read_pickle(path):
    def arrays(value):
        if isinstance(value, dict):
            return {name: arrays(item) for name, item in value.items()}
        return getattr(value, "value", value)

    return arrays(_ArraysOnly(io.BytesIO(path.read_bytes())).load())
