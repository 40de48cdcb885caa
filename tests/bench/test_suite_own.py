"""Own datasets go where those of the table go: sweep, search, report, audit, MLflow, records, one cell in a file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.own_folders import SIZES, picture, write_own
from bench.small_folders import HALF
from PIL import Image
from s2a_bench.cells import recipes, record
from s2a_bench.cells.record import failed_record, read_all
from s2a_bench.cli.main import main
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data.images import decode_rgb
from s2a_bench.data.loading import load_data
from s2a_bench.data.table import lookup
from s2a_bench.data.verify import verify_folder
from s2a_bench.errors import InputError
from s2a_bench.run import main as run_one_cell
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.request import Request

QUICK = ["--suite", "own", "--data-dir", "data", "--backbones", "mini_vit", "--epochs", "1", "--serial"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def records_of(output: str = "results") -> list[record.Record]:
    return [found for _, found in read_all(Path(output)) if isinstance(found, record.Record)]


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    assert not Path("results").exists()
    return capsys.readouterr().err


# Requests


def test_a_sweep_without_names_takes_every_own_dataset(tmp_path):
    for name in ("leaves", "bolts"):
        write_own(tmp_path / "data", name)
    request = Request(suite="own", data_dir=str(tmp_path / "data"), backbones=("mini_vit",), methods=("linear",))
    cells = grid.expand(request)
    assert [cell.data.dataset for cell in cells] == ["bolts", "leaves"]
    assert {cell.data.root for cell in cells} == {str(tmp_path / "data")}
    one = grid.expand(dataclasses.replace(request, datasets=("leaves",), augment="rand", mirror=False))
    assert [(cell.data.dataset, cell.data.augment, cell.data.mirror) for cell in one] == [("leaves", "rand", False)]
    assert "data.augment=rand-m7-n2, data.mirror=false" in grid.label(one[0])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["'own'", "s2a-bench data prepare NAME --from DIR --data-dir"]),
        (["--data-dir", "empty"], ["empty has none", "s2a-bench data prepare NAME --from DIR --data-dir"]),
        (["--data-dir", "data", "--datasets", "leafs"], ["'leafs'", "it has leaves", "s2a-bench data prepare leafs"]),
        (["--data-dir", "data", "--datasets", "cifar100"], ["--suite"]),
        (["--data-dir", "data", "--augment", "flips"], ["'flips'", "rand-m7-n2"]),
        (["--data-dir", "data", "--augment", "none", "--no-mirror"], ["--no-mirror has no effect", "--augment none"]),
        (["--data-dir", "data", "--limit-train", "999"], ["--limit-train 999 has no effect", "more than 18"]),
        (["--data-dir", "data", "--methods", "linear", "--no-feature-cache"], ["augmented anew"]),
    ],
)  # fmt: skip
def test_bad_requests_are_one_sentence_and_exit_2(capsys, arguments, parts):
    write_own(Path("data"))
    Path("empty").mkdir()
    said = refused(capsys, "sweep", "--suite", "own", *arguments)
    assert all(part in said for part in parts), said
    assert said.count("s2a-bench: ") == said.count("\n") == 1, said


def test_a_broken_manifest_among_others_is_named(capsys):
    write_own(Path("data"))
    (write_own(Path("data"), "bolts") / "manifest.json").write_text("{")
    said = refused(capsys, "sweep", *QUICK, "--methods", "linear")
    assert "bolts/manifest.json cannot be used" in said and said.count("s2a-bench: ") == 1, said


def test_no_mirror_says_nothing_where_nothing_is_drawn(capsys):
    assert "suite mini are not augmented" in refused(capsys, "sweep", "--no-mirror")


@pytest.mark.parametrize(
    ("part", "arguments", "words"),
    [
        ("test", [], ["has no test images", "--evaluate val"]),
        ("val", ["--evaluate", "val"], ["has no validation images", "--evaluate val"]),
        ("val", ["--evaluate", "select"], ["has no validation images", "--evaluate select"]),
        ("val", ["--search", "2"], ["has no validation images", "a search"]),
    ],
)
def test_an_empty_list_that_is_needed_is_refused(capsys, part, arguments, words):
    write_own(Path("data"), sizes={**SIZES, part: 0})
    said = refused(capsys, "sweep", *QUICK, "--methods", "linear", *arguments)
    assert all(word in said for word in words) and said.count("s2a-bench: ") == 1, said
    config = DataConfig("own", "leaves", "data", evaluate="val" if part == "val" else "test")
    with pytest.raises(InputError, match=words[0]):
        load_data(config, size=32, **HALF)


def test_an_empty_list_that_is_not_needed_is_no_matter():
    write_own(Path("data"), sizes={**SIZES, "test": 0})
    assert len(load_data(DataConfig("own", "leaves", "data", evaluate="val"), size=32, **HALF).scored) == SIZES["val"]
    write_own(Path("data"), "bolts", sizes={**SIZES, "val": 0})
    assert len(load_data(DataConfig("own", "bolts", "data"), size=32, **HALF).train) == SIZES["train"]


# From the images to the report


def test_a_sweep_over_two_own_datasets_is_reported_where_the_images_are_not(capsys, tmp_path):
    write_own(Path("data"), "leaves")
    write_own(Path("data"), "bolts", classes=("a", "b", "c"), sizes={"train": 12, "val": 6, "test": 9})
    assert main(["sweep", *QUICK, "--methods", "linear", "bias", "--tracking-uri", "sqlite:///store.db"]) == 0
    found = records_of()
    assert {(r.dataset, r.suite, r.group, r.classes) for r in found} == {
        ("leaves", "own", "own", 2),
        ("bolts", "own", "own", 3),
    }
    assert {r.split_id for r in found} == {"own-seed0-v1"} and len({r.data_id for r in found}) == 2
    assert {r.data_config["augment"] for r in found} == {"random crop and mirror"}
    assert not any(r.synthetic or r.lossy for r in found)

    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///store.db")
    experiment = client.get_experiment_by_name("own")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params.get("dataset") for run in runs} >= {"leaves", "bolts"}

    shutil.rmtree("data")
    assert main(["records", "--export", "mine.jsonl.gz"]) == 0
    assert main(["records", "--import", "mine.jsonl.gz", "--output", "copy"]) == 0
    assert main(["report", "--output", "copy"]) == 0
    text = Path("copy/report.md").read_text()
    assert "own" in text and "leaves" in text and "bolts" in text
    assert "paper" not in text.partition("leaves")[0]
    capsys.readouterr()
    # The same sweep without its images: refused, nothing lost.
    assert main(["sweep", *QUICK, "--methods", "linear"]) == 2
    assert len(records_of()) == len(found)


@pytest.mark.full
def test_a_search_over_own_images_and_an_audit_of_what_it_chose(capsys):
    write_own(Path("data"))
    run = ["sweep", *QUICK, "--methods", "bias", "--search", "2", "--augment", "rand", "--no-mirror"]
    assert main([*run, "--dry-run"]) == 0
    assert "after the search" in capsys.readouterr().out
    assert main(run) == 0
    final = [found for found in records_of() if not found.trial]
    assert [found.evaluated_on for found in final] == ["test"] and final[0].search is not None
    assert {found.data_config["augment"] for found in records_of()} == {"rand-m7-n2"}
    assert main(["audit", "--peek", "--data-dir", "data"]) == 0
    assert main(["sweep", *QUICK, "--methods", "bias"]) == 0  # another augmentation is another table
    assert Path("results/report.md").read_text().count("data.augment=rand-m7-n2, data.mirror=false") >= 1


def test_one_cell_in_a_file(tmp_path):
    write_own(Path("data"))
    cell = CellConfig(
        DataConfig("own", "leaves", str(tmp_path / "data"), augment="resized-crop"),
        BackboneConfig(random_weights=True),
        MethodConfig("linear"),
        TrainConfig(epochs=1, warmup_epochs=0),
    )
    Path("cell.json").write_text(json.dumps(dataclasses.asdict(cell)))
    assert run_one_cell(["cell.json", "out"]) == 0
    (found,) = records_of("out")
    assert (found.suite, found.dataset, found.classes) == ("own", "leaves", 2)
    assert found.data_config["augment"] == "resized-crop"


def test_the_record_of_a_cell_whose_images_are_gone_can_be_written():
    cell = CellConfig(DataConfig("own", "leaves", "nowhere"))
    found = failed_record(cell, "0" * 16, ("Died", "its worker died", "..."))
    assert (found.suite, found.group, found.classes) == ("own", "own", 0)
    record.write(found, Path("results"))
    assert main(["report"]) == 0
    with pytest.raises(InputError):
        failed_record(CellConfig(DataConfig("vtab", "leaves")), "0" * 16, ("Died", "...", "..."))


def test_the_recipe_is_shorter_than_the_papers_and_named_only_where_it_is_changed():
    usual = recipes.train_config("own", "bias", "mini_vit")
    vtab = recipes.train_config("vtab", "bias", "mini_vit")
    assert usual == dataclasses.replace(vtab, epochs=usual.epochs, warmup_epochs=usual.warmup_epochs)
    assert 0 < usual.warmup_epochs < usual.epochs < vtab.epochs
    assert recipes.changes("own", "bias", "mini_vit", dataclasses.asdict(usual)) == {}


# Images as people have them


def turned_picture(label: int, seed: int) -> Image.Image:
    """Red above, blue below, landscape."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :, 0], pixels[16:, :, 2] = 255, 255
    return Image.fromarray(pixels)


def rotation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_every_orientation_is_turned_upright(tmp_path, orientation, turn):
    """The eight values of EXIF, against numpy."""
    image = picture(0, 3)
    image.save(tmp_path / "x.png", exif=rotation(orientation))
    data = (tmp_path / "x.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(decode_rgb(data, "x", upright=True)), turn(np.asarray(image)))
    np.testing.assert_array_equal(np.asarray(decode_rgb(data, "x")), np.asarray(image))


def test_own_photos_are_scored_upright_and_verify_says_so(tmp_path):
    folder = write_own(tmp_path, make=turned_picture, exif=rotation(6))
    view = load_data(DataConfig("own", "leaves", str(tmp_path)), size=16, **HALF).scored.batch(torch.arange(1))[0]
    # Turned clockwise, what was below is left: blue left, red right.
    assert view[2, :, :4].mean() > 0.9 > -0.9 > view[0, :, :4].mean()
    assert view[0, :, -4:].mean() > 0.9 > -0.9 > view[2, :, -4:].mean()
    notes = [str(p.what) for p in verify_folder(lookup.get_dataset("own", "leaves", tmp_path), folder) if p.note]
    assert any("which is applied" in note for note in notes) and not any("not applied" in note for note in notes)


def test_grey_and_transparent_images_are_what_their_colours_say(tmp_path):
    def make(label: int, seed: int) -> Image.Image:
        image = picture(label, seed)
        if seed % 3 == 0:
            return image.convert("L")
        if seed % 3 == 1:
            image.putalpha(Image.new("L", image.size, 7))
        return image

    folder = write_own(tmp_path, make=make)
    found = load_data(DataConfig("own", "leaves", str(tmp_path), augment="none"), size=28, **HALF)
    views = found.train.batch(torch.arange(6))
    for i in range(6):
        path = (folder / "trainval.txt").read_text().splitlines()[i].split()[0]
        plain = picture(i % 2, int(Path(path).stem))
        image = plain.convert("L").convert("RGB") if i % 3 == 0 else plain
        width, height = image.size
        image = image.resize((int(32 * width / height), 32), Image.Resampling.BICUBIC)
        left = round((image.width - 28) / 2)
        want = np.asarray(image)[2:30, left : left + 28].transpose(2, 0, 1) / 255
        np.testing.assert_allclose(views[i].numpy() * 0.5 + 0.5, want, atol=1e-6)


def test_a_ribbon_of_an_image_is_refused_instead_of_blown_up(tmp_path):
    write_own(tmp_path, sizes={"train": 4, "val": 2, "test": 2}, make=lambda label, seed: Image.new("RGB", (1, 60_000)))
    task = load_data(DataConfig("own", "leaves", str(tmp_path)), size=224, **HALF)
    with pytest.raises(InputError, match="long and narrow"):
        task.scored.batch(torch.arange(1))
