"""Preparing own images: options, names, whole or not at all, again; and what the command line says."""

from __future__ import annotations

import json
import threading

import pytest
from bench.own_sources import lists_of, png, prepare, refusal, write_images, write_table
from s2a_bench.cli.main import main
from s2a_bench.data import prepare as shared
from s2a_bench.data.own import prepare as door
from s2a_bench.data.own.prepare import OwnOptions, prepare_own
from s2a_bench.errors import InputError, sentences
from s2a_bench.files import reserved

COUNTS = {"cat": 8, "dog": 12}


@pytest.fixture
def source(tmp_path):
    write_images(tmp_path / "src", COUNTS)
    return tmp_path / "src"


def only(sentences: list[str]) -> str:
    assert len(sentences) == 1, sentences
    return sentences[0]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "ümlaut", "x" * 65, "two words", "-x", "..", "a\n"])
def test_bad_names(source, tmp_path, name):
    assert "letter or digit" in only(refusal(source, tmp_path / "root", name))


@pytest.mark.parametrize("name", ["pets", "cifar10", "vtab", "own", "CUB", "mini"])
def test_names_of_the_table(source, tmp_path, name):
    assert "the table" in only(refusal(source, tmp_path / "root", name))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val": 0.9, "test": 0.5}, "nothing to train on"),
        ({"val": 1.0}, "--val 1 is no fraction"),
        ({"test": -0.1}, "--test -0.1"),
        ({"val": float("nan")}, "--val nan"),
        ({"seed": -1}, "--seed -1"),
        ({"val": 0, "test": 0}, "no image to score"),
    ],
)
def test_bad_options(source, tmp_path, options, words):
    assert words in only(refusal(source, tmp_path / "root", **options))


def test_all_mistakes_at_once(tmp_path):
    told = refusal(tmp_path / "gone", tmp_path / "root", "a b", val=3, seed=-4)
    assert len(told) == 4


def test_data_folder_inside_the_source(source):
    with pytest.raises(InputError, match="lies in"):
        prepare_own("mine", source, source / "data")
    with pytest.raises(InputError, match="lies in"):
        prepare_own("cat", source, source)
    assert not (source / "data").exists()


def test_again(source, tmp_path):
    said: list[str] = []
    folder = prepare_own("mine", source, tmp_path / "root")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    prepare_own("mine", source, tmp_path / "root", progress=lambda what, done, total: said.append(what))
    assert "already prepared and intact; nothing to do" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for options, words in ((OwnOptions(seed=1), "seed 0 and not 1"), (OwnOptions(val=0.2), "val 0.1 and not 0.2")):
        with pytest.raises(InputError, match=words):
            prepare_own("mine", source, tmp_path / "root", options)
    (source / "cat/new.png").write_bytes(png(500))
    with pytest.raises(InputError, match="other images"):
        prepare_own("mine", source, tmp_path / "root")
    (source / "cat/new.png").unlink()
    (source / "cat").rename(source / "cats")
    with pytest.raises(InputError, match="other images"):
        prepare_own("mine", source, tmp_path / "root")
    (source / "cats").rename(source / "cat")
    (source / "cat/000.png").write_bytes(png(501))
    with pytest.raises(InputError, match="other images"):
        prepare_own("mine", source, tmp_path / "root")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_damaged_since(source, tmp_path):
    folder = prepare_own("mine", source, tmp_path / "root")
    next(folder.glob("images/test/*")).write_bytes(png(900))
    with pytest.raises(InputError, match="damaged"):
        prepare_own("mine", source, tmp_path / "root")


def test_place_that_is_taken(source, tmp_path):
    (tmp_path / "root/mine").mkdir(parents=True)
    prepare(source, tmp_path / "root")  # an empty folder is no obstacle
    (tmp_path / "root/other").mkdir()
    (tmp_path / "root/other/x").touch()
    with pytest.raises(InputError, match="not made by this command"):
        prepare_own("other", source, tmp_path / "root")
    with reserved(tmp_path / "root/third"):
        found: list[Exception] = []

        def work() -> None:
            try:
                prepare_own("third", source, tmp_path / "root")
            except InputError as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert "Another process" in str(found[0])


@pytest.mark.parametrize("stage", ["_write_images", "_make_manifest", "verify_folder", "sync_folder"])
def test_killed_anywhere(source, tmp_path, monkeypatch, stage):
    """What is there afterwards is nothing, or whole; the next run cleans up."""

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared, stage, die)
        with pytest.raises(KeyboardInterrupt):
            prepare_own("mine", source, tmp_path / "root")
    left = {path.name for path in (tmp_path / "root").iterdir()}
    assert left <= {"mine"} and (stage == "sync_folder") == ("mine" in left)
    (tmp_path / "root/.mine.abc.partial").mkdir()
    prepare(source, tmp_path / "root" if stage != "sync_folder" else tmp_path / "other")
    if stage != "sync_folder":
        assert {path.name for path in (tmp_path / "root").iterdir()} == {"mine"}


def test_seed_decides(source, tmp_path):
    lists = [prepare(source, tmp_path / f"{i}", seed=i, val=0.3)[0] for i in range(2)]
    assert lists[0] != lists[1]
    assert prepare(source, tmp_path / "again", val=0.3)[0] == lists[0]
    manifest = json.loads((tmp_path / "1/mine/manifest.json").read_text())
    assert manifest["split_id"] == "own-seed1-v1" and manifest["seed"] == 1


def test_no_image_is_read_of_a_listing_that_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "look_at_images", lambda *_: pytest.fail("images were read"))
    write_images(source, {"fox": 2}, start=300)
    assert "fewer than" in only(refusal(source, tmp_path / "root"))


# --- The command line ------------------------------------------------------------------------------------------------


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = main([str(each) for each in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_command_line(source, tmp_path, capsys):
    root = tmp_path / "root"
    code, out, err = run(
        capsys, "data", "prepare", "mine", "--from", source, "--data-dir", root, "--val", "0.25", "--seed", "3"
    )
    assert (code, err) == (0, "") and "mine is ready" in out and "--suite own --datasets mine" in out
    lists = lists_of(root / "mine")
    assert len(lists["val"]) == 5 and len(lists["test"]) == 2
    assert json.loads((root / "mine/manifest.json").read_text())["own"]["options"]["seed"] == 3
    code, out, _ = run(capsys, "data", "list", "--data-dir", root)
    line = next(line for line in out.splitlines() if line.split()[:1] == ["mine"])
    assert code == 0 and line.split()[1] == "own" and "13/5/2" in line and "here" in line
    for names in (["mine"], ["own"], ["own/mine"]):
        code, out, _ = run(capsys, "data", "list", *names, "--data-dir", root)
        assert code == 0 and "cat, dog" in out and "class folders src" in out
        code, out, _ = run(capsys, "data", "verify", *names, "--data-dir", root)
        assert code == 0 and "mine: no problems" in out
    next((root / "mine/images/train").iterdir()).unlink()
    code, out, _ = run(capsys, "data", "verify", "mine", "--data-dir", root)
    assert code == 1 and "cannot be read" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["mine", "other"], "Unknown dataset"),
        (["cifar10", "--group-column", "x", "--in-place"], "--group-column, --in-place go with"),
        (["mine", "--full"], "--full goes with --synthetic"),
        (["mine", "--split", "."], "--split goes with datasets of the table"),
        (["cifar100x"], "cifar100"),
        (["mine", "--group-column", "patient"], "--group-column 'patient' goes with a table"),
    ],
)
def test_command_line_refuses(source, tmp_path, capsys, argv, words):
    if argv == ["cifar100x"]:
        (source / "cat").rename(source.parent / "cat")
        (source / "fox").mkdir()
    code, _, err = run(capsys, "data", "prepare", *argv, "--from", source, "--data-dir", tmp_path / "root")
    assert code == 2 and words in err and all(line.startswith("s2a-bench: ") for line in err.splitlines())
    assert not (tmp_path / "root").exists()


def test_unreadable_manifest_is_listed(source, tmp_path, capsys):
    prepare(source, tmp_path / "root")
    (tmp_path / "root/mine/manifest.json").write_text("{")
    code, out, _ = run(capsys, "data", "list", "--data-dir", tmp_path / "root")
    assert code == 0 and any(line.split()[:1] == ["mine"] and "missing" in line for line in out.splitlines())
    code, _, err = run(capsys, "data", "list", "mine", "--data-dir", tmp_path / "root")
    assert code == 2 and "manifest" in err.lower()


def test_a_table_with_groups_on_the_command_line(source, tmp_path, capsys):
    rows = [f"cat/{i:03d}.png,cat,{i // 2}" for i in range(8)] + [f"dog/{i:03d}.png,dog,{9 + i}" for i in range(12)]
    table = write_table(source / "pets.csv", "path,label,owner", rows)
    code, out, err = run(
        capsys,
        "data",
        "prepare",
        "mine",
        "--from",
        table,
        "--data-dir",
        tmp_path / "root",
        "--group-column",
        "owner",
        "--no-near-duplicates",
        "--in-place",
    )
    assert (code, err) == (0, "") and "owner" in out
    own = json.loads((tmp_path / "root/mine/manifest.json").read_text())["own"]
    assert own["grouped_by"] == "owner" and own["near_duplicates"] is None


def test_sentences_are_single_lines(tmp_path):
    with pytest.raises(InputError) as caught:
        prepare_own("a b", tmp_path / "x", tmp_path / "root", OwnOptions(val=2))
    assert all("\n" not in each and each.endswith(".") for each in sentences(caught.value))
