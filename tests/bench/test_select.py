"""The epoch is chosen on the validation images: which one, with which weights, and what it does not change."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from bench.factories import make_record
from bench.own_folders import write_own
from bench.select_cells import RECIPE, cell
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import learning, record, run, train
from s2a_bench.cells.evaluation import NO_TEST, find_best, stops
from s2a_bench.cells.outputs import Keep, adapter_path, checkpoint_path
from s2a_bench.cells.scores import accuracy
from s2a_bench.cells.select import Selection, kept_tensors
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig
from s2a_bench.data.loading import load_data
from s2a_bench.data.table.lookup import SUITES
from s2a_bench.errors import InputError
from safetensors.torch import load_file
from torch import nn


def points(*values) -> list[dict[str, float]]:
    """A curve of ``(accuracy, loss)``."""
    return [{"epoch": e, "val_accuracy": a, "val_loss": loss} for e, (a, loss) in enumerate(values, start=1)]


# --- Rules on a curve ------------------------------------------------------------------------------------------------


def test_the_best_epoch():
    assert find_best(points((10, 1), (30, 2), (20, 0.1))) == 2
    assert find_best(points((30, 2), (30, 1), (30, 1))) == 2, "lower loss, then earlier"
    assert find_best([{"epoch": 1, "val_accuracy": 5.0}, *points((0, 0), (5, 9))[1:]]) == 2, "no loss: not finite"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 4))
def test_training_stops_when_so_many_epochs_were_no_better(values, patience):
    curve = points(*values)
    # Word by word: count the epochs since the accuracy last rose above all before it.
    waited, highest = 0, -1
    for accuracy_of, _ in values:
        waited = 0 if accuracy_of > highest else waited + 1
        highest = max(highest, accuracy_of)
    assert stops(curve, patience) == (patience > 0 and waited >= patience)
    best = find_best(curve)
    assert values[best - 1][0] == highest
    assert all(values[best - 1][1] <= loss for seen, loss in values if seen == highest)


# --- A whole cell ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished cell with what was trained, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    given_back = []
    found = run.run(cell(), keep=Keep(folder, math.inf, adapters=True), on_trained=given_back.append)
    assert found.status == "done", found.error
    return found, given_back, folder


def test_what_the_record_says(whole, tmp_path):
    found, given_back, _ = whole
    (trained,) = given_back
    assert found.evaluated_on == "select" and trained.record is found and not trained.interrupted
    assert found.best_epoch == trained.best_epoch == find_best(found.curve)
    assert found.val_accuracy == max(point["val_accuracy"] for point in found.curve) == trained.val.accuracy
    assert trained.val.loss == pytest.approx(found.curve[found.best_epoch - 1]["val_loss"], abs=0)
    assert found.accuracy == trained.test.accuracy == accuracy(trained.adapted, trained.loaded.scored, RECIPE)
    assert (found.balanced_accuracy, found.macro_f1) == (trained.test.balanced_accuracy, trained.test.macro_f1)
    assert (found.train_images, found.scored_images, len(trained.loaded.val)) == (24, 30, 30)
    read_again = dataclasses.replace(record.read(record.write(found, tmp_path)), data_config=found.data_config)
    assert read_again == found


@pytest.mark.parametrize(("method", "options"), [("bias", {}), ("lora", {"dropout": 0.3})])
def test_looking_at_val_changes_nothing_of_the_training(method, options, whole):
    """The same images without looks: every loss to the bit, though dropout and stochastic depth draw at random."""
    looked = whole[0] if method == "bias" else run.run(cell(method=method, **options))
    plain = run.run(cell("val", method, **options))
    assert [point["loss"] for point in looked.curve] == [point["loss"] for point in plain.curve]
    assert looked.curve[-1]["val_accuracy"] == plain.accuracy, "val after the last epoch"
    assert plain.best_epoch is plain.val_accuracy is plain.macro_f1 is None


def test_the_weights_are_those_of_the_best_epoch(monkeypatch):
    """With val accuracies that fall, the first epoch's weights are kept: those of a training cut off after it."""
    falling = iter([90.0, 50.0, 40.0, 30.0])
    look = Selection.look

    def told(self, epoch):
        monkeypatch.setattr("s2a_bench.cells.scores.Scored.accuracy", property(lambda scored: next(falling)))
        try:
            return look(self, epoch)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(Selection, "look", told)

    after_one: dict[str, torch.Tensor] = {}

    class Stop(Exception):
        pass

    def end(metrics):
        raise Stop

    monkeypatch.setattr(Selection, "look", told)
    got = []
    found = run.run(cell(), on_trained=got.append)
    assert found.best_epoch == 1 and found.val_accuracy == 90.0 and len(found.curve) == 4
    best = {name: tensor.clone() for name, tensor in kept_tensors(got[0].adapted).items()}
    monkeypatch.undo()

    def copy_first(self, epoch):
        if epoch == 1:
            after_one.update({name: tensor.detach().clone() for name, tensor in kept_tensors(self._model).items()})
        return look(self, epoch)

    monkeypatch.setattr(Selection, "look", copy_first)
    run.run(dataclasses.replace(cell(), train=dataclasses.replace(RECIPE, epochs=4)))
    assert best.keys() == after_one.keys() != set()
    assert all(torch.equal(best[name], after_one[name]) for name in best)


def test_buffers_are_kept_with_the_parameters():
    """Batch norm's running numbers are of the best epoch too; what a state dict leaves out stays."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.frozen = nn.BatchNorm1d(2), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)
            self.register_buffer("scratch", torch.zeros(1), persistent=False)

        def forward(self, x):
            return self.norm(self.frozen(x))

    class Rows:
        labels = torch.tensor([0, 1, 0])

        def __len__(self):
            return 3

        def batch(self, indices, generator=None):
            return torch.ones(len(indices), 2)

    model = Model()
    assert set(kept_tensors(model)) == {f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")} | {
        "norm.num_batches_tracked"
    }
    selection = Selection(model, Rows(), RECIPE)
    weight = model.norm.weight
    selection.look(1)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.norm.parameters(), *model.norm.buffers()):
            tensor.add_(3)
        model.get_buffer("scratch").add_(1)
    selection.restore_best()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.norm.weight is weight and model.scratch == 1


def test_a_loss_that_is_not_finite_is_left_out():
    class Rows:
        labels = torch.tensor([0, 1])

        def __len__(self):
            return 2

        def batch(self, indices, generator=None):
            return torch.full((len(indices), 2), math.inf)

    seen = Selection(nn.Linear(2, 2), Rows(), RECIPE).look(1)
    assert "val_loss" not in seen and seen.keys() == {"val_accuracy", "val_seconds"}


# --- Cut off, resumed, interrupted, stopped --------------------------------------------------------------------------


def same_result(one, other) -> bool:
    names = ("epoch", "loss", "lr", "val_accuracy", "val_loss")
    curves = [[[point[name] for name in names] for point in each.curve] for each in (one, other)]
    fields = ("accuracy", "balanced_accuracy", "macro_f1", "val_accuracy", "best_epoch")
    return curves[0] == curves[1] and all(getattr(one, name) == getattr(other, name) for name in fields)


def interrupt_after(epoch):
    def on_epoch(metrics):
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return on_epoch


@pytest.mark.parametrize("after", [1, 3])
def test_ctrl_c_keeps_the_best_and_the_same_cell_goes_on(whole, tmp_path, after):
    expected, _, folder = whole
    keep = Keep(tmp_path, 0, adapters=True)
    got = []

    with pytest.raises(KeyboardInterrupt):
        run.run(cell(), interrupt_after(after), keep, on_trained=got.append)
    (trained,) = got
    assert trained.interrupted and trained.test is None and trained.record.accuracy is None
    assert trained.best_epoch == trained.record.best_epoch == find_best(expected.curve[:after])
    assert trained.val.accuracy == trained.record.val_accuracy
    assert accuracy(trained.adapted, trained.loaded.val, RECIPE) == trained.val.accuracy
    assert checkpoint_path(tmp_path, expected.cell_id).is_file()
    found = run.run(cell(), keep=keep, on_trained=got.append)
    assert found.resumed == 1 and not got[1].interrupted and same_result(found, expected)
    ours, theirs = (load_file(adapter_path(place, found.cell_id)) for place in (tmp_path, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "every bit of the best state"


def test_ctrl_c_while_the_test_images_are_scored(whole, monkeypatch):
    """They are scored once, by the call that comes to its end."""
    calls, score = [], run.score

    def interrupted_once(model, images, recipe):
        calls.append(images)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return score(model, images, recipe)

    monkeypatch.setattr(run, "score", interrupted_once)
    got = []
    with pytest.raises(KeyboardInterrupt):
        run.run(cell(), on_trained=got.append)
    (trained,) = got
    assert trained.interrupted and trained.test is None and trained.best_epoch == whole[0].best_epoch
    assert calls == [trained.loaded.scored, trained.loaded.val] and trained.val.accuracy == whole[0].val_accuracy


@pytest.mark.parametrize("steps", [0, 2])
def test_a_training_that_diverges_gives_the_best_epoch_before(monkeypatch, steps):
    """24 images in batches of 8 are three steps an epoch: the loss is no number in the first epoch, or in the third."""
    step, done, given_back = train.training_step, [], []

    def diverging(*arguments):
        done.append(1)
        return math.nan if len(done) > 3 * steps else step(*arguments)

    monkeypatch.setattr(train, "training_step", diverging)
    found = run.run(cell(), on_trained=given_back.append)
    if not steps:
        assert found.error is not None
        assert (found.status, found.error["type"], given_back) == ("failed", "Diverged", [])
        return
    assert found.status == "done" and len(found.curve) == steps and "loss is nan" in found.notes[0]
    (trained,) = given_back
    assert trained.best_epoch == find_best(found.curve) and not trained.interrupted
    assert accuracy(trained.adapted, trained.loaded.val, RECIPE) == found.val_accuracy


def test_ctrl_c_before_the_first_epoch_has_nothing_to_give(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Selection, "look", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run(cell(), on_trained=lambda trained: pytest.fail("nothing was scored yet"))


def test_what_on_trained_raises_is_raised():
    def fail(trained):
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        run.run(cell(method="linear"), on_trained=fail)


def test_stopping_early(whole, tmp_path):
    """A rate that cannot move anything: val stands still, and two more epochs are waited for."""
    recipe = dataclasses.replace(RECIPE, patience=2, epochs=9, warmup_epochs=0, lr=1e-12, drop_path=0.0)
    left = []
    found = run.run(cell(recipe=recipe), lambda metrics: left.append(metrics["eta_seconds"]))
    assert found.status == "done", found.error
    assert (len(found.curve), found.epochs) == (3, 9)
    assert any("stopped after epoch 3 of 9" in note and "train.patience=2" in note for note in found.notes)
    assert [bool(seconds > 0) for seconds in left] == [True] * 3
    assert all("loss" not in problem for problem in found.did_not_learn)
    keep = Keep(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):  # right at the end: what is resumed stops there again
        run.run(cell(recipe=recipe), interrupt_after(3), keep)
    again = run.run(cell(recipe=recipe), keep=keep)
    assert (again.resumed, again.notes) == (1, found.notes) and same_result(again, found)
    assert found.train_config["patience"] == 2 and "patience" not in whole[0].train_config


def test_a_training_that_stopped_early_may_have_learned():
    curve = [{"epoch": e, "loss": 2.31, "seconds": 1.0, "val_accuracy": 80.0} for e in (1, 2, 3)]
    stopped = make_record(evaluated_on="select", best_epoch=1, val_accuracy=80.0, epochs=9, curve=curve)
    assert learning.find_problems(stopped) == []
    full = dataclasses.replace(stopped, epochs=3)
    assert "training loss" in learning.find_problems(full)[0]
    rose = [{**point, "loss": loss} for point, loss in zip(curve, (2.3, 0.5, 2.2), strict=True)]
    assert learning.find_problems(dataclasses.replace(full, curve=rose)) == [], "the last epoch's weights are not kept"
    guess = dataclasses.replace(stopped, accuracy=10.0)
    assert "no better than guessing" in learning.find_problems(guess)[0]


def test_a_balanced_training_is_judged_by_its_balanced_accuracy():
    """Of 1000 images 900 are of one class: a model at 70 % in every class has learned, one that names it always not."""
    values = {"evaluated_on": "select", "best_epoch": 3, "val_accuracy": 70.0, "classes": 10, "scored_images": 1000}
    values |= {"guessing_accuracy": 90.0, "train_config": {"balance": True}}
    assert learning.find_problems(make_record(**values, accuracy=70.0, balanced_accuracy=70.0)) == []
    always_one = make_record(**values, accuracy=90.0, balanced_accuracy=10.0)
    assert "balanced accuracy" in learning.find_problems(always_one)[0]


# --- Data ------------------------------------------------------------------------------------------------------------


def test_features_of_a_frozen_backbone_serve_every_look(tmp_path):
    quick = run.run(cell(method="linear"), keep=Keep(tmp_path))
    slow = run.run(cell(method="linear"), keep=Keep(tmp_path / "slow", features=False))
    assert quick.feature_cache and not slow.feature_cache
    assert [p["val_accuracy"] for p in quick.curve] == [p["val_accuracy"] for p in slow.curve]
    assert (quick.accuracy, quick.best_epoch) == (slow.accuracy, slow.best_epoch)
    assert len(list((tmp_path / "cache" / "features").glob("*.f32"))) == 3, "train, val, test"


HALF = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("task", SUITES["mini"].datasets)
def test_every_embedded_task_has_val_and_test(task):
    both = [load_data(DataConfig("mini", task, evaluate=e), **HALF) for e in ("val", "test")]
    found = load_data(DataConfig("mini", task, evaluate="select"), **HALF)
    assert found.val is not None
    assert torch.equal(found.val.labels, both[0].scored.labels)
    assert torch.equal(found.train.labels, both[0].train.labels)
    assert torch.equal(found.scored.labels, both[1].scored.labels)
    assert found.data_id == both[0].data_id


def own(root, **changes) -> CellConfig:
    return CellConfig(
        DataConfig("own", "leaves", str(root), evaluate="select"),
        BackboneConfig(),
        MethodConfig("bias"),
        dataclasses.replace(RECIPE, epochs=2, **changes),
        threads=1,
    )


def test_without_test_images_the_accuracy_is_that_of_val(tmp_path):
    write_own(tmp_path, sizes={"train": 12, "val": 6, "test": 0})
    got = []
    found = run.run(own(tmp_path, balance=True), on_trained=got.append)
    assert found.status == "done", found.error
    assert NO_TEST in found.notes and "optimistic" in NO_TEST
    assert found.accuracy == found.val_accuracy == got[0].val.accuracy and got[0].test is None
    assert found.scored_images == 6
    assert found.guessing_loss == pytest.approx(math.log(2)), "of equally frequent classes"


def test_without_validation_images_there_is_nothing_to_choose_by(tmp_path):
    write_own(tmp_path, sizes={"train": 12, "val": 0, "test": 6})
    with pytest.raises(InputError, match="no validation images and --evaluate select scores them"):
        run.run(own(tmp_path))
