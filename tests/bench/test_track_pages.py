"""What MLflow's pages open with: views of the runs table, descriptions, numbers of a sweep, datasets."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import zlib

import pytest
from bench.factories import make_grid, make_record
from s2a_bench.cells.record import write
from s2a_bench.tracking import names, pages, summaries, views
from s2a_bench.tracking import runs as track

pytestmark = pytest.mark.filterwarnings("ignore")

RANKS, REDUCTIONS = (0, 5, 30), (4, 8)
COLUMNS = ("params.`method`", "params.`dataset`", "metrics.`accuracy`", "metrics.`params_percent`")
COLUMNS += ("metrics.`measured_mb`", "metrics.`peak_mb`", "params.`seed`", "params.`backbone`")


def make_map():
    return [
        make_record(method_config={"lrp_rank": rank, "lsb_reduction": by, "unused": None}, accuracy=50.0 + rank)
        for rank, by in itertools.product(RANKS, REDUCTIONS)
    ]


@pytest.fixture
def output(fresh_database, tmp_path):
    folder = tmp_path / "100 % ünï"
    folder.mkdir()
    shutil.copy(fresh_database, folder / "mlflow.db")
    return folder


def track_all(output, records, uri=None):
    for record in records:
        write(record, output)
    track.rebuild(output, uri)
    return track.open_store(uri, output)


def read_experiment(store, suite="mini"):
    experiment = store.client.get_experiment_by_name(suite)
    assert experiment is not None
    return experiment


def read_views(experiment):
    return {k.removeprefix(views.TAG): v for k, v in experiment.tags.items() if k.startswith(views.TAG)}


def unpack(value):
    """The state of a view as MLflow's pages read it: from the envelope."""
    envelope = json.loads(value)
    assert {type(envelope["name"]), type(envelope["createdAt"]), type(envelope["state"])} == {str, int}
    start, _, packed = envelope["state"].partition(";")
    assert start == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def find_cells(store, state):
    experiment = read_experiment(store)
    order = [f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"]
    return store.client.search_runs([experiment.experiment_id], state["searchFilter"], order_by=order)


def test_the_view_of_a_sweep_shows_its_cells_alone_the_best_first(output):
    records = make_map()
    store = track_all(output, records)
    found = read_views(read_experiment(store))
    assert len(found) == 2
    for value in found.values():
        state = unpack(value)
        rows = find_cells(store, state)
        assert [row.data.metrics["accuracy"] for row in rows] == sorted(
            (r.accuracy or 0 for r in records), reverse=True
        )
        assert {row.data.tags["kind"] for row in rows} == {"cell"}
        assert {*COLUMNS, "params.`method.lrp_rank`", "params.`method.lsb_reduction`"} <= {*state["selectedColumns"]}
        assert not any("unused" in column for column in state["selectedColumns"])


def test_the_end_of_a_sweep_keeps_the_view_of_all_sweeps_and_links_no_report_that_is_not_there(output):
    first, second = make_map(), [make_record(method="lora", method_config={"rank": rank}) for rank in (2, 4)]
    store = track_all(output, first)
    before = read_views(read_experiment(store))
    (output / "report.html").write_text("<p>made after the sweep was tracked</p>")
    for record in second:
        write(record, output)
    sweep = track.start_sweep(store, "mini", [record.cell_id for record in second])
    for record in second:
        track.log_cell(sweep, record)
    track.finish_sweep(sweep, second)
    after = read_views(read_experiment(store))
    assert len(after) == len(before) + 1
    (everything,) = (key for key in before if "all" in key)
    assert after[everything] == before[everything]
    assert "report.html" not in read_experiment(store).tags["mlflow.note.content"]
    track.rebuild(output)  # knows all sweeps
    assert "params.`method.rank`" in unpack(read_views(read_experiment(store))[everything])["selectedColumns"]


def test_charts_are_of_what_differs_and_name_what_the_runs_have(output):
    records = make_map()
    store = track_all(output, records)
    state = unpack(next(iter(read_views(read_experiment(store)).values())))
    charts = {kind: list(cards) for kind, cards in itertools.groupby(state["compareRunCharts"], lambda c: c["type"])}
    assert {"SCATTER", "PARALLEL", "CONTOUR"} <= charts.keys()
    (parallel,) = charts["PARALLEL"]
    assert parallel["selectedParams"] == ["method.lrp_rank", "method.lsb_reduction"]
    assert parallel["selectedMetrics"][-1] == "accuracy"
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {card["metricSectionId"] for card in state["compareRunCharts"]} <= sections
    assert len({card["uuid"] for card in state["compareRunCharts"]}) == len(state["compareRunCharts"])
    row = find_cells(store, state)[0]
    for card in state["compareRunCharts"]:
        for axis in (card.get(f"{name}axis") for name in "xyz"):
            assert axis is None or axis["key"] in (row.data.metrics if axis["type"] == "METRIC" else row.data.params)


def test_methods_with_other_options_share_a_chart_of_what_all_have():
    records = [*make_map(), make_record(method="lora", method_config={"rank": 4}), make_record(dataset="texture")]
    assert views.differing_params(records) == ["dataset", "method"]
    view = views.make_view("k", "t", {}, records, 0)
    parallel = [card for card in unpack(view.value)["compareRunCharts"] if card["type"] == "PARALLEL"]
    assert parallel[0]["selectedParams"] == ["dataset", "method"]


@pytest.mark.parametrize("many", [1, 400])
def test_a_view_fits_into_the_tag_of_the_oldest_mlflow(many):
    config = {f"a_rather_long_name_of_an_option_{i}": i for i in range(many)}
    records = [make_record(method_config={k: v + seed for k, v in config.items()}, seed=seed) for seed in range(3)]
    view = views.make_view("k", "Sweep", {"tags.sweep_id": "0" * 12}, records, 0)
    assert len(view.value) <= 5000
    plain, state = json.loads(view.value), unpack(view.value)
    # Before views had names, their fields lay in the tag itself.
    assert plain["searchFilter"] == state["searchFilter"]
    assert plain["selectedColumns"] == state["selectedColumns"]


@pytest.mark.parametrize("nothing", [None, "", "unknown"])
def test_a_parameter_that_says_nothing_is_left_out(nothing):
    record = make_record(method_config={"rank": 4, "width": nothing}, limit_train=None, split_id="")
    params = names.run_params(record)
    assert params["method.rank"] == "4"
    assert not {"method.width", "limit_train", "split_id"} & params.keys()
    assert not {"null", "unknown", "", "None"} & {*params.values()}


def test_the_description_links_every_view_and_explains_the_columns(output):
    (output / "report.html").write_text("<p>report</p>")
    store = track_all(output, make_map())
    experiment = read_experiment(store)
    text = experiment.tags["mlflow.note.content"]
    for key in read_views(experiment):
        assert f"viewStateShareKey={key}&" in text
    assert re.search(r"\(#/experiments/\d+/runs/[0-9a-f]{32}/artifacts/report.html\)", text)
    for name in ("accuracy", "params_percent", "measured_mb", "peak_mb", "sweep_id", "output"):
        assert f"`{name}`" in text


def test_a_sweep_of_more_cells_than_a_page_loads_has_a_view_per_dataset():
    records = [make_record(dataset=name, seed=seed) for name in ("digits", "texture") for seed in range(60)]
    whole = views.make_view("s2a-0", "Sweep 0", {"tags.sweep_id": "0"}, records, 0)
    found = pages._views_of_datasets(whole, {"tags.sweep_id": "0"}, records, 0)
    conditions = [unpack(view.value)["searchFilter"] for view in found]
    assert [condition.rpartition(" and ")[2] for condition in conditions] == [
        "params.dataset = 'digits'",
        "params.dataset = 'texture'",
    ]
    assert all("tags.sweep_id = '0'" in condition for condition in conditions)
    assert not pages._views_of_datasets(whole, {}, records[:100], 0)
    text = pages._describe("mini", "1", {view.tag: view.value for view in (whole, *found)})
    for name, view in zip(("digits", "texture"), found, strict=True):
        assert f"[{name}](#/experiments/1/runs?viewStateShareKey={view.key}&" in text


def test_a_description_that_somebody_wrote_stays(output):
    store = track_all(output, make_map())
    identity = read_experiment(store).experiment_id
    store.client.set_experiment_tag(identity, "mlflow.note.content", "My notes.")
    track.rebuild(output)
    assert read_experiment(store).tags["mlflow.note.content"] == "My notes."


def test_tracking_again_writes_nothing(output, monkeypatch):
    store = track_all(output, make_map())
    written = []
    monkeypatch.setattr(type(store.client), "set_experiment_tag", lambda *given: written.append(given))
    monkeypatch.setattr(type(store.client), "log_batch", lambda *given, **more: written.append(given))
    track.rebuild(output)
    assert written == []


def test_the_run_of_a_sweep_says_something_by_itself(output):
    records = make_map()
    store = track_all(output, [*records, make_record(method="lora", accuracy=99.0, trial=True)])
    identity = read_experiment(store).experiment_id
    (parent,) = store.client.search_runs([identity], "tags.kind = 'sweep'")
    best = max(records, key=lambda record: record.accuracy or 0)
    assert parent.data.metrics["best_accuracy"] == best.accuracy, "a trial of a search is no result"
    assert parent.data.metrics["best_measured_mb"] == best.measured_mb
    assert parent.data.tags["best_cell"] == best.cell_id
    assert f"{best.accuracy:.1f} % s2a on digits" in (parent.info.run_name or "")
    assert "accuracy" not in parent.data.metrics, "a search for accuracy finds cells alone"


def test_means_of_methods_are_over_what_all_methods_have():
    records = make_grid(["lora", "s2a"], ["digits"], (0, 1))
    alone = make_record(method="lora", dataset="texture", accuracy=1.0)
    values = summaries.sweep_metrics([*records, alone])
    for method in ("lora", "s2a"):
        mine = [record.accuracy or 0 for record in records if record.method == method]
        assert values[f"accuracy/{method}"] == pytest.approx(sum(mine) / len(mine))
    assert not [name for name in summaries.sweep_metrics([make_record(status="failed")]) if "accuracy" in name]


def test_datasets_of_sweeps_are_inputs(output):
    store = track_all(output, [make_record(), make_record(dataset="textures", suite="mini", seed=1)])
    found = {run.data.params["dataset"]: run for run in find_cells(store, {"searchFilter": "tags.kind = 'cell'",
             "orderByKey": "metrics.accuracy", "orderByAsc": True})}  # fmt: skip
    for name, run in found.items():
        assert run.inputs is not None
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == (name, run.data.params["data_id"])
        assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training", "evaluated_on": "test"}
        assert json.loads(given.dataset.source)["uri"]


def test_outputs_that_share_a_store_have_views_of_their_own(output, fresh_database, tmp_path):
    shutil.copy(fresh_database, tmp_path / "shared.db")
    uri, others = f"sqlite:///{tmp_path}/shared.db", []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        others.append(track_all(folder, make_map(), uri))
    found = read_views(read_experiment(others[0]))
    assert len(found) == 3
    alone = [state for value in found.values() if "output_id" in (state := unpack(value))["searchFilter"]]
    shown = [{run.data.tags["output"] for run in find_cells(others[0], state)} for state in alone]
    assert sorted(shown, key=str) == [{str(tmp_path / "one")}, {str(tmp_path / "two")}]
    (both,) = [state for value in found.values() if "output_id" not in (state := unpack(value))["searchFilter"]]
    assert len(find_cells(others[0], both)) == 2 * len(make_map())
    assert {"tags.`sweep_id`", "tags.`output`"} <= {*both["selectedColumns"]}
    for store in others:
        (link,) = track.list_sweeps(store)
        (key,) = re.findall(r"viewStateShareKey=([\w-]+)", link.table)
        assert key in found


def test_runs_of_an_earlier_layout_are_made_again(output, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(names, "LAYOUT", 1)
        store = track_all(output, make_map())
    assert track.rebuild(output) == len(make_map())
    assert len(find_cells(store, unpack(read_views(read_experiment(store))["s2a-all"]))) == len(make_map())
