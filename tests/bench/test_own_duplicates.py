"""Near-duplicates: what counts as one, and that the search finds all of them."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from bench.own_sources import encode, picture, prepare, write_images
from PIL import Image, ImageDraw
from s2a_bench.data.images import decode_rgb
from s2a_bench.data.own import duplicates
from s2a_bench.data.own.duplicates import BITS, THRESHOLD, compute_hash, group_near_duplicates
from scipy.sparse.csgraph import connected_components


def scene(seed: int) -> Image.Image:
    """Something like a photograph: large shapes, smooth light, a little noise."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(60, 200, (6, 6, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = rng.integers(0, 90, 4)
        draw.ellipse((x, y, x + w + 8, y + h + 8), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def distance(one: Image.Image, other: Image.Image) -> int:
    a, b = compute_hash(one), compute_hash(other)
    assert a is not None and b is not None
    return int((np.unpackbits(np.frombuffer(a, np.uint8)) != np.unpackbits(np.frombuffer(b, np.uint8))).sum())


@pytest.mark.parametrize("seed", range(4))
def test_what_people_do_to_a_picture(seed):
    image = scene(seed)
    compressed = decode_rgb(encode(image, "JPEG", quality=30), "x")
    for same in (
        compressed,
        image.resize((80, 60)),
        image.resize((320, 240)),
        image.point([int(v * 0.8) + 20 for v in range(256)] * 3),
    ):
        assert distance(image, same) <= THRESHOLD
    assert distance(image, scene(seed + 100)) > 2 * THRESHOLD


def test_hash_is_the_librarys():
    image = scene(1)
    bits = np.unpackbits(np.frombuffer(compute_hash(image) or b"", np.uint8)).reshape(16, 16)
    assert (bits == imagehash.phash(image, 16).hash).all()


def partition(component) -> set[frozenset[int]]:
    found: dict[int, set[int]] = {}
    for i, each in enumerate(component):
        found.setdefault(int(each), set()).add(i)
    return {frozenset(each) for each in found.values()}


def by_all_pairs(bits: np.ndarray) -> set[frozenset[int]]:
    near = (bits[:, None] != bits[None]).sum(axis=2) <= THRESHOLD
    return partition(connected_components(near)[1])


@pytest.mark.parametrize("chunk", [1 << 20, 50])
def test_search_finds_what_comparing_all_pairs_finds(monkeypatch, chunk):
    """Distances around the threshold, in pairs so that a pair that is missed shows."""
    monkeypatch.setattr(duplicates, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (300, BITS)).astype(np.uint8)
    other = bits.copy()
    for i in range(300):
        other[i, rng.choice(BITS, THRESHOLD - 4 + i % 8, replace=False)] ^= 1
    pairs = np.concatenate((bits, other))
    expected = by_all_pairs(pairs)
    assert len(expected) == 300 + sum(i % 8 > 4 for i in range(300))
    assert partition(duplicates.connect_near(np.packbits(pairs, axis=1))) == expected


def test_chains_and_crowds():
    """Frames of a film: near to their neighbours, the first not to the last; and many copies of one scene."""
    rng = np.random.default_rng(1)
    chain = [rng.integers(0, 2, BITS)]
    for _ in range(60):
        chain.append(chain[-1].copy())
        chain[-1][rng.choice(BITS, 12, replace=False)] ^= 1
    crowd = rng.integers(0, 2, BITS) ^ (rng.random((400, BITS)) < 0.03)
    bits = np.unique(np.concatenate((np.array(chain), crowd)).astype(np.uint8), axis=0)
    found = partition(duplicates.connect_near(np.packbits(bits, axis=1)))
    assert found == by_all_pairs(bits) and sorted(map(len, found)) == [61, 400]


def test_flat_images_are_alike_only_if_they_are_one_file():
    """White pages and black frames must not chain everything together."""
    assert compute_hash(Image.new("RGB", (50, 50), "white")) is None
    assert compute_hash(Image.new("RGB", (50, 50), (3, 90, 200))) is None
    assert group_near_duplicates(["a", "b", "a", "c"], [None, None, None, b"\0" * 32]) == [0, 1, 0, 3]


def test_alike_images_stay_in_one_part_and_are_told(tmp_path):
    write_images(tmp_path / "src", {"cat": 10, "dog": 10})
    for i in range(4):
        image = scene(i)
        for label, quality in (("cat", 95), ("cat", 60), ("dog" if i == 0 else "cat", 80)):
            (tmp_path / f"src/{label}/scene{i}-{quality}.jpg").write_bytes(encode(image, "JPEG", quality=quality))
    lists, notes = prepare(tmp_path / "src", tmp_path / "root", val=0.3, test=0.3)
    for i in range(4):
        homes = [{n.split("/")[1].split("-")[0] for n in lists[part]} for part in ("train", "val", "test")]
        assert sum(f"scene{i}" in home for home in homes) == 1
    assert any("12 images" in note and "4 groups" in note for note in notes)
    mixed = [note for note in notes if "several classes" in note]
    assert len(mixed) == 1 and "cat/scene0-" in mixed[0] and "dog/scene0-80.jpg" in mixed[0]
    torn, notes = prepare(tmp_path / "src", tmp_path / "other", val=0.3, test=0.3, near_duplicates=False)
    assert torn != lists and notes == []


def test_noise_is_not_alike():
    assert all(distance(picture(0, 40), picture(i, 40)) > 2 * THRESHOLD for i in range(1, 20))
