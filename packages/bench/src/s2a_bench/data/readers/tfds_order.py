"""Rebuilds the order in which tensorflow_datasets stores the examples of a split, without tensorflow_datasets.

VTAB-1k's splits are positions in that order (``train[:800]``), so the keys of the examples suffice to cut the
same splits from the original archives. Two facts suffice; both are the same in releases 3.2.1, 4.0.1, 4.4.0, 4.9.2
and 4.9.10, which were read and compared (files under ``tensorflow_datasets/core/``):

* ``hashing.py`` hashes a key with MD5 after the salt, and the salt is the name of the split (``split_builder.py``; in
  the oldest two ``dataset_builder.py``): "train", "validation", "test", whatever the archive itself calls them.
* ``shuffle.py`` and ``writer.py`` (``tfrecords_writer.py`` in the older ones) sort by that hash, read as a big-endian
  number. Buckets on disk and shards are consecutive ranges of the hash, so neither changes the order.

So the stored order is: sort the examples by ``MD5(salt + key)``. The order in which a builder yields them does not
matter.

A position here is a position in the files. ``tf.data`` takes turns between shards, 16 examples each, when it reads
several at once: a slice read with TensorFlow holds the same examples, but not always in stored order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

from s2a_bench.errors import InputError

Key = str | int | bytes


def stored_order(keys: Sequence[Key], salt: str) -> list[int]:
    """The positions of ``keys`` in the order in which tensorflow_datasets stores their examples.

    Args:
        keys: The keys under which the dataset's builder yields its examples, in any order. An integer is hashed as
            its decimal digits, so 7 and "7" are the same key.
        salt: The name of the split in tensorflow_datasets.

    Returns:
        A permutation of ``range(len(keys))``: ``keys[order[0]]`` is the key of the first stored example.

    Raises:
        InputError: Two keys are the same. tensorflow_datasets refuses such a split as well.
    """
    salted = hashlib.md5(salt.replace("\\", "/").encode(), usedforsecurity=False)
    hashes = [_hash_key(salted, key) for key in keys]
    order = sorted(range(len(keys)), key=hashes.__getitem__)
    for first, second in itertools.pairwise(order):
        if hashes[first] == hashes[second]:
            raise InputError(
                f"Examples {first} and {second} of split {salt!r} have the same key, {keys[first]!r} and "
                f"{keys[second]!r}: their stored order is undefined. Remove the copy."
            )
    return order


def _hash_key(salted: hashlib._Hash, key: Key) -> bytes:
    digest = salted.copy()
    digest.update(_key_bytes(key))
    return digest.digest()  # bytes of one length compare like the big-endian numbers that they spell


def _key_bytes(key: Key) -> bytes:
    if isinstance(key, bytes):
        return key
    # A key is often a path, which must hash alike on Windows; bytes are taken as they are.
    return str(key).replace("\\", "/").encode("utf-8", "surrogateescape")
