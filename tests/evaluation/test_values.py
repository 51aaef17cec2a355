"""What was measured of each image comes back from its file, and nothing else is taken for one."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from pipeline.evaluation.values import from_bytes, to_bytes

VALUES = {"test/bound": np.array([-1.5, -2.25]), "drawn/one_digit/seen/right": np.array([True, False, True])}


def test_values_come_back_as_they_were_and_equal_values_give_equal_bytes() -> None:
    found = from_bytes(to_bytes(VALUES))
    assert found.keys() == VALUES.keys()
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in VALUES.items()
    )
    assert to_bytes(VALUES) == to_bytes({name: value.copy() for name, value in VALUES.items()})


def test_what_is_no_such_file_is_refused_and_nothing_is_unpickled() -> None:
    objects = io.BytesIO()
    np.savez(objects, code=np.array([print], dtype=object))
    whole = to_bytes(VALUES)
    for content in (b"", b"half a file", whole[: len(whole) // 2], objects.getvalue(), pickle.dumps([1])):
        with pytest.raises(ValueError, match="not a file of values"):
            from_bytes(content)
    begin = whole.index(b"test/bound.npy") + len("test/bound.npy")
    for place in range(begin, begin + 80):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        try:
            found = from_bytes(bytes(damaged))
        except ValueError as error:
            assert str(error).startswith("not a file of values")
        else:  # a byte that says nothing of the values
            assert np.array_equal(found["test/bound"], VALUES["test/bound"])
