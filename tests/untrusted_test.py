"""Files from elsewhere are data: nothing in them is executed, whatever they hold."""

import contextlib
import json
import os
import pickle
import re
import shutil
import sys
import tracemalloc
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import jaxdet
from jaxdet.data.tfds import TfdsSource
from jaxdet.inference.export import export_detector
from jaxdet.interop.weights import read
from tests import tiny
from tests.audit import nothing_executed

CASES = int(os.environ.get("JAXDET_CASES", 150))


@pytest.mark.parametrize(
    "effect", [lambda: os.system("true"), lambda: exec("1"), lambda: open("/dev/null", "w").close()]
)
def test_what_happens_is_heard(effect):
    with pytest.raises(AssertionError), nothing_executed():
        effect()


def read_watched(path):
    """`read`, failing where something is executed in it."""
    with nothing_executed():
        return read(path)


ARRAYS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.asfortranarray(np.ones((2, 3), ">f8"))}
FILES = {f"{n}.pkl": pickle.dumps({"model": ARRAYS, "lr": np.float64(3)}, n) for n in range(6)}
FILES["a.safetensors"] = save({name: np.ascontiguousarray(array, np.float32) for name, array in ARRAYS.items()})


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_sound_file(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    found = read(tmp_path / name)
    assert found.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.integers(0, 1000),
)
def test_damaged_files_are_refused_or_read_and_never_executed(tmp_path_factory, name, edits, length):
    data = bytearray(FILES[name])
    for place, value in edits:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(bytes(data[: len(data) - length % 3 * (length % len(data))]))
    try:
        found = read_watched(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(array.dtype.kind in "fiu" for array in found.values())


class Calls:
    """Unpickles by a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "evil",
    [
        Calls(os.system, "touch /tmp/jaxdet-was-here"),
        Calls(eval, "1 + 1"),
        Calls(exec, "import os"),
        Calls(getattr, "", "join"),
        Calls(np.load, "/tmp/x.npy", None, True),
        np.array([Calls(eval, "1")], object),
        np.array(["a"]),
        np.zeros(2, [("a", "f4")]),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_that_call(tmp_path, evil, protocol):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": evil, "b": np.ones(3)}}, protocol))
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        read_watched(path)


def test_pickles_that_would_forge_numpys_types(tmp_path):
    """Objects without the flags of objects: their bytes would be taken for addresses."""
    kind = b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
        + kind
        + b"I00\nS'AAAAAAAA'\ntb"
    )
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + kind + b"S'AAAAAAAA'\ntR"
    for value in (array, scalar):
        path = tmp_path / "forged.pkl"
        path.write_bytes(b"(dS'a'\n" + value + b"s.")
        with pytest.raises(ValueError, match="only numbers are read"):
            read_watched(path)


def doubled():
    """Nested 40 deep, each with the one inside twice: as a tree it has 2^40 leaves."""
    item = 1
    for _ in range(40):
        item = {"a": item, "b": item}
    return item


# The same of tuples, as the key of a dict
KEY = b"\x80\x02}K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40)) + b"K\x01s."


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\x00\x00\x00\x04.",  # the memo's 67,108,864th place
        b"\x80\x02}p99999999\n.",
        b"\x80\x05\x96" + (2**30).to_bytes(8, "little") + b".",  # a bytearray of a GiB
        b"\x80\x04\x8e" + (2**30).to_bytes(8, "little") + b".",  # and bytes
        b"\x80\x04\x95" + (2**30).to_bytes(8, "little") + b"}.",  # a frame
        pickle.dumps({"a": doubled()}),
        KEY,
        b"\x80\x02ccollections\nOrderedDict\n]" + KEY[3:-4] + b"K\x01\x86a\x85R.",  # and of an OrderedDict
        pickle.dumps({"a": {1, 2}}),
        b"\x80\x02(X" + (2**14).to_bytes(4, "little") + b"a" * 2**14 + b"q\x00"  # one text, encoded again and again
        + b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02" + b"h\x01h\x00h\x02\x86R" * 500 + b"l.",
        b"\x80\x02I" + b"9" * 9000 + b"\n.",
    ],
)  # fmt: skip
def test_a_small_pickle_takes_little_memory_and_time(tmp_path, data):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.pkl"):
            read_watched(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_torch_reads_weights_only(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    old, new = mock.Mock(__version__="2.5.1+cpu"), mock.Mock(__version__="2.13.0", Tensor=np.ndarray)
    with mock.patch.dict(sys.modules, torch=old), pytest.raises(ImportError, match=r"needs torch 2\.6"):
        read(path)
    new.load.return_value = {"a": 3}
    with mock.patch.dict(sys.modules, torch=new), pytest.raises(ValueError, match="no array"):
        read(path)
    new.load.assert_called_once_with(path, map_location="cpu", weights_only=True)


def test_a_workdir_is_loaded_without_pickle(tiny_run):
    with (
        mock.patch.object(pickle, "loads", side_effect=AssertionError),
        mock.patch.object(pickle, "load", side_effect=AssertionError),
    ):
        assert jaxdet.load(tiny_run.workdir).categories


@pytest.mark.parametrize("name, content", [("categories.json", "[3]"), ("categories.json", "{"), ("config.json", "{")])
def test_a_workdir_of_other_content_is_named(tiny_run, tmp_path, name, content):
    for kept in ("config.json", "categories.json"):
        shutil.copy(tiny_run.workdir / kept, tmp_path / kept)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        jaxdet.load(tmp_path)


@pytest.fixture(scope="module")
def exported(tiny_run, symbolic_shapes):
    """The bytes of an exported detector, which load."""
    data = bytes(export_detector(jaxdet.load(tiny_run.workdir)).serialize())
    assert jax.export.deserialize(bytearray(data)).platforms
    return data


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.none() | st.floats(0, 1),
)
def test_damaged_exports_are_refused_or_loaded_and_never_executed(exported, edits, share):
    """Most of the bytes are the program, which loading only keeps; half of the changes are made around it."""
    data = bytearray(exported)
    for around, place, value in edits:
        data[int(place * 4000) - 2000 if around else int(place * len(data))] = value
    if share is not None:
        del data[int(share * len(data)) :]
    with nothing_executed(), contextlib.suppress(Exception):
        jax.export.deserialize(data)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_tfds_directory_cannot_name_code(tmp_path, monkeypatch, hidden):
    (tmp_path / "evil.py").write_text("import os\nos.environ['JAXDET_EVIL'] = '1'")
    monkeypatch.syspath_prepend(tmp_path)
    feature = {"pythonClassName": "evil.Feature"}
    if hidden:
        feature = {"pythonClassName": "tensorflow_datasets.x", "jsonFeature": {"json": json.dumps({"type": "evil.F"})}}
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": {"image": feature}}}))
    (tmp_path / "dataset_info.json").write_text('{"name": "coco"}')
    with pytest.raises(ValueError, match=r"features\.json: the feature evil\.F(eature)? is none of TFDS's own"):
        TfdsSource(tmp_path)
    assert "evil" not in sys.modules and "JAXDET_EVIL" not in os.environ


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_has_both_bounds(name):
    lines = [line.split("#")[0].strip() for line in (tiny.ROOT / name).read_text().splitlines()]
    for line in filter(None, lines):
        assert re.fullmatch(r"[\w.-]+>=[\d.]+,<[\d.]+", line), line
