import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from common.atomic import atomic_write
from common.errors import UserError, near
from common.safe_pickle import load_pickle


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def load(content: bytes):
    return load_pickle(io.BytesIO(content), "some.file")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_pass(protocol):
    value = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=[1, "x", (2.5, None)], c=np.int64(7))
    found = load(pickle.dumps(value, protocol))
    assert list(found) == ["a", "b", "c"] and found["b"] == value["b"] and found["c"] == 7
    np.testing.assert_array_equal(found["a"], value["a"])


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_numpy_1_and_2_pass(module):
    content = pickle.dumps(np.arange(3), 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    content = content.replace(b"numpy.core.multiarray", module.encode())
    np.testing.assert_array_equal(load(content), np.arange(3))


@pytest.mark.parametrize(
    ("call", "named"), [(os.system, "posix.system"), (eval, "builtins.eval"), (np.load, "numpy.load")]
)
def test_code_is_refused_by_name_and_does_not_run(call, named, tmp_path):
    witness = tmp_path / "ran"
    argument = f"touch {witness}" if call is os.system else f"open({str(witness)!r}, 'w')"
    content = pickle.dumps({"weights": [Evil(call, argument)]}, 2)
    with pytest.raises(UserError, match=named.replace("builtins", r"(builtins|__builtin__)")):
        load(content)
    assert not witness.exists()


def test_object_arrays_cannot_hide_code(tmp_path):
    array = np.empty(1, object)
    array[0] = Evil(os.system, f"touch {tmp_path / 'ran'}")
    with pytest.raises(UserError, match="system"):
        load(pickle.dumps(array))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text\n", pickle.dumps({"a": np.arange(1000)})[:-50]])
def test_damaged_pickles_name_the_file(content):
    with pytest.raises(UserError, match=r"some\.file: not a readable pickle"):
        load(content)


def test_atomic_write_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"tw")
        raise RuntimeError
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["file"]


def test_near_names_what_is_close_or_all():
    assert near("dgits", ["digits", "cifar10"]) == "did you mean digits?"
    assert near("zzz", ["digits", "cifar10"]) == "known: cifar10, digits"
