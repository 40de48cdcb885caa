"""Suite ``real``: scenes painted at any size are the same scenes, and its lists are VTAB-1k's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.config import DataConfig
from s2a_bench.data.loading import check_data, load_data
from s2a_bench.data.mini import scenes
from s2a_bench.data.mini import tasks as mini_tasks
from s2a_bench.data.mini.render import SIZE
from s2a_bench.data.table.lookup import DATASETS, SUITES, find_dataset, get_dataset
from s2a_bench.errors import InputError

VIEW = {"size": 48, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_the_suite_is_five_tasks_in_vtabs_lists() -> None:
    suite = SUITES["real"]
    assert suite.datasets == ("caltech101", "cifar10_1k", *(f"scene_{n}" for n in ("count", "location", "orientation")))
    for name in suite.datasets:
        dataset = get_dataset("real", name)
        assert dataset.lists == DATASETS["caltech101"].lists
        assert dataset.counts[:3] == (800, 200, 1000)
    assert get_dataset("real", "count").name == "scene_count"
    assert find_dataset("count").suite == "mini"  # The older name stays the mini suite's.
    assert find_dataset("cifar10").suite == "cifar"


@pytest.mark.parametrize("task", scenes.TASKS)
def test_lists_are_balanced_apart_and_not_the_mini_suites(task: str) -> None:
    classes = DATASETS[task].classes
    seen: set[bytes] = {image.tobytes() for image in mini_tasks.load_task(task.removeprefix("scene_"))["test"][0]}
    for name, n in mini_tasks.SPLITS.items():
        labels = scenes.labels_of(task, name)
        count = np.bincount(labels, minlength=classes)
        assert len(labels) == n == DATASETS[task].count(name)
        assert len(count) == classes
        assert count.max() - count.min() <= 1
        images = {image.tobytes() for image in scenes.render(task, name, np.arange(n), SIZE)}
        assert len(images) == n
        assert not images & seen
        seen |= images


@pytest.mark.parametrize("task", scenes.TASKS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_an_image_is_the_same_whatever_is_painted_with_it(task: str, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=6)))
    size = data.draw(st.sampled_from([24, 32, 56]))
    together = scenes.render(task, "train800val200", indices, size)
    alone = [scenes.render(task, "train800val200", indices[i : i + 1], size)[0] for i in range(len(indices))]
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize("task", scenes.TASKS)
def test_the_1000_are_train_and_val_in_order(task: str) -> None:
    both = scenes.render(task, "train800val200", np.array([0, 799, 800, 999]), SIZE)
    np.testing.assert_array_equal(both[:2], scenes.render(task, "train800", np.array([0, 799]), SIZE))
    np.testing.assert_array_equal(both[2:], scenes.render(task, "val200", np.array([0, 199]), SIZE))
    labels = scenes.labels_of(task, "train800val200")
    expected = [scenes.labels_of(task, name) for name in ("train800", "val200")]
    np.testing.assert_array_equal(labels, np.concatenate(expected))


@pytest.mark.parametrize("task", scenes.TASKS)
def test_larger_images_show_the_same_scene(task: str) -> None:
    """The mean of 4 x 4 pixels of an image four times as large is the small image, but for noise and soft edges."""
    indices = np.arange(24)
    small = scenes.render(task, "val200", indices, SIZE).astype(float)
    large = scenes.render(task, "val200", indices, 4 * SIZE).astype(float)
    means = large.reshape(24, 3, SIZE, 4, SIZE, 4).mean((3, 5))
    difference = np.abs(means - small)
    # Noise is uniform within 5 % of 255 to either side, 6.4 in the mean; soft edges differ where there are any.
    assert difference.mean() < 8
    assert np.quantile(difference, 0.95) < 14


def test_no_pixel_is_enlarged() -> None:
    """Neighbouring pixels of an enlarged image would be alike; of the painted ones half a shape's edge is sharp."""
    image = scenes.render("scene_count", "test", np.array([3]), 128)[0].astype(float)
    enlarged = scenes.render("scene_count", "test", np.array([3]), 32)[0].repeat(4, 1).repeat(4, 2).astype(float)
    assert np.abs(image - enlarged).max() > 60


def test_a_cell_sees_the_backbones_own_size() -> None:
    config = DataConfig("real", "location", limit_train=10, limit_test=6)
    data = load_data(config, **VIEW)
    assert (data.dataset.name, data.classes, data.synthetic, data.lossy) == ("scene_location", 16, True, False)
    pixels = data.scored.batch(torch.tensor([1, 0]))
    assert pixels.shape == (2, 3, 48, 48)
    first = (
        torch.from_numpy(scenes.render("scene_location", "test", np.array([0]), 48)).float().div(255).sub(0.5).mul(2)
    )
    torch.testing.assert_close(pixels[1:], first)
    assert len(data.train) == 10
    assert data.train.labels.tolist() == scenes.labels_of("scene_location", "train800val200")[::100].tolist()
    assert data.data_id == check_data(config)[0] == scenes.scenes_data_id("scene_location")
    assert data.data_id != mini_tasks.task_data_id("location")


def test_random_views_are_cut_from_larger_images() -> None:
    config = DataConfig("real", "count", limit_train=4, limit_test=4, augment="crop")
    data = load_data(config, **VIEW)
    views = data.train.batch(torch.arange(4), torch.Generator().manual_seed(0))
    assert views.shape == (4, 3, 48, 48)
    assert not torch.equal(views, data.train.batch(torch.arange(4)))


IDS = {
    "scene_orientation": "a64c531b73ebfd15",
    "scene_location": "e3f9336973bbec05",
    "scene_count": "1e62271287577622",
}
"""Of every task; another id makes every record of these tasks count as missing."""


@pytest.mark.parametrize("task", scenes.TASKS)
def test_images_are_what_they_were(task: str) -> None:
    assert scenes.scenes_data_id(task) == IDS[task]


@pytest.mark.parametrize(("indices", "words"), [([5000], "5000"), ([-1], "-1"), ([3, 200], "200")])
def test_images_that_a_list_lacks_are_refused(indices: list[int], words: str) -> None:
    with pytest.raises(InputError, match=f"List val200 of scene_count has 200 images, 0 to 199.*{words}"):
        scenes.render("scene_count", "val200", np.array(indices), SIZE)


def test_unknown_lists_are_named() -> None:
    for ask in (scenes.labels_of, lambda task, name: scenes.render(task, name, np.array([0]), SIZE)):
        with pytest.raises(InputError, match=r"list of a rendered task 'tset': did you mean test"):
            ask("scene_count", "tset")


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(InputError, match=r"rendered task 'scene_cout'.*scene_count"):
        scenes.load_scenes("scene_cout")
