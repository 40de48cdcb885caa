"""Random views of training images: what they may do, that one generator decides them all, and when they name a cell."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from bench.own_folders import write_own
from bench.small_folders import HALF, config
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.audit.epochs import recreate_cell
from s2a_bench.cells import estimate, run
from s2a_bench.cells.identity import identify_cell
from s2a_bench.cells.outputs import Keep
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data import augment, views
from s2a_bench.data.augment import NO_AUGMENTATION, Augmentation
from s2a_bench.data.images import resize_arrays
from s2a_bench.data.loading import load_data
from s2a_bench.data.mini import tasks as mini_tasks
from s2a_bench.data.table.lookup import SUITES
from s2a_bench.errors import InputError

RANDOM = ("crop", "resized-crop", "rand-m7-n2")
EVERY = torch.arange(6)


def noise(count: int = 6, height: int = 20, width: int = 23) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def draw(images: list[np.ndarray], name: str, mirror: bool = True, seed: int = 0, size: int = 16) -> np.ndarray:
    return views.cut_views(images, size, torch.Generator().manual_seed(seed), Augmentation(name, mirror))


# What is drawn


@pytest.mark.parametrize("name", RANDOM)
def test_views_are_images_of_the_size_that_differ(name):
    found = draw(noise(), name)
    assert found.shape == (6, 3, 16, 16) and found.dtype == np.uint8
    assert len({view.tobytes() for view in found}) == 6
    assert draw([], name).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("name", RANDOM)
def test_the_generator_alone_decides_and_no_other_is_touched(name):
    """Whatever the global generators of random, numpy and torch hold, before and after."""
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
        found.append(draw(noise(), name, seed=5))
        after = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
        assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    np.testing.assert_array_equal(*found)
    assert not np.array_equal(found[0], draw(noise(), name, seed=6))


@pytest.mark.parametrize("name", RANDOM)
def test_a_state_that_is_put_back_draws_the_same_again(name):
    generator = torch.Generator().manual_seed(3)
    views.cut_views(noise(), 16, generator, Augmentation(name))
    state = generator.get_state()
    first = views.cut_views(noise(), 16, generator, Augmentation(name))
    generator.set_state(state)
    np.testing.assert_array_equal(first, views.cut_views(noise(), 16, generator, Augmentation(name)))


def test_no_augmentation_is_the_plain_view_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    found = views.cut_views(noise(), 16, generator, NO_AUGMENTATION)
    np.testing.assert_array_equal(found, views.cut_views(noise(), 16, None, Augmentation("rand-m7-n2")))
    assert torch.equal(state, generator.get_state())


def test_a_resized_crop_of_everything_is_the_image(monkeypatch):
    """All of the area of a square image of the right size: timm's crop has nothing left to choose."""
    monkeypatch.setattr(views, "SCALE", (1.0, 1.0))
    views._make_transform.cache_clear()
    images = noise(height=16, width=16)
    np.testing.assert_array_equal(draw(images, "resized-crop", mirror=False), np.stack(images))
    views._make_transform.cache_clear()


@pytest.mark.parametrize("name", ["crop", "resized-crop"])
def test_nothing_is_mirrored_unless_that_is_allowed(name):
    ramp = np.broadcast_to(np.linspace(0, 255, 24).astype(np.uint8), (3, 20, 24))
    for mirror in (True, False):
        found = draw([ramp] * 40, name, mirror).astype(int)
        rises = {bool(view[0, 0, -1] > view[0, 0, 0]) for view in found}
        assert rises == ({True, False} if mirror else {True})
    # The switch changes nothing but the mirror.
    free, held = draw([ramp] * 40, name, True), draw([ramp] * 40, name, False)
    for one, other in zip(free, held, strict=True):
        assert np.array_equal(one, other) or np.abs(one[:, :, ::-1].astype(int) - other).max() <= 1


def test_resized_crops_hold_at_least_the_stated_part():
    """Of a ramp over the whole width, a crop of a part p with sides 3:4 shows no less than sqrt(p * 3/4)."""
    ramp = np.broadcast_to(np.linspace(0, 255, 60).astype(np.uint8), (3, 60, 60))
    shown = [int(np.ptp(view)) / 255 for view in draw([ramp] * 60, "resized-crop", size=32)]
    assert min(shown) > (0.35 * 0.75) ** 0.5 - 0.08  # the filter's edges
    assert min(shown) < 0.8


def test_stronger_policies_change_images_more():
    grey = [np.full((3, 20, 20), 100, np.uint8)] * 60
    changed = [np.mean([view.std() > 0 or view.mean() != 100 for view in draw(grey, f"rand-m9-n{n}")]) for n in (1, 6)]
    assert 0 < changed[0] < changed[1]


# Names


@pytest.mark.parametrize(
    ("name", "full"), [("rand", "rand-m7-n2"), ("rand-m9", "rand-m9-n2"), ("rand-n1", "rand-m7-n1")]
)
def test_short_names_stand_for_full_ones(name, full):
    assert augment.parse(name) == augment.parse(full) == full


@pytest.mark.parametrize(
    "name", ["", "rando", "rand-m11-n2", "rand-m7-n0", "rand-n2-m7", "rand-m7-n2-inc1", "flip", None, 3]
)
def test_other_names_are_refused_with_those_that_are_known(name):
    with pytest.raises(InputError, match="resized-crop, rand"):
        augment.parse(name)
    with pytest.raises(InputError, match="rand-m7-n2"):
        load_data(DataConfig(augment=name), size=32, **HALF)


def test_a_mirror_that_is_no_switch_is_refused():
    with pytest.raises(InputError, match="no switch"):
        load_data(DataConfig(mirror="no"), size=32, **HALF)  # type: ignore[arg-type]


@given(st.sampled_from(sorted(SUITES)), st.sampled_from(["none", *RANDOM]), st.booleans())
def test_the_suites_own_views_change_no_identity_under_any_name(suite, name, mirror):
    usual = augment.resolve(DataConfig(suite))
    config = DataConfig(suite, augment=name, mirror=mirror)
    assert augment.changes(DataConfig(suite)) == {}
    assert (augment.changes(config) == {}) == (augment.resolve(config) == usual)
    assert augment.from_record(augment.describe(config)).get("augment") in (None, name)


def test_what_is_recorded_by_default_is_what_was_always_recorded():
    assert augment.describe(DataConfig("vtab")) == {}
    assert augment.describe(DataConfig("fgvc")) == {"augment": "random crop and mirror"}
    assert augment.describe(DataConfig("own")) == {"augment": "random crop and mirror"}


# In loading


def test_own_images_are_scored_alike_whatever_they_are_trained_with(tmp_path):
    write_own(tmp_path)
    usual = load_data(DataConfig("own", "leaves", str(tmp_path)), size=16, **HALF)
    for name in ("none", *RANDOM):
        found = load_data(DataConfig("own", "leaves", str(tmp_path), augment=name), size=16, **HALF)
        for one, other in ((found.train, usual.train), (found.scored, usual.scored)):
            torch.testing.assert_close(one.batch(EVERY), other.batch(EVERY), rtol=0, atol=0)
        drawn = [part.train.batch(EVERY, torch.Generator().manual_seed(0)) for part in (usual, found)]
        assert torch.equal(*drawn) == (name == "crop")
    assert len(list((tmp_path / "leaves" / ".cache").glob("*.u8"))) == 2  # all share the lists decoded once


def test_squares_on_disk_are_scored_as_ever_and_trained_on_random_views(caltech):
    usual, found = (load_data(config(caltech, augment=name), size=9, **HALF) for name in ("default", "crop"))
    for one, other in ((found.train, usual.train), (found.scored, usual.scored)):
        torch.testing.assert_close(one.batch(EVERY), other.batch(EVERY), rtol=0, atol=0)
    drawn = [found.train.batch(EVERY, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.testing.assert_close(
        usual.train.batch(EVERY, torch.Generator().manual_seed(0)), usual.train.batch(EVERY), rtol=0, atol=0
    )


def test_embedded_images_too():
    task = DataConfig(dataset="digits", augment="crop", mirror=False, limit_train=6)
    found = load_data(task, size=28, **HALF)
    plain = load_data(dataclasses.replace(task, augment="default", mirror=True), size=28, **HALF)
    torch.testing.assert_close(found.train.batch(EVERY), plain.train.batch(EVERY), rtol=0, atol=0)
    (crop,) = found.train.batch(torch.tensor([2]), torch.Generator().manual_seed(0)).mul(0.5).add(0.5).mul(255)
    big = resize_arrays(mini_tasks.load_task("digits")["train800val200"][0][[2 * 1000 // 6]], 32)[0]
    windows = [big[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
    assert any(np.array_equal(crop.round().numpy().astype(np.uint8), window) for window in windows)


# In a cell


def cell(**changes) -> CellConfig:
    data = DataConfig(dataset="digits", limit_train=20, limit_test=20, **changes)
    recipe = TrainConfig(epochs=3, warmup_epochs=1, batch_size=8)
    return CellConfig(data, BackboneConfig(random_weights=True), MethodConfig("bias"), recipe, threads=1)


class Cut(BaseException):
    """Ends a run as a kill does."""


@pytest.mark.parametrize("name", ["crop", "rand-m7-n2"])
def test_an_augmented_training_that_was_cut_off_ends_in_the_same_bits(tmp_path, name):
    def cut(metrics):
        random.seed(9)  # the process that goes on has other global generators
        if metrics["epoch"] == 2:
            raise Cut

    asked = cell(augment=name)
    whole = run.run(asked)
    assert whole.status == "done", whole.error
    keep = Keep(tmp_path, 0)
    with pytest.raises(Cut):
        run.run(asked, on_epoch=cut, keep=keep)
    resumed = run.run(asked, keep=keep)
    assert resumed.resumed == 1 and resumed.accuracy == whole.accuracy
    assert [point["loss"] for point in resumed.curve] == [point["loss"] for point in whole.curve]
    assert [point["loss"] for point in whole.curve] != [point["loss"] for point in run.run(cell()).curve]


def test_the_record_says_what_was_done_and_makes_its_cell_again():
    asked = cell(augment="rand", mirror=False)
    found = run.run(asked)
    assert found.data_config["augment"] == "rand-m7-n2" and found.data_config["mirror"] is False
    assert "RandAugment rand-m7-n2-mstd0.5-inc1" in found.data_config["augmentation"]
    assert "mirror" not in found.data_config["augmentation"]
    again = recreate_cell(found, None, None, "cpu")
    assert identify_cell(again).cell_id == found.cell_id
    assert identify_cell(cell(augment="rand-m7-n2", mirror=False)).cell_id == found.cell_id
    assert len({identify_cell(cell(**each)).cell_id for each in ({}, {"augment": "rand"}, {"augment": "crop"})}) == 3
    assert identify_cell(cell(augment="none", mirror=False)).cell_id == identify_cell(cell()).cell_id


def test_features_are_kept_exactly_where_nothing_is_drawn(tmp_path):
    write_own(tmp_path)
    for name, kept in (("default", False), ("none", True)):
        data = DataConfig("own", "leaves", str(tmp_path), augment=name)
        asked = dataclasses.replace(cell(), data=data, method=MethodConfig("linear"))
        found = run.run(dataclasses.replace(asked, train=TrainConfig(epochs=1, warmup_epochs=0)))
        assert found.status == "done" and found.feature_cache is kept
        assert estimate.keeps_features(asked) is kept
