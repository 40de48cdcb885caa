"""Readers of CIFAR (pickles), SVHN (MATLAB files) and PatchCamelyon (HDF5 files)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2a_bench.data.limits import MAX_FILE_BYTES
from s2a_bench.data.readers import arrays_big
from s2a_bench.data.readers._arrays import MAX_IMAGES, check_integers, make_array_source, split_into_blocks
from s2a_bench.data.readers.pickles import load_dictionary
from s2a_bench.data.readers.source import Reader, Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, unknown

if TYPE_CHECKING:
    import h5py

# --- CIFAR -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _CifarLayout:
    title: str
    classes: int
    meta: str
    files: Mapping[str, tuple[str, ...]]
    names: str  # keys in the pickles
    labels: str


_CIFAR10 = _CifarLayout(
    "CIFAR-10",
    10,
    "batches.meta",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "label_names",
    "labels",
)
_CIFAR100 = _CifarLayout(
    "CIFAR-100", 100, "meta", {"train": ("train",), "test": ("test",)}, "fine_label_names", "fine_labels"
)
_COARSE = dataclasses.replace(
    _CIFAR100, title="CIFAR-100 (coarse)", classes=20, names="coarse_label_names", labels="coarse_labels"
)


def recognises_cifar(tree: Tree, dataset: Dataset) -> bool:
    """Whether there are files of the "python version" of CIFAR-10 or CIFAR-100."""
    # CIFAR-100's files have such common names that one alone says nothing.
    return any(map(tree.has, ("data_batch_1", "test_batch"))) or sum(map(tree.has, ("train", "test", "meta"))) >= 2


def open_cifar(tree: Tree, dataset: Dataset) -> Source:
    """CIFAR-10 or CIFAR-100 from the pickles of ``cifar-10-python.tar.gz`` or ``cifar-100-python.tar.gz``.

    Each file (https://www.cs.toronto.edu/~kriz/cifar.html) is a dictionary of ``data``, ``(N, 3072)`` uint8 with the
    red, green and blue planes of 32 x 32 pixels in row-major order one after the other, and lists of labels. The
    batches of CIFAR-10 follow each other: ``train/010000.png`` is the first image of ``data_batch_2``.
    ``preparation.target`` is ``"fine"`` (or empty), or ``"coarse"``: the 20 superclasses of CIFAR-100.

    Raises:
        InputError: Missing, damaged or dangerous files, or labels that do not fit.
    """
    target = dataset.preparation.target if dataset.preparation else ""
    if target not in ("", "fine", "coarse"):
        raise unknown("target", target, ("fine", "coarse"))
    # A folder may hold both sets; the number of classes decides then.
    ten = tree.has("data_batch_1") or tree.has("test_batch")
    hundred = sum(map(tree.has, ("train", "test", "meta"))) >= 2
    form = _CIFAR10 if ten and (dataset.classes == 10 or not hundred) else _CIFAR100
    if target == "coarse":
        if form is _CIFAR10:
            raise InputError(f"{tree.place} is CIFAR-10, which has no coarse labels; give cifar-100-python.tar.gz.")
        form = _COARSE
    meta = tree.find(form.meta)
    folder = meta[: len(meta) - len(form.meta)]
    names = _load_pickle(tree, meta).get(form.names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{meta} in {tree.place} has no list {form.names!r} of class names; download it again.")
    if len(names) != form.classes:
        raise InputError(f"{meta} in {tree.place} names {len(names)} classes, not {form.classes}; download it again.")

    lengths: dict[str, int] = {}
    labels: dict[str, np.ndarray] = {}
    for part, files in form.files.items():
        columns = []
        for file in files:
            columns.append(_read_batch(tree, folder + file, form)[1])
            lengths[file] = len(columns[-1])
        labels[part] = np.concatenate(columns)

    def rows(part: str, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        start = 0
        for file in form.files[part]:
            mine = wanted[(wanted >= start) & (wanted < start + lengths[file])]
            if len(mine):
                data, _ = _read_batch(tree, folder + file, form)
                for position in mine.tolist():
                    yield position, data[position - start].reshape(3, 32, 32).transpose(1, 2, 0)
            start += lengths[file]

    return make_array_source(dataset, f"{tree.place} ({form.title})", names, labels, rows)


def _read_batch(tree: Tree, path: str, form: _CifarLayout) -> tuple[np.ndarray, np.ndarray]:
    """``(N, 3072)`` uint8 images and ``(N,)`` labels."""
    what = f"{path} in {tree.place}"
    batch = _load_pickle(tree, path)
    for key in ("data", form.labels):
        if key not in batch:
            raise InputError(f"{what} has no {key!r}, so it is not a batch of {form.title}; download it again.")
    data = batch["data"]
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(f"{what} holds images as {found}, not uint8 (N, 3072); download it again.")
    return data, check_integers(batch[form.labels], len(data), 0, form.classes - 1, f"Labels of {what}")


def _load_pickle(tree: Tree, path: str) -> dict[str, Any]:
    content = tree.read(path)
    try:
        return load_dictionary(content)
    except Exception as error:  # a damaged pickle of arrays may raise any exception
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{path} in {tree.place} is not a CIFAR pickle ({reason}); download it again.") from error


# --- SVHN ------------------------------------------------------------------------------------------------------------

_SVHN = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
_SVHN_MOST = 600_000
"""Images that a file may claim to hold: the largest, extra_32x32.mat, has 531,131."""


def recognises_svhn(tree: Tree, dataset: Dataset) -> bool:
    """Whether one of SVHN's files of cropped digits is there."""
    return any(map(tree.has, _SVHN.values()))


def open_svhn(tree: Tree, dataset: Dataset) -> Source:
    """SVHN's cropped digits (http://ufldl.stanford.edu/housenumbers): ``train_32x32.mat`` and ``test_32x32.mat``.

    ``X`` is ``(32, 32, 3, N)`` uint8 and ``y`` is ``(N, 1)`` with 10 for the digit 0. MATLAB compresses ``X`` as a
    whole, so reading images of a part takes its memory (225 MB for train). ``extra_32x32.mat`` is not used.

    Raises:
        InputError: Missing or damaged files, or labels that do not fit.
    """
    labels: dict[str, np.ndarray] = {}
    for part, file in _SVHN.items():
        name = tree.find(file)
        what = f"{name} in {tree.place}"
        shapes = {key: (shape, kind) for key, shape, kind in _load_mat(tree, name, None)}
        shape, kind = shapes.get("X", ((), "nothing"))
        if len(shape) != 4 or shape[:3] != (32, 32, 3) or kind != "uint8":
            raise InputError(f"{what} holds X as {kind} {shape}, not uint8 (32, 32, 3, N); download it again.")
        if shape[3] > _SVHN_MOST or np.prod(shapes.get("y", ((0,), ""))[0], dtype=object) > MAX_IMAGES:
            raise InputError(f"{what} claims more than {_SVHN_MOST:,} images; it is damaged, so download it again.")
        if "y" not in shapes:
            raise InputError(f"{what} has no labels y; download it again.")
        found = check_integers(_load_mat(tree, name, "y"), shape[3], 1, 10, f"Labels of {what}")
        labels[part] = found % 10

    def rows(part: str, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        images = _load_mat(tree, tree.find(_SVHN[part]), "X")
        for position in wanted.tolist():
            yield position, images[..., position]

    return make_array_source(dataset, f"{tree.place} (SVHN)", [str(digit) for digit in range(10)], labels, rows)


def _load_mat(tree: Tree, name: str, variable: str | None) -> Any:
    """A variable of a MATLAB file; with ``None``, name, shape and type of every variable."""
    path = str(tree.path_on_disk(name))
    try:
        import scipy.io
    except ImportError as error:
        raise InputError("SVHN's .mat files need scipy, which is not installed: pip install scipy.") from error
    try:
        if variable is None:
            return scipy.io.whosmat(path)
        return scipy.io.loadmat(path, variable_names=[variable])[variable]
    except Exception as error:  # scipy's parser may raise any exception on a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{name} in {tree.place} is not a MATLAB file ({reason}); download it again.") from error


# --- PatchCamelyon ---------------------------------------------------------------------------------------------------

_PCAM = {"train": "train", "val": "valid", "test": "test"}
_PCAM_FILE = "camelyonpatch_level_2_split_{}_{}.h5"
_PCAM_CLASSES = ("normal", "tumor")  # whether the central 32 x 32 pixels hold any tumor


def recognises_pcam(tree: Tree, dataset: Dataset) -> bool:
    """Whether one of PatchCamelyon's files is there."""
    return any(tree.has(_PCAM_FILE.format(part, half)) for part in _PCAM.values() for half in "xy")


def open_pcam(tree: Tree, dataset: Dataset) -> Source:
    """PatchCamelyon (https://github.com/basveeling/pcam): ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5``.

    ``x`` is ``(N, 96, 96, 3)`` uint8 and ``y`` is ``(N, 1, 1, 1)`` of 0 and 1. Files that are still packed
    (``.h5.gz``) are unpacked to the system's temporary folder first, 9 GB for all.

    Raises:
        InputError: h5py is not installed, missing or damaged files, or labels that do not fit.
    """
    labels: dict[str, np.ndarray] = {}
    for part, word in _PCAM.items():
        names = {half: tree.find(_PCAM_FILE.format(word, half)) for half in "xy"}
        with _open_hdf5(tree, names["x"], "x") as images:
            shape, kind = images.shape, images.dtype
        if len(shape) != 4 or shape[1:] != (96, 96, 3) or kind != np.uint8:
            raise InputError(
                f"{names['x']} in {tree.place} holds {kind} {shape}, not uint8 (N, 96, 96, 3); download it again."
            )
        with _open_hdf5(tree, names["y"], "y") as values:
            assert values.size is not None  # its shape is not empty
            if values.dtype.kind not in "iuf" or values.size > MAX_IMAGES:
                raise InputError(
                    f"Labels of {names['y']} in {tree.place} are {values.dtype} {values.shape}, not a whole number for "
                    "each image; download it again."
                )
            found = np.asarray(values[()])
        labels[part] = check_integers(found, shape[0], 0, 1, f"Labels of {names['y']} in {tree.place}")

    def rows(part: str, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        with _open_hdf5(tree, tree.find(_PCAM_FILE.format(_PCAM[part], "x")), "x") as images:
            # Read whole HDF5 chunks, at most 1,024 images at a time: each chunk is decompressed once.
            step = images.chunks[0] if images.chunks else 64
            for block in split_into_blocks(wanted, min(max(step, 64 // step * step), 1024)):
                first = int(block[0])
                array = images[first : int(block[-1]) + 1]
                for position in block.tolist():
                    yield position, array[position - first]

    return make_array_source(dataset, f"{tree.place} (PatchCamelyon)", _PCAM_CLASSES, labels, rows, _pcam_key)


def _pcam_key(part: str, position: int) -> str:
    return f"{_PCAM[part]}_{position}"


@contextmanager
def _open_hdf5(tree: Tree, name: str, key: str) -> Iterator[h5py.Dataset]:
    """Opens an array of an HDF5 file; errors while it is open are reported as errors of that file."""
    path: Path = tree.path_on_disk(name)
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            "PatchCamelyon's .h5 files need h5py, which is not installed: pip install 's2a-bench[data]'."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            found = _get_own_array(file, key, f"{name} in {tree.place}")
            yield found
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{name} in {tree.place} is not a sound HDF5 file ({reason}); download it again.") from error


def _get_own_array(file: h5py.File, key: str, what: str) -> h5py.Dataset:
    """An array that lies in the file itself, and is of a size that can be read.

    HDF5 can take an array's values from any other file that the user may read: by links, as raw bytes, or as a
    "virtual" array. A download that does so would put the content of such files into a data set that others are given.
    """
    import h5py

    links = file.id.links  # Unlike h5py's own look-up, these do not follow a link to see whether there is anything.
    if not links.exists(key.encode()):
        raise InputError(f"{what} has no array {key!r}; download it again.")
    if links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:  # type: ignore[attr-defined]
        raise InputError(f"{what} has a link in place of the array {key!r}, which is not followed; download it again.")
    found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{what} has no array {key!r}; download it again.")
    if found.external or found.is_virtual:
        raise InputError(f"{what} takes the array {key!r} from other files, which is refused; download it again.")
    chunk = found.dtype.itemsize * int(np.prod(found.chunks or (1,), dtype=object))
    if not found.shape or found.shape[0] > MAX_IMAGES or chunk > MAX_FILE_BYTES:
        raise InputError(
            f"{what} has an array {key!r} of a size that no data set has {found.shape}; download it again."
        )
    return found


READERS = (
    Reader("cifar", recognises_cifar, open_cifar),
    Reader("svhn", recognises_svhn, open_svhn),
    Reader("patch_camelyon", recognises_pcam, open_pcam),
    *arrays_big.READERS,
)
