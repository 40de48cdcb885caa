"""The draw of validation and test images."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.data.own.divide import draw_parts

FRACTIONS = st.sampled_from([{"val": 0.1, "test": 0.1}, {"val": 0.25}, {"test": 0.5}, {"val": 0.3, "test": 0.3}])


@st.composite
def classes_of_groups(draw):
    """Groups of one class each, with enough of them in every class: names, labels, groups."""
    labels: list[int] = []
    groups: list[int] = []
    number = 0
    for label in range(draw(st.integers(2, 4))):
        sizes = draw(st.lists(st.integers(1, 5), min_size=3, max_size=30))
        for size in [*sizes, 2]:
            labels += [label] * size
            groups += [number] * size
            number += 1
    order = draw(st.permutations(range(len(labels))))
    return [f"{i}.png" for i in order], [labels[i] for i in order], [groups[i] for i in order]


@given(classes_of_groups(), FRACTIONS, st.integers(0, 3))
def test_groups_of_one_class(images, fractions, seed):
    names, labels, groups = images
    parts, undrawn = draw_parts(names, labels, groups, fractions, seed)
    assert undrawn == []
    assert set(parts) == {"train", *fractions} and len(parts) == len(names)  # each image in one part
    sides: dict[int, set[str]] = {}
    for group, part in zip(groups, parts, strict=True):
        sides.setdefault(group, set()).add(part)
    assert all(len(side) == 1 for side in sides.values())
    found = Counter(zip(labels, parts, strict=True))
    size_of = Counter(groups)
    for label, count in Counter(labels).items():
        largest = max(size_of[group] for group, own in zip(groups, labels, strict=True) if own == label)
        assert found[label, "train"] >= 2
        for part, share in fractions.items():
            assert found[label, part] >= 1
            assert abs(found[label, part] - share * count) <= largest or found[label, "train"] <= 2 * largest
    assert draw_parts(names, labels, groups, fractions, seed) == (parts, undrawn)


@given(st.lists(st.integers(4, 60), min_size=2, max_size=4), FRACTIONS, st.integers(0, 3))
def test_without_groups_shares_are_exact(counts, fractions, seed):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    names = [f"{i}.png" for i in range(len(labels))]
    parts, undrawn = draw_parts(names, labels, range(len(labels)), fractions, seed)
    assert undrawn == []
    found = Counter(zip(labels, parts, strict=True))
    for label, count in enumerate(counts):
        for part, share in fractions.items():
            room = count - 2 - (len(fractions) - 1)
            assert abs(found[label, part] - min(max(1, share * count), room)) <= 0.5 + 1e-9


@given(st.data())
def test_groups_of_several_classes_stay_together(data):
    """Patients with images of several classes: never torn; every class in every part, or it is said which is not."""
    groups = data.draw(st.lists(st.integers(0, 9), min_size=20, max_size=60))
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups)))
    names = [f"{i}" for i in range(len(groups))]
    parts, undrawn = draw_parts(names, labels, groups, {"val": 0.2, "test": 0.2}, 0)
    assert len({(g, p) for g, p in zip(groups, parts, strict=True)}) == len(set(groups))
    if undrawn:
        for missing in undrawn:
            assert missing.images == labels.count(missing.label)
            own = Counter(g for g, label in zip(groups, labels, strict=True) if label == missing.label)
            assert (missing.groups, missing.largest) == (len(own), max(own.values()))
    else:
        assert {(label, part) for label in set(labels) for part in ("train", "val", "test")} <= set(
            zip(labels, parts, strict=True)
        )


def test_order_of_the_images_and_new_ones_do_not_matter_to_others():
    names = [f"{i}.png" for i in range(100)]
    one, _ = draw_parts(names, [0] * 100, range(100), {"val": 0.2}, 0)
    back, _ = draw_parts(names[::-1], [0] * 100, range(100), {"val": 0.2}, 0)
    assert one == back[::-1]
    fewer, _ = draw_parts(names[:95], [0] * 95, range(95), {"val": 0.2}, 0)
    assert sum(a != b for a, b in zip(one, fewer, strict=False)) <= 5
    other, _ = draw_parts(names, [0] * 100, range(100), {"val": 0.2}, 1)
    assert other != one


def test_groups_too_large_to_draw_from():
    labels, groups = [0] * 10 + [1] * 10, [0] * 9 + [1] + list(range(2, 12))
    _, undrawn = draw_parts([f"{i}" for i in range(20)], labels, groups, {"val": 0.1, "test": 0.1}, 0)
    assert {missing.label for missing in undrawn} == {0}
    assert undrawn[0].groups == 2 and undrawn[0].largest == 9
    parts, undrawn = draw_parts([f"{i}" for i in range(20)], labels, groups, {"val": 0.1}, 0)
    assert not undrawn and parts[9] == "val" and set(parts[:9]) == {"train"}
