"""Files of decoded images: what was written comes back, or the file is not taken; a damaged cache is made again."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bench.small_folders import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s2a_bench.data import decoded, pixel_file
from s2a_bench.data.decoded import ImageList, open_pixels
from s2a_bench.data.folder import CACHE, ListedImage
from s2a_bench.data.pixel_file import is_earlier_version, open_pixel_file, write_pixel_file

SIZES = [(4, 6), (9, 5), (3, 3), (8, 7), (1, 1)]


def written(path: Path, images: list[np.ndarray], name: str = "") -> Path:
    with path.open("wb") as file:
        write_pixel_file(file, name or path.name, len(images), iter(images))
    return path


def arrays(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (3, h, w), dtype=np.uint8) for h, w in SIZES]


def earlier(images: list[np.ndarray]) -> bytes:
    """The form before checksums."""
    out, offset, shapes = io.BytesIO(), 0, []
    for image in images:
        out.write(image.tobytes())
        shapes += [offset, image.shape[1], image.shape[2]]
        offset += image.size
    out.write(np.array([*shapes, len(images)], "<i8").tobytes())
    return out.getvalue()


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_what_was_written_comes_back(tmp_path, monkeypatch, block):
    monkeypatch.setattr(pixel_file, "BLOCK", block)
    images = arrays()
    found = open_pixel_file(written(tmp_path / "a.u8", images), len(images))
    assert found is not None and found.holds(np.arange(len(images))) and found.is_whole()
    for (offset, height, width), image in zip(found.shapes.tolist(), images, strict=True):
        np.testing.assert_array_equal(found.pixels[offset : offset + image.size].reshape(3, height, width), image)


def test_only_the_blocks_of_the_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_file, "BLOCK", 16)
    path = written(tmp_path / "a.u8", arrays())
    data = bytearray(path.read_bytes())
    data[3 * (4 * 6 + 9 * 5) + 20] ^= 4  # in image 2 of 5
    path.write_bytes(data)
    found = open_pixel_file(path)
    assert found is not None
    assert found.holds(np.array([0, 4])) and not found.holds(np.array([0, 2])) and not found.is_whole()
    assert found.holds(np.array([], np.int64))
    with pytest.raises(IndexError):
        found.holds(np.array([5]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), block=st.sampled_from([16, 1 << 20]))
def test_any_flipped_bit_any_cut_and_any_other_name_is_noticed(tmp_path, data, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_file, "BLOCK", block)
        path = written(tmp_path / "a.u8", arrays())
        whole = path.read_bytes()
        match data.draw(st.sampled_from(["bit", "cut", "longer", "name", "count"])):
            case "bit":
                damaged = bytearray(whole)
                damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
            case "longer":
                damaged = whole + data.draw(st.binary(min_size=1, max_size=300))
            case "name":
                damaged = written(tmp_path / "b.u8", arrays(), name="b.u8").read_bytes()
            case _:
                damaged = written(tmp_path / "b.u8", arrays()[:4], name="a.u8").read_bytes()
        path.write_bytes(damaged)
        found = open_pixel_file(path, len(SIZES))
        assert found is None or not found.is_whole()


def test_files_of_the_earlier_version_are_told_from_damaged_ones(tmp_path):
    path = tmp_path / "a.u8"
    path.write_bytes(earlier(arrays()))
    assert is_earlier_version(path) and open_pixel_file(path) is None
    for damaged in (b"", b"x" * 7, earlier(arrays())[:-1], earlier(arrays()) + b"\0" * 8, bytes(200)):
        path.write_bytes(damaged)
        assert not is_earlier_version(path)
    assert not is_earlier_version(written(path, arrays()))


# --- The cache that is kept in such files ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(6):
        picture(i, 8, 8).save(tmp_path / f"{i}.png")
    return tmp_path


def listed(folder: Path, size: int = 8, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> ImageList:
    return ImageList(folder, None, [ListedImage(f"{i}.png", 0, i + 1) for i in order], size, "bicubic", "square")


def want(order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> np.ndarray:
    return np.stack([np.asarray(picture(i, 8, 8)).transpose(2, 0, 1) for i in order])


IMAGE = 3 * 8 * 8


def swapped(data: bytes) -> bytes:
    return data[IMAGE : 2 * IMAGE] + data[:IMAGE] + data[2 * IMAGE :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda data: bytes(6 * IMAGE) + data[6 * IMAGE :],
    "one bit": lambda data: data[:700] + bytes([data[700] ^ 16]) + data[701:],
    "two images swapped": swapped,
    "cut": lambda data: data[:-1],
    "nothing": lambda data: b"",
    "without checksums": lambda data: earlier(list(want())),
}


@pytest.fixture(params=["small", "large"])
def either_size(request, monkeypatch) -> None:
    """A small cache is checked as a whole when it is opened, a large one block by block as it is read."""
    monkeypatch.setattr(pixel_file, "BLOCK", 100)
    if request.param == "large":
        monkeypatch.setattr(decoded, "WHOLE_CHECK_LIMIT", 0)


def write_damaged_cache(folder: Path) -> None:
    open_pixels(listed(folder), "a")
    (path,) = (folder / CACHE).glob("*.u8")
    path.write_bytes(bytes(5 * IMAGE) + path.read_bytes()[5 * IMAGE :])


@pytest.mark.usefixtures("either_size")
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cache_is_made_again_and_says_so(folder, case):
    notes: list[str] = []
    np.testing.assert_array_equal(open_pixels(listed(folder), "a", note=notes.append)(np.arange(6), None), want())
    assert notes == []
    (path,) = (folder / CACHE).glob("*.u8")
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(DAMAGE[case](whole))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    pixels = open_pixels(listed(folder), "a", note=notes.append)
    for index in (5, 3, 0, 1, 2, 4):
        np.testing.assert_array_equal(pixels(np.array([index]), None), want()[index : index + 1])
    assert len(notes) == 1 and str(path) in notes[0] and "made again" in notes[0]
    assert path.read_bytes() == whole


def test_damage_while_a_large_cache_is_in_use_is_noticed_when_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(pixel_file, "BLOCK", IMAGE)
    monkeypatch.setattr(decoded, "WHOLE_CHECK_LIMIT", 0)
    notes: list[str] = []
    pixels = open_pixels(listed(folder), "a", note=notes.append)
    np.testing.assert_array_equal(pixels(np.array([0]), None), want()[:1])
    (path,) = (folder / CACHE).glob("*.u8")
    with path.open("r+b") as file:  # in the very file that is mapped
        file.seek(3 * IMAGE)
        file.write(bytes(IMAGE))
    np.testing.assert_array_equal(pixels(np.array([1, 2]), None), want()[1:3])
    assert notes == []
    np.testing.assert_array_equal(pixels(np.arange(6), None), want())
    assert len(notes) == 1


@pytest.mark.usefixtures("either_size")
def test_a_damaged_cache_that_cannot_be_replaced_is_not_used(folder, monkeypatch):
    """As in a data folder that is mounted read-only."""
    write_damaged_cache(folder)

    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(decoded, "replacing", refuse)
    pixels = open_pixels(listed(folder), "a")
    for _ in range(2):
        np.testing.assert_array_equal(pixels(np.arange(6), None), want())


@pytest.mark.usefixtures("either_size")
def test_several_at_once_make_a_damaged_cache_again_once(folder):
    write_damaged_cache(folder)
    notes: list[str] = []
    ready = threading.Barrier(4)

    def read(_: int) -> np.ndarray:
        ready.wait()
        return open_pixels(listed(folder), "a", note=notes.append)(np.arange(6), None)

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(read, range(4)):
            np.testing.assert_array_equal(found, want())
    assert len(notes) == 1


def test_another_lists_file_under_this_ones_name_is_not_used(folder):
    """Another dataset's, another size's, another order's: whole, but not what the name says."""
    open_pixels(listed(folder), "mine")
    (mine,) = (folder / CACHE).glob("mine*.u8")
    for name, other in (("theirs", listed(folder, order=(5, 4, 3, 2, 1, 0))), ("mine", listed(folder, 6))):
        open_pixels(other, name)
        (theirs,) = set((folder / CACHE).glob("*.u8")) - {mine}
        theirs.replace(mine)
        np.testing.assert_array_equal(open_pixels(listed(folder), "mine")(np.arange(6), None), want())
