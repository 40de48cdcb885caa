"""Reads pickles of numbers, text, lists, dictionaries and NumPy arrays; no code in them runs."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

_TYPES = ("u1", "i4", "i8")


class _Type:
    """A pickled ``numpy.dtype``. NumPy's own sets whatever flags a pickle states, and then reads memory by them."""

    def __init__(self, text: object) -> None:
        if text not in _TYPES:
            raise pickle.UnpicklingError(f"it holds an array of {text!r}")
        self.kind = np.dtype(str(text))

    def __setstate__(self, state: Any) -> None:
        if len(state) < 8 or state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of a compound type")
        self.kind = self.kind.newbyteorder(state[1])


class _Array:
    """A pickled ``numpy.ndarray``, which ``array`` is made of."""

    array: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, data = state
        self.array = _make_array(data, kind, shape, "F" if by_column else "C").array


def _make_array(data: Any, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)  # Python 2 wrote text
    if math.prod(shape) * kind.kind.itemsize != len(data) or min(shape, default=0) < 0:
        raise pickle.UnpicklingError(f"it holds an array of shape {shape} with {len(data)} bytes")
    found = _Array()
    found.array = np.frombuffer(data, kind.kind).reshape(shape, order="F" if order == "F" else "C")
    return found


def _allowed_names() -> dict[tuple[str, str], Any]:
    """Stand-ins for the global names that pickles of arrays refer to, from Python 2 and NumPy 1 to now.

    They are made anew for each pickle, which could set attributes of them.
    """

    def make_type(text: object, align: object = False, copy: object = False) -> _Type:
        return _Type(text)

    def reconstruct(kind: object, shape: object, code: object) -> _Array:
        return _Array()

    def from_buffer(data: Any, kind: _Type, shape: tuple[int, ...], order: str, axes: object = None) -> _Array:
        return _make_array(data, kind, shape, order)

    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
        return text.encode("latin1")

    names: dict[tuple[str, str], Callable[..., Any] | str] = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): make_type,
        ("_codecs", "encode"): encode,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = reconstruct
        names[f"{core}.numeric", "_frombuffer"] = from_buffer
    return names


class _Unpickler(pickle.Unpickler):
    """See https://docs.python.org/3/library/pickle.html#restricting-globals."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._allowed = _allowed_names()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused, for it could run any code")
        return self._allowed[module, name]


def load_dictionary(content: bytes) -> dict[str, Any]:
    """The dictionary of a pickle, with arrays of uint8, int32 or int64 among its values.

    Raises:
        Exception: It is something else, or damaged: a pickle may then raise any exception.
    """
    found = _Unpickler(content).load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dictionary")
    names = (key.decode("latin1") if isinstance(key, bytes) else str(key) for key in found)
    values = (value.array if isinstance(value, _Array) else value for value in found.values())
    return dict(zip(names, values, strict=True))
