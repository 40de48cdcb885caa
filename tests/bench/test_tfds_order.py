"""The stored order of tensorflow_datasets, against its own output: no TFDS is imported here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.data.readers.tfds_order import Key, stored_order
from s2a_bench.errors import InputError

# What ``tensorflow_datasets.core.shuffle.Shuffler`` of tensorflow-datasets 4.9.10 gave back for these keys and salts.
ORACLE: list[tuple[str, list[Key], list[int]]] = [
    ("train", list(range(12)), [6, 5, 4, 10, 0, 8, 3, 1, 9, 7, 11, 2]),
    ("test", list(range(12)), [6, 1, 8, 9, 4, 3, 2, 7, 10, 5, 11, 0]),
    ("validation", [f"CLEVR_val_{i:06d}.png" for i in range(12)], [7, 5, 10, 9, 0, 4, 8, 3, 2, 1, 11, 6]),
    ("extra", [b"a", b"b/c.jpg", b"\xff\x00", b"d\\e"], [0, 3, 2, 1]),
    ("train ", ["a\\b", "a/c", "é", "", "0"], [1, 2, 3, 0, 4]),
]

KEYS = st.lists(st.text() | st.binary() | st.integers(), max_size=40, unique_by=lambda key: _written(key))


def _written(key: Key) -> bytes:
    return key if isinstance(key, bytes) else str(key).replace("\\", "/").encode()


@pytest.mark.parametrize(("salt", "keys", "order"), ORACLE)
def test_the_order_is_that_of_tfds(salt: str, keys: list[Key], order: list[int]):
    assert stored_order(keys, salt) == order


def test_a_split_that_tfds_sorts_on_disk_has_the_same_order():
    # From the same Shuffler, with a memory buffer so small that it wrote its thousand bucket files.
    assert stored_order(range(5000), "train")[:12] == [
        *(1680, 1456, 4223, 4093, 3017, 2896),
        *(4352, 2784, 499, 837, 3475, 1647),
    ]


def test_published_slices_come_out():
    # Heads of the VTAB-1k slices as released by others, who cut them with TFDS: the "id" of CIFAR-10's first examples
    # as its tutorials print them (train[:4]; CIFAR-100 has the same keys), and the first three files of val200 in the
    # lists of Visual Prompt Tuning (vtab_trainval_splits.json, TFDS 4.4.0): CIFAR-100 train[45000:],
    # PatchCamelyon validation[:3] and CLEVR train[63000:].
    cifar = stored_order(range(50000), "train")
    assert cifar[:4] == [16399, 1680, 47917, 17307]
    assert cifar[45000:45003] == [13431, 9237, 17462]
    assert stored_order([f"valid_{i}" for i in range(32768)], "validation")[:3] == [3270, 10310, 20603]
    assert stored_order([f"CLEVR_train_{i:06d}.png" for i in range(70000)], "train")[63000:63003] == [
        35084,
        29360,
        4525,
    ]


@given(KEYS, st.text(max_size=12))
def test_the_order_is_a_permutation(keys: list[Key], salt: str):
    assert sorted(stored_order(keys, salt)) == list(range(len(keys)))


@given(KEYS, st.text(max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_keys_does_not_matter(keys: list[Key], salt: str, random):
    shuffled = random.sample(keys, len(keys))
    assert [shuffled[i] for i in stored_order(shuffled, salt)] == [keys[i] for i in stored_order(keys, salt)]


@given(st.sampled_from(["train", "validation", "test", "extra"]), st.sampled_from(["train", "validation", "test"]))
def test_another_salt_is_another_order(one: str, other: str):
    assert (stored_order(range(100), one) == stored_order(range(100), other)) == (one == other)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=10, unique=True))
def test_an_integer_is_its_digits(numbers: list[int]):
    digits = [str(number) for number in numbers]
    assert stored_order(numbers, "train") == stored_order(digits, "train")
    assert stored_order(numbers, "train") == stored_order([digit.encode() for digit in digits], "train")


@pytest.mark.parametrize("pair", [("a", "a"), (1, "1"), ("é", "é".encode()), ("a/b", "a\\b")])
def test_the_same_key_twice_is_refused(pair: tuple[Key, Key]):
    with pytest.raises(InputError, match="same key"):
        stored_order(["other", *pair], "train")
