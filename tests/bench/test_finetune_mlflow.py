"""What MLflow gets of a fine-tuning: one run of the cell, its data as an input, and a model that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import s2a_bench
from bench.finetune_data import register_mini_backbones, write_classes

mlflow = pytest.importorskip("mlflow")
pandas = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    register_mini_backbones(tmp_path_factory.mktemp("installed"))
    raw, output = write_classes(tmp_path_factory.mktemp("raw") / "leaves"), tmp_path_factory.mktemp("out")
    result = s2a_bench.finetune(raw, output=output, backbone="mini_vit", epochs=3, device="cpu")
    return result, raw, output


@pytest.fixture(scope="module")
def run(tracked):
    client = mlflow.MlflowClient(tracked[0].tracking_uri)
    experiment = client.get_experiment_by_name("own")
    (found,) = client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")
    return client, found


@pytest.fixture(scope="module")
def model(tracked, run):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracked[0].tracking_uri)
    yield mlflow.pyfunc.load_model(f"runs:/{run[1].info.run_id}/model")
    mlflow.set_tracking_uri(before)


def test_the_run_has_the_numbers_the_data_and_the_model(tracked, run):
    result, raw, _ = tracked
    client, found = run
    assert found.info.status == "FINISHED"
    assert found.data.metrics["accuracy"] == pytest.approx(result.metrics["accuracy"])
    assert found.data.metrics["val_accuracy"] == pytest.approx(result.metrics["val_accuracy"])
    assert found.data.tags["cell_id"] == result.record.cell_id
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 3
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("leaves", result.record.data_id)
    assert json.loads(given.dataset.source)["uri"] == str(raw)
    (made,) = found.outputs.model_outputs
    logged = client.get_logged_model(made.model_id)
    assert logged.name == "model" and logged.source_run_id == found.info.run_id


def test_the_loaded_model_names_paths_bytes_and_tables_as_predict_does(tracked, model):
    result, raw, _ = tracked
    paths = sorted(str(p) for p in raw.rglob("*.png"))[::9]
    wanted = s2a_bench.predict(result.adapter, paths, device="cpu")
    table = model.predict(pandas.DataFrame({"image": paths}))
    assert list(table["label"]) == [each.label for each in wanted]
    assert list(table["probability"]) == pytest.approx([each.probability for each in wanted], abs=1e-5)
    contents = [Path(path).read_bytes() for path in paths]
    for given in (paths, pandas.Series(paths), contents, pandas.DataFrame({"anything": contents})):
        assert list(model.predict(given)["label"]) == list(table["label"])


def test_a_bad_image_is_named_and_does_not_stop_the_others(tracked, model):
    good = sorted(str(p) for p in tracked[1].rglob("*.png"))[0]
    table = model.predict(pandas.DataFrame({"image": [good, "/no/such.png", good]}), params={"top": 2})
    assert table["label"].notna().tolist() == [True, False, True]
    assert "/no/such.png" in table["error"][1] and not table["error"][0]
    pairs = table["top"][0]
    assert len(pairs) == 2 and pairs[0][1] >= pairs[1][1]


def test_the_same_call_leaves_one_run(tracked, run):
    _, raw, output = tracked
    again = s2a_bench.finetune(raw, output=output, backbone="mini_vit", epochs=3, device="cpu")
    assert not again.ran
    client, found = run
    assert len(client.search_runs([found.info.experiment_id], "tags.kind = 'cell'")) == 1
    assert len(client.search_logged_models([found.info.experiment_id])) == 1
