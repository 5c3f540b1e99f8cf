"""Reading other libraries' files as {name: array}, without running anything that they hold."""

import pathlib
import pickle

import numpy as np
from safetensors.numpy import load_file

# All that a pickle of arrays needs, in the spellings of NumPy 1 and 2
ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


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

    def numbers(value):
        if isinstance(value, dict):
            return {name: numbers(item) for name, item in value.items()}
        if isinstance(value, torch.Tensor):
            return (value.float() if value.is_floating_point() else value).detach().numpy()
        return value

    return numbers(torch.load(path, map_location="cpu", weights_only=True))


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only arrays are read")
        return super().find_class(module, name)


def _read_pickle(path):
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()
