"""Fine-tuning on own images: what it leaves, and that the same command goes on, does nothing, or replaces nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import s2a
import s2a_bench
import torch
from bench.finetune_data import CLASSES, register_mini_backbones, write_classes
from PIL import Image
from s2a_bench.cells import backbones
from s2a_bench.errors import InputError
from s2a_bench.sweeps.events import Listener
from s2a_bench.tracking import store
from s2a_bench.tracking.store import NotInstalled
from sklearn.metrics import balanced_accuracy_score, f1_score

SETTINGS = {"backbone": "mini_vit", "epochs": 4, "device": "cpu", "seed": 3}


class Heard(Listener):
    """Keeps what it is told; interrupts after an epoch if asked to."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.messages: list[str] = []
        self.epochs: list[dict] = []
        self.planned_ids: list[str] = []
        self._interrupt_after = interrupt_after

    def message(self, text, level):
        self.messages.append(text)

    def planned(self, plan):
        self.planned_ids += plan.todo

    def epoch(self, cell_id, metrics):
        self.epochs.append(dict(metrics))
        if len(self.epochs) == self._interrupt_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def _without_mlflow(tmp_path_factory):
    """MLflow has tests of its own; here it is not installed, which is only a message."""
    register_mini_backbones(tmp_path_factory.mktemp("installed"))
    with pytest.MonkeyPatch.context() as patch:

        def refuse() -> None:
            raise NotInstalled("MLflow is not installed")

        patch.setattr(store, "check_installed", refuse)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("raw") / "my leaves")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished fine-tuning, not to be changed, and what its listener heard."""
    output, heard = tmp_path_factory.mktemp("out") / "done here", Heard()
    return s2a_bench.finetune(images, output=output, listeners=[heard], **SETTINGS), heard


def copied(finished, tmp_path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(finished[0].adapter.parent, target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_adapter_alone_names_the_test_images_as_the_metrics_say(finished, images):
    result, _ = finished
    output = result.adapter.parent
    adapted = s2a.from_pretrained(result.adapter)
    assert adapted.labels == result.labels == sorted(CLASSES)
    lines = (output / "data" / "my-leaves" / "test.txt").read_text().splitlines()
    pairs = [(images / line.rpartition(" ")[0], int(line.rpartition(" ")[2])) for line in lines]
    transform = adapted.transform()
    with torch.no_grad():
        logits = adapted(torch.stack([transform(Image.open(path)) for path, _ in pairs]))
    named, true = logits.argmax(1).numpy(), np.array([label for _, label in pairs])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["accuracy_on"] == "test"
    assert metrics["accuracy"] == pytest.approx(100 * (named == true).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(true, named))
    assert metrics["macro_f1"] == pytest.approx(100 * f1_score(true, named, average="macro"))
    assert sorted(map(tuple, metrics["confusion"]["counts"])) == sorted(
        (t, n, int(((true == t) & (named == n)).sum())) for t, n in {*zip(true.tolist(), named.tolist(), strict=True)}
    )
    assert metrics == result.metrics


def test_what_is_written_holds_together_and_nothing_is_copied(finished):
    result, heard = finished
    output = result.adapter.parent
    assert not [p for p in output.rglob("*") if p.suffix == ".png"], "images are used where they lie"
    assert not list(output.parent.glob("*preparing*"))
    metrics, record = result.metrics, result.record
    assert record.status == "done" and record.suite == "own" and record.evaluated_on == "select"
    assert metrics["cell_id"] == record.cell_id == heard.planned_ids[0]
    assert [e["loss"] for e in heard.epochs] == [e["loss"] for e in metrics["curve"]]
    best = max(e["val_accuracy"] for e in metrics["curve"])
    assert metrics["val_accuracy"] == pytest.approx(best)
    assert metrics["curve"][metrics["best_epoch"] - 1]["val_accuracy"] == best
    assert sum(each["support"] for each in metrics["per_class"]) == metrics["data"]["counts"]["test"]
    assert sum(metrics["data"]["counts"][name] for name in ("train", "val", "test")) == 39
    assert metrics["method"]["options"]["activations"] == "lean"
    assert not (output / "checkpoints" / f"{record.cell_id}.pt").exists()
    memory, card = metrics["memory"], (result.adapter / "README.md").read_text()
    assert memory["weights_mb"] < memory["simulated_mb"] < memory["peak_mb"], "that of a process holds all libraries"
    assert "Peak of a training step, simulated" in card and "Python and libraries included" in card
    assert any("MLflow" in text for text in heard.messages) and result.tracking_uri is None


def test_the_page_is_one_file_whose_names_are_text(finished):
    page = finished[0].report.read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    for words in ("Learning curves", "best epoch", "Each class", "s2a-bench predict '"):
        assert words in page


def test_the_same_call_does_nothing(finished, images, tmp_path):
    output, heard = copied(finished, tmp_path), Heard()
    before = contents(output / "adapter")
    again = s2a_bench.finetune(images, output=output, listeners=[heard], **SETTINGS)
    assert not again.ran and not heard.epochs and not heard.planned_ids
    assert contents(output / "adapter") == before
    assert again.metrics == finished[0].metrics


def test_an_interrupted_call_keeps_the_best_and_goes_on_to_the_same_result(finished, images, tmp_path):
    output, heard = tmp_path / "out", Heard(interrupt_after=2)
    with pytest.raises(KeyboardInterrupt):
        s2a_bench.finetune(images, output=output, listeners=[heard], **SETTINGS)
    kept = json.loads((output / "metrics.json").read_text())
    assert (kept["status"], kept["epochs_run"], kept["accuracy_on"]) == ("interrupted", 2, "val")
    assert "Interrupted after epoch 2 of 4" in (output / "report.html").read_text()
    assert any(str(output / "adapter") in text for text in heard.messages)
    s2a.from_pretrained(output / "adapter")
    more = Heard()
    result = s2a_bench.finetune(images, output=output, listeners=[more], **SETTINGS)
    assert result.ran and result.record.resumed == 1
    whole = finished[0]
    for key in ("accuracy", "macro_f1", "best_epoch", "val_accuracy", "cell_id", "status", "confusion"):
        assert result.metrics[key] == whole.metrics[key]
    assert [e["loss"] for e in result.metrics["curve"]] == [e["loss"] for e in whole.metrics["curve"]]
    states = [(r.adapter / "adapter_model.safetensors").read_bytes() for r in (result, whole)]
    assert states[0] == states[1]
    assert not (output / "previous").exists(), "an earlier state of the same cell is no loss"


def test_other_arguments_set_the_old_results_aside_and_they_come_back(finished, images, tmp_path):
    output = copied(finished, tmp_path)
    before = contents(output / "adapter")
    other = s2a_bench.finetune(images, output=output, **{**SETTINGS, "epochs": 1})
    first = finished[0].record.cell_id
    assert other.record.cell_id != first
    assert contents(output / "previous" / first / "adapter") == before
    heard = Heard()
    back = s2a_bench.finetune(images, output=output, listeners=[heard], **SETTINGS)
    assert not back.ran and not heard.epochs
    assert contents(output / "adapter") == before
    assert (output / "previous" / other.record.cell_id / "metrics.json").is_file()


def test_changed_images_are_prepared_again(images, tmp_path):
    raw = tmp_path / "leaves"
    shutil.copytree(images, raw)
    output = tmp_path / "out"
    fast = {**SETTINGS, "epochs": 1}
    one = s2a_bench.finetune(raw, output=output, **fast)
    (raw / CLASSES[0] / "0.png").unlink()
    two = s2a_bench.finetune(raw, output=output, **fast)
    assert two.ran and two.record.data_id != one.record.data_id
    assert sum(two.metrics["data"]["counts"].values()) - two.metrics["data"]["counts"]["test"] < 39


def test_no_test_images_means_that_the_accuracy_is_validation_s(images, tmp_path):
    result = s2a_bench.finetune(images, output=tmp_path / "out", test=0.0, **{**SETTINGS, "epochs": 1})
    assert result.metrics["accuracy_on"] == "val"
    assert result.metrics["accuracy"] == result.metrics["val_accuracy"]
    assert any("optimistic" in note for note in result.metrics["notes"])


def test_without_the_hub_the_embedded_backbone_is_taken_and_that_is_said(images, tmp_path, monkeypatch):
    def unreachable(name):
        raise InputError(f"the hub cannot be reached for {name}")

    monkeypatch.setattr(backbones, "_hub_file", unreachable)
    heard, settings = Heard(), {**SETTINGS, "epochs": 1, "backbone": None}
    result = s2a_bench.finetune(images, output=tmp_path / "out", listeners=[heard], **settings)
    assert result.record.backbone == "mini_vit"
    for texts in (heard.messages, result.metrics["notes"], [(result.adapter / "README.md").read_text()]):
        assert any("cannot be reached" in text.replace("\\", "") for text in texts)
    with pytest.raises(InputError, match="hub cannot be reached for vit_small_patch16_224"):
        s2a_bench.finetune(images, output=tmp_path / "other", **{**settings, "backbone": "vit_small_patch16_224"})
    assert not (tmp_path / "other").exists()


def test_a_failed_training_is_an_error_with_its_record(images, tmp_path):
    with pytest.raises(s2a_bench.FinetuneFailed, match=r"lower train\.lr") as caught:
        s2a_bench.finetune(images, output=tmp_path / "out", lr=1e30, method="full", **{**SETTINGS, "epochs": 2})
    assert caught.value.record.status == "failed"
    assert not (tmp_path / "out" / "adapter").exists()
