"""Which tasks a service has: those that were named and those of a folder, which changes meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import string
from pathlib import Path

import pytest
from bench.fake_adapters import fake_adapter, raw_adapter
from hypothesis import example, given
from hypothesis import strategies as st
from s2a_bench.errors import InputError
from s2a_bench.serving.catalogue import Catalogue, Place, is_name, name_adapter, read_facts, stamp_of

INNER = set(string.ascii_letters + string.digits + "_.-")
OUTSIDE = ["", ".", "..", "../out", "a/b", "a/", "/out", "a\n", "\na", "a\0b", "-a", ".a", "_a", "ä", "a b", "a" * 101]
NO_CONFIGS = [b"", b"{", b"[]", b"null", b"7", b"{}", b'{"backbone": null}', b'{"backbone": "vit"}', b"\xff", b"\0" * 9]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks, and much that is none."""
    folder = tmp_path / "tasks"
    fake_adapter(folder / "ants")
    fake_adapter(folder / "bees" / "adapter")
    fake_adapter(folder / "deep" / "down" / "adapter")
    for name in (".hidden", "_mark", "größe"):
        fake_adapter(folder / name)
    (folder / "empty").mkdir()
    (folder / "file").write_bytes(b"")
    fake_adapter(tmp_path / "out")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder for tests of many examples."""
    return tmp_path_factory.mktemp("place")


def test_a_folders_tasks_are_adapters_and_outputs_of_finetune(folder):
    catalogue = Catalogue([], folder)
    assert catalogue.names() == ["ants", "bees"]
    for name, adapter in {"ants": folder / "ants", "bees": folder / "bees" / "adapter"}.items():
        assert catalogue.find(name) == Place(name, str(adapter), stamp_of(str(adapter)))


def test_a_link_to_an_adapter_is_a_task_and_one_to_nothing_is_none(folder):
    (folder / "link").symlink_to(folder.parent / "out")
    (folder / "lost").symlink_to(folder / "nothing")
    (folder / "round").symlink_to("round")
    catalogue = Catalogue([], folder)
    assert catalogue.names() == ["ants", "bees", "link"]
    assert catalogue.find("lost") is None is catalogue.find("round")


@pytest.mark.parametrize("name", ["empty", "file", "deep", "nothing", "Ants/", ".hidden", "_mark", "größe", *OUTSIDE])
def test_what_is_no_task_is_not_found(folder, name):
    assert Catalogue([], folder).find(name) is None is Catalogue([], None).find(name)


@given(st.text() | st.text(alphabet=["/", ".", "a", "\0", "\\", "~"]))
@example("../out")
def test_no_name_leads_out_of_the_folder(place, name):
    fake_adapter(place / "out")
    fake_adapter(place / "tasks" / "a")
    found = Catalogue([], place / "tasks").find(name)
    assert (found is not None) == (name == "a")


def test_a_named_task_goes_before_the_folders(folder):
    other = str(folder.parent / "out")
    catalogue = Catalogue([("ants", other), ("hub", "owner/name@v1")], folder)
    assert catalogue.names() == ["ants", "bees", "hub"]
    assert catalogue.find("ants") == Place("ants", other, stamp_of(other))
    assert catalogue.find("hub") == Place("hub", "owner/name@v1", None)
    assert Catalogue([("ants", other)], None).names() == ["ants"]


def test_tasks_come_and_go(folder):
    catalogue = Catalogue([("out", str(folder.parent / "out"))], folder)
    assert catalogue.find("new") is None
    fake_adapter(folder / "new")
    assert catalogue.find("new") is not None and "new" in catalogue.names()
    shutil.rmtree(folder / "new")
    assert catalogue.find("new") is None and "new" not in catalogue.names()
    shutil.rmtree(folder)
    assert catalogue.names() == ["out"]
    assert catalogue.find("ants") is None
    folder.write_bytes(b"")
    assert catalogue.names() == ["out"]
    assert catalogue.find("ants") is None


def test_a_named_task_is_there_no_more_when_its_files_are_gone(folder):
    adapter = str(folder / "ants")
    catalogue = Catalogue([("ants", adapter)], None)
    shutil.rmtree(adapter)
    assert catalogue.names() == []
    assert catalogue.find("ants") is None


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_another_file_is_another_stamp(folder, name):
    file, adapter = folder / "ants" / name, str(folder / "ants")
    stamps = [stamp_of(adapter)]
    old = file.stat()
    (folder / "other").write_bytes(file.read_bytes())
    os.utime(folder / "other", ns=(old.st_atime_ns, old.st_mtime_ns))
    (folder / "other").replace(file)
    stamps.append(stamp_of(adapter))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns + 1_000_000_000))
    stamps.append(stamp_of(adapter))
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns + 1_000_000_000))
    stamps.append(stamp_of(adapter))
    assert len({*stamps}) == 4
    (folder / "ants" / "README.md").write_text("new")
    assert stamp_of(adapter) == stamps[-1]
    file.unlink()
    with pytest.raises(OSError):
        stamp_of(adapter)


@given(st.text() | st.text(alphabet=sorted(INNER), max_size=102))
@example("a" * 100)
@example("a" * 101)
@example("a\n")
def test_a_name_is_what_can_stand_in_an_address(text):
    assert is_name(text) == (0 < len(text) <= 100 and {*text} <= INNER and text[0] not in "_.-")


def test_a_task_is_called_like_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    fake_adapter(folder / "adapter")
    for argument, found in {
        "ants": ("ants", "ants"),
        "./ants/": ("ants", "ants"),
        str(folder / "ants"): ("ants", str(folder / "ants")),
        "bees": ("bees", "bees/adapter"),
        "bees/adapter": ("bees", "bees/adapter"),
        "adapter": ("tasks", "adapter"),
        "wasps=ants": ("wasps", "ants"),
        "wasps=bees": ("wasps", "bees/adapter"),
    }.items():
        assert name_adapter(argument) == found
    monkeypatch.chdir(folder / "bees")
    assert name_adapter(".") == ("bees", "adapter")
    monkeypatch.chdir(folder / "bees" / "adapter")
    assert name_adapter(".") == ("bees", ".")


def test_a_folder_may_have_an_equals_sign(folder, monkeypatch):
    monkeypatch.chdir(folder)
    fake_adapter(folder / "lr=1" / "birds")
    fake_adapter(folder / "a=ants")
    assert name_adapter("lr=1/birds") == ("birds", "lr=1/birds")
    assert name_adapter("x=lr=1/birds") == ("x", "lr=1/birds")
    with pytest.raises(InputError, match=r"'a=ants' cannot name a task .* give NAME=a=ants"):
        name_adapter("a=ants")
    assert name_adapter("a=a=ants") == ("a", "a=ants")


def test_a_hub_id_is_called_like_its_last_part(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert name_adapter("owner/birds") == ("birds", "owner/birds")
    assert name_adapter("owner/birds@v1.0") == ("birds", "owner/birds@v1.0")
    assert name_adapter("b=owner/birds@v1.0") == ("b", "owner/birds@v1.0")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("", "is empty"),
        ("=", "is empty"),
        ("a=", "is empty"),
        ("=ants", "'' cannot name a task"),
        ("a b=ants", "'a b' cannot name a task"),
        ("ä=owner/name", "'ä' cannot name a task .* give NAME=owner/name"),
        ("größe", "'größe' cannot name a task .* give NAME=größe"),
        ("owner/_x", "'_x' cannot name a task"),
        (f"{'a' * 101}=ants", "at most 100"),
        ("nothing", "There is no folder nothing"),
        ("a=nothing", "There is no folder nothing"),
        ("a=b=ants", "There is no folder b=ants"),
        ("empty", "empty is a folder without"),
        ("file", "file is a file"),
        ("a\0b", "There is no folder"),
        ("a" * 5000, "There is no folder"),
    ],
)
def test_what_names_no_adapter_is_a_sentence(folder, monkeypatch, argument, words):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=words):
        name_adapter(argument)


def test_facts_are_what_the_config_says(folder):
    place = Catalogue([("hub", "owner/name")], folder).find
    ants, hub = place("ants"), place("hub")
    assert ants and hub
    assert read_facts(ants) == json.loads((folder / "ants" / "adapter_config.json").read_bytes())
    assert read_facts(hub) == {}


@pytest.mark.parametrize("config", NO_CONFIGS)
def test_a_broken_config_is_a_sentence_with_its_path(tmp_path, config):
    adapter = raw_adapter(tmp_path / "a", config)
    with pytest.raises(InputError, match=r"/a/adapter_config\.json .*; take another copy"):
        read_facts(Place("a", adapter, stamp_of(adapter)))


def test_a_config_that_is_gone_or_a_folder_is_a_sentence(folder):
    found = Catalogue([], folder).find("ants")
    assert found
    (folder / "ants" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="No such file"):
        read_facts(found)
    (folder / "ants" / "adapter_config.json").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        read_facts(found)


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(st.text(), inner)).map(
        lambda value: json.dumps({"backbone": value}).encode()
    )
)
def test_any_bytes_are_facts_or_a_sentence(place, config):
    adapter = raw_adapter(place / "any", config)
    try:
        facts = read_facts(Place("any", adapter, stamp_of(adapter)))
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert facts == json.loads(config) and isinstance(facts["backbone"], dict)


def test_a_config_of_many_brackets_is_a_sentence(tmp_path):
    adapter = raw_adapter(tmp_path / "a", b"[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        read_facts(Place("a", adapter, stamp_of(adapter)))


def test_a_revision_with_a_slash_does_not_name_the_task(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert name_adapter("owner/birds@refs/pr/1") == ("birds", "owner/birds@refs/pr/1")


@pytest.mark.parametrize("lost", ["adapter_config.json", "adapter_model.safetensors"])
def test_every_task_that_is_listed_is_found(folder, lost):
    (folder / "ants" / lost).unlink()
    (folder / "bees" / "adapter" / lost).unlink()
    catalogue = Catalogue([], folder)
    assert [name for name in catalogue.names() if catalogue.find(name) is None] == []


def test_a_folder_that_no_path_can_have_holds_nothing():
    assert Catalogue([], Path("a\0b")).names() == []
