"""The rules that divide a source, against plain Python and the published sizes."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.readers.tfds_order import stored_order
from s2a_bench.data.splits import split_source
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import (
    Counts,
    Dataset,
    FractionRule,
    OfficialRule,
    PoolRule,
    Preparation,
    SliceRule,
    make_counts,
)
from s2a_bench.errors import InputError

ROW = Dataset(
    "x", "vtab", "natural", 3, make_counts(8, 2, 5), "s", "l", "w", preparation=Preparation("r", SliceRule(), ())
)


def source(items, **more) -> Source:
    return Source(tuple(items), ("a", "b", "c"), lambda names: iter(()), **more)


def split(rule, items, row: Dataset = ROW, seed: int = 0, **more):
    preparation = Preparation("r", rule, (), seed=seed)
    return split_source(dataclasses.replace(row, preparation=preparation), preparation, source(items, **more))


def names(found) -> dict[str, list[str]]:
    return {name: [item.name for item in items] for name, items in found.lists.items()}


def numbered(part: str, n: int, keys: bool = False) -> list[SourceImage]:
    return [SourceImage(f"{part}/{i}.png", i % 3, part, i if keys else None) for i in range(n)]


def test_slices_of_stored_order_are_vtabs():
    items = numbered("train", 20) + numbered("test", 7)
    found = split(SliceRule(train=8, val=2), items, ordered=True)
    assert found.split_id == "vtab-1k"
    assert names(found) == {
        "train800": [f"train/{i}.png" for i in range(8)],
        "val200": ["train/18.png", "train/19.png"],
        "train800val200": [f"train/{i}.png" for i in (*range(8), 18, 19)],
        "test": [f"test/{i}.png" for i in range(7)],
    }


def test_slices_of_one_part_and_of_the_test_part():
    items = numbered("train", 20)
    found = names(split(SliceRule(val_from=0.6, test_part="train", test_from=0.8, train=8, val=2), items, ordered=True))
    assert found["val200"] == ["train/12.png", "train/13.png"]
    assert found["test"] == [f"train/{i}.png" for i in range(16, 20)]
    norb = SliceRule(val_part="test", val_from=0.0, test_from=0.5, train=8, val=2)
    found = names(split(norb, items + numbered("test", 10), ordered=True))
    assert found["val200"] == ["test/0.png", "test/1.png"]
    assert found["test"] == [f"test/{i}.png" for i in range(5, 10)]


def test_keys_rebuild_stored_order_with_the_splits_own_salt():
    items = numbered("train", 20, keys=True) + numbered("test", 7, keys=True)
    found = split(SliceRule(train=8, val=2), items, salts={"test": "validation"})
    assert found.split_id.startswith("vtab-1k-rebuilt")
    assert names(found)["train800"] == [f"train/{i}.png" for i in stored_order(range(20), "train")[:8]]
    assert names(found)["test"] == [f"test/{i}.png" for i in stored_order(range(7), "validation")]


def test_published_training_sets_come_out_whole():
    """All 800 and 200 names of Visual Prompt Tuning's lists (made with TFDS 4.4.0), as hashes of the sorted names."""

    def digest(found: list[str]) -> str:
        return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16]

    cifar = [f"train_{i:05d}" for i in stored_order(range(50000), "train")]
    clevr_keys = [f"CLEVR_train_{i:06d}.png" for i in range(70000)]
    clevr = [clevr_keys[i] for i in stored_order(clevr_keys, "train")]
    pcam = [f"train_{i}" for i in range(262144)]
    cells = [f"valid_{i}" for i in range(32768)]
    assert digest(cifar[:800]) == "ac3a4b7f6d6c32f7" and digest(cifar[45000:45200]) == "7996f329fc85b9ac"
    assert digest(clevr[:800]) == "2755742128ae24c0" and digest(clevr[63000:63200]) == "6570e8229f7bc1b9"
    assert digest([pcam[i] for i in stored_order(pcam, "train")[:800]]) == "21eaea5228a490c0"
    assert digest([cells[i] for i in stored_order(cells, "validation")[:200]]) == "d6e3e99d74f635b8"


@pytest.mark.parametrize(
    "name", ["cifar", "svhn", "eurosat", "resisc45", "oxford_iiit_pet", "clevr_count", "dsprites_loc"]
)
def test_fractions_of_the_table_are_vtabs_own_numbers(name):
    """``train[45000:45200]`` and the like (google-research/task_adaptation), from the sizes of the real sources."""
    published = {
        "cifar": (50000, 45000),
        "svhn": (73257, 65931),
        "eurosat": (27000, 16200),
        "resisc45": (31500, 18900),
        "oxford_iiit_pet": (3680, 2944),
        "clevr_count": (70000, 63000),
        "dsprites_loc": (737280, 589824),
    }
    row = DATASETS[name]
    assert row.preparation is not None and isinstance(row.preparation.rule, SliceRule)
    total, start = published[name]
    assert int(row.preparation.rule.val_from * total) == start
    if row.preparation.rule.test_part == "train":
        assert total - round(row.preparation.rule.test_from * total) == row.counts.test


def test_our_own_draw_is_that_of_version_1_for_good():
    """Prepared folders and records hold this split id; another order needs another one."""
    items = [SourceImage(f"{'ABC'[label]}/Image_{i}.jpg", label) for label in range(3) for i in range(12)]

    def draw(purpose: str, seed: int):
        def key(name: str) -> str:
            folder, file = name.split("/")
            return hashlib.sha256(f"s2a {purpose} {seed} {folder.lower()}/{file}".encode()).hexdigest()

        return key

    for seed in (0, 3):
        found = split(PoolRule(per_class=10, train=(0, 20), val=(25, 30)), items, seed=seed)
        classes = [sorted((i.name for i in items if i.label == label), key=draw("class", seed)) for label in range(3)]
        pool = sorted((name for each in classes for name in each[:10]), key=draw("pool", seed))
        assert found.split_id == f"s2a-seed{seed}-v1"
        assert names(found)["train800"] == pool[:20] and names(found)["val200"] == pool[25:]
        assert names(found)["test"] == sorted((n for each in classes for n in each[10:]), key=draw("test", seed))


@given(st.lists(st.integers(10, 60), min_size=3, max_size=3), st.integers(0, 3))
def test_fractions_follow_coops_rounding(sizes, seed):
    items = [SourceImage(f"{label}/{i}.jpg", label) for label, n in enumerate(sizes) for i in range(n)]
    found = split(FractionRule(0.5, 0.2), items, ROW, seed)
    for label, n in enumerate(sizes):
        got = {name: sum(item.label == label for item in each) for name, each in found.lists.items()}
        assert got["train800"] == round(0.5 * n) and got["val200"] == round(0.2 * n)
        assert got["test"] == n - round(0.5 * n) - round(0.2 * n)


@settings(max_examples=40)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([FractionRule(), OfficialRule(0.2), PoolRule(9, (0, 8), (10, 12))]),
)
def test_lists_do_not_overlap_nor_depend_on_the_order(random, rule):
    items = [SourceImage(f"{i % 3}/{i}.jpg", i % 3, "train" if i % 5 else "test") for i in range(60)]
    mixed = random.sample(items, len(items))
    first, second = split(rule, items), split(rule, mixed)
    for name in first.lists:
        assert {item.name for item in first.lists[name]} == {item.name for item in second.lists[name]}
    if not isinstance(rule, OfficialRule):  # whose lists keep the source's order
        assert names(first) == names(second)
    train, val, both, test = ([item.name for item in first.lists[name]] for name in ROW.lists)
    assert both == train + val
    assert not (set(train) & set(val) or set(both) & set(test))


def test_a_validation_part_of_the_source_is_taken():
    items = numbered("train", 9) + numbered("val", 3) + numbered("test", 3)
    found = split(OfficialRule(), items)
    assert found.split_id == "official" and names(found)["val200"] == [f"val/{i}.png" for i in range(3)]
    held = split(OfficialRule(0.4), [item for item in items if item.part != "val"])
    assert held.split_id == "official+s2a-seed0-v1"
    assert sorted(item.label for item in held.lists["val200"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("rule", "items", "part"),
    [
        (SliceRule(train=8, val=2), numbered("train", 20), "has no test images"),
        (SliceRule(train=8, val=2), numbered("train", 7) + numbered("test", 3), "too few"),
        (
            SliceRule(val_part="val", val_from=0, train=8, val=9),
            numbered("train", 9) + numbered("val", 8) + numbered("test", 1),
            "too few",
        ),
        (OfficialRule(), numbered("train", 30), "no test images"),
        (OfficialRule(0.01), numbered("train", 30) + numbered("test", 3), "too few training images"),
        (FractionRule(), [SourceImage("a/1.jpg", 0)], "too few to be divided"),
        (PoolRule(), [SourceImage("a/1.jpg", 0)], "at least 30"),
    ],
)
def test_sources_that_are_too_small(rule, items, part):
    with pytest.raises(InputError, match=part):
        split(rule, items)


def test_given_lists_win_and_must_be_complete():
    items = numbered("", 9)
    lists = {"train800": ("/0.png", "/3.png"), "val200": ("/1.png",), "test": ("/2.png",)}
    found = split(SliceRule(), items, lists=lists, split_id="coop-1")
    assert found.split_id == "coop-1" and names(found)["train800val200"] == ["/0.png", "/3.png", "/1.png"]
    with pytest.raises(InputError, match="no list 'test'"):
        split(SliceRule(), items, lists={"train800": ("/0.png",), "val200": ("/1.png",)}, split_id="x")


def test_counts_add_up():
    assert make_counts(3, 2, 9) == Counts(3, 2, 5, 9)
