import pickle

import numpy as np
import pytest

from jaxdet.interop.weights import read


def test_pickles_of_arrays_and_of_nothing_else(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "model.pkl"
    weights = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.float32(2)}
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"model": {"a.weight": weights["a.weight"]}}, protocol))
        np.testing.assert_array_equal(read(path)["a.weight"], weights["a.weight"])
    for content, answer in (
        ({"model": {"a": Harmful()}}, "only arrays are read"),
        ({"model": {"a": "words"}}, "a is no array of numbers"),
        ([1, 2], "holds no parameters by name"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=answer):
            read(path)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ValueError, match="cannot be read"):
        read(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        read(tmp_path / "nothing.pth")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"not one of .safetensors, .pth, .pt, .pkl"):
        read(tmp_path / "model.onnx")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678{")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "cut.safetensors")


def test_a_torch_file(tmp_path):
    path = tmp_path / "model.pth"
    try:
        import torch
    except ImportError:
        path.write_bytes(b"anything")
        with pytest.raises(ImportError, match="pip install torch"):
            read(path)
        return
    torch.save({"state_dict": {"a": torch.arange(3.0)}}, path)
    np.testing.assert_array_equal(read(path)["a"], [0, 1, 2])
