"""Sharing and fetching adapters, against a stand-in of the hub's API on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import s2a
import timm
import torch
from hub_server import TOKEN, Hub, running_hub, use_hub
from s2a.pretrained import fetch
from safetensors.torch import save_file

# Of huggingface_hub's upload, with some versions of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

MODEL = "test_vit"
LABELS = ["cat", "dog", "☃ / snow"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as running:
        use_hub(running, monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, torch.Tensor]:
    """An adapted model in evaluation mode, the file of its backbone's weights, images."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL)
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    adapted = s2a.attach(model, s2a.method_config("bias"), 3).train()
    images = torch.randn(2, 3, 160, 160)
    adapted(images).square().mean().backward()
    torch.optim.SGD(s2a.trainable_parameters(adapted).values(), lr=0.1).step()
    return adapted.eval(), file, images


def put_weights(hub: Hub, adapted: Any, file: Path) -> str:
    """The backbone's weights, at the place where timm says that they are."""
    repository = adapted.backbone.pretrained_cfg["hf_hub_id"]
    hub.repositories[repository] = {"main": {"model.safetensors": file.read_bytes()}}
    return str(repository)


def test_upload_and_download_give_the_same_model(trained: Any, hub: Hub, tmp_path: Path) -> None:
    adapted, file, images = trained
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=LABELS, metrics={"accuracy": 90.0})
    address = s2a.push_to_hub(folder, "me/pets", token=TOKEN, private=True)
    assert address.startswith(f"{hub.url}/me/pets/commit/")
    files = hub.repositories["me/pets"]["main"]
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert hub.private["me/pets"] in (True, "private")
    assert any(request.endswith("/info/lfs/objects/batch") for request in hub.requests)

    source = put_weights(hub, adapted, file)
    loaded = s2a.from_pretrained("me/pets")
    assert loaded.labels == LABELS
    assert torch.equal(loaded(images), adapted(images))
    # A second time nothing large is fetched again; of the backbone's weights not even the etag is asked for.
    hub.requests.clear()
    s2a.from_pretrained("me/pets")
    assert not [r for r in hub.requests if r.startswith("GET /me") or source in r]


def test_a_revision_is_its_own_branch(trained: Any, hub: Hub, tmp_path: Path) -> None:
    adapted, file, _ = trained
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=LABELS)
    s2a.push_to_hub(folder, "me/pets", token=TOKEN)
    other = s2a.save_pretrained(adapted, tmp_path / "other", labels=["a", "b", "c"])
    s2a.push_to_hub(other, "me/pets", token=TOKEN, revision="v2")
    put_weights(hub, adapted, file)
    assert s2a.from_pretrained("me/pets").labels == LABELS
    assert s2a.from_pretrained("me/pets@v2").labels == ["a", "b", "c"]
    assert s2a.from_pretrained("me/pets", revision="v2").labels == ["a", "b", "c"]
    with pytest.raises(s2a.S2AError, match="give one"):
        s2a.from_pretrained("me/pets@v2", revision="main")
    with pytest.raises(s2a.S2AError, match="me/pets at v3"):
        s2a.from_pretrained("me/pets@v3")


def test_an_adapted_model_is_pushed_with_its_labels(trained: Any, hub: Hub, tmp_path: Path) -> None:
    adapted, file, images = trained
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=LABELS)
    s2a.push_to_hub(s2a.from_pretrained(folder, weights=file), "me/pets", token=TOKEN)
    put_weights(hub, adapted, file)
    loaded = s2a.from_pretrained("me/pets")
    assert loaded.labels == LABELS
    assert torch.equal(loaded(images), adapted(images))


def test_weights_that_lie_beside_the_adapter_travel_with_it(trained: Any, hub: Hub, tmp_path: Path) -> None:
    adapted, file, images = trained
    given = {"name": MODEL, "weights": {"file": "mine.safetensors"}}
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", backbone=given)
    (folder / "mine.safetensors").write_bytes(file.read_bytes())
    (folder / "notes.txt").write_text("private")
    s2a.push_to_hub(folder, "me/pets", token=TOKEN)
    assert "notes.txt" not in hub.repositories["me/pets"]["main"]
    assert torch.equal(s2a.from_pretrained("me/pets")(images), adapted(images))


def test_wrong_weights_on_the_hub_are_found(trained: Any, hub: Hub, tmp_path: Path) -> None:
    adapted, file, _ = trained
    source = put_weights(hub, adapted, file)
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter")
    hub.repositories[source]["main"]["model.safetensors"] = b"\x80\x04 a pickle"
    with pytest.raises(s2a.S2AError, match="no safetensors file"):
        s2a.from_pretrained(folder)
    other = tmp_path / "other.safetensors"
    save_file({name: t + 1 for name, t in timm.create_model(MODEL).state_dict().items()}, other)
    given = {"name": MODEL, "weights": {"hub": "me/other", "file": "model.safetensors"}}
    hub.repositories["me/other"] = {"main": {"model.safetensors": other.read_bytes()}}
    folder = s2a.save_pretrained(adapted, tmp_path / "second", backbone=given)
    with pytest.raises(s2a.StateMismatch, match=r"tensors differ.*belongs to test_vit \(hub me/other.*weights=FILE"):
        s2a.from_pretrained(folder)
    given["weights"] = {"hub": "me/other", "file": "model.safetensors", "sha256": "0" * 64}
    folder = s2a.save_pretrained(adapted, tmp_path / "third", backbone=given)
    with pytest.raises(s2a.S2AError, match=r"has sha256 .*weights=FILE"):
        s2a.from_pretrained(folder)


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def question(url: str, **options: Any) -> None:
        asked.append(url)
        raise ConnectionError("no route to host, " + "a long explanation " * 20)

    def download(*names: str, local_files_only: bool = False, **options: Any) -> None:
        assert local_files_only  # a download tries again and again
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", question)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(fetch.Unreachable, match=r"^ConnectionError: no route to host.* a \.\.\.$"):
        fetch.download("me/pets", "model.safetensors")
    assert len(asked) == 1
    assert asked[0].endswith("/me/pets/resolve/main/model.safetensors")


def test_what_the_hub_refuses_is_said_in_a_sentence(trained: Any, hub: Hub, tmp_path: Path) -> None:
    adapted, _, _ = trained
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter")
    with pytest.raises(s2a.S2AError, match=r"not uploaded to me/pets .*401.*hf auth login"):
        s2a.push_to_hub(folder, "me/pets", token="hf_wrong")
    with pytest.raises(s2a.S2AError, match=r"not uploaded to somebody-else/pets"):
        s2a.push_to_hub(folder, "somebody-else/pets", token=TOKEN)
    for wrong in ("pets", "a/b/c", "", "../x"):
        with pytest.raises(s2a.S2AError, match=r"owner/name|not uploaded"):
            s2a.push_to_hub(folder, wrong, token=TOKEN)
    with pytest.raises(s2a.S2AError, match=r"cannot be read"):
        s2a.push_to_hub(tmp_path, "me/pets", token=TOKEN)
    damaged = bytearray((folder / "adapter_model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(damaged)
    with pytest.raises(s2a.S2AError, match="damaged"):
        s2a.push_to_hub(folder, "me/pets", token=TOKEN)
    assert "me/pets" not in hub.repositories
    with pytest.raises(s2a.S2AError, match=r"no folder me/nothing, and the adapter me/nothing cannot be had"):
        s2a.from_pretrained("me/nothing")
    hub.repositories["me/empty"] = {"main": {"README.md": b"hello"}}
    with pytest.raises(s2a.S2AError, match=r"me/empty on the hub has no adapter_config.json"):
        s2a.from_pretrained("me/empty")


@pytest.mark.full
def test_another_process_finds_the_hub_by_its_environment(trained: Any, tmp_path: Path) -> None:
    adapted, file, images = trained
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=LABELS)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, json, s2a, torch\n"
        f"s2a.push_to_hub({str(folder)!r}, 'me/pets', token={TOKEN!r})\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r})\n"
        "model = s2a.from_pretrained('me/pets')\n"
        "print(json.dumps([model.labels, model(images).tolist()]))\n"
    )
    with running_hub() as hub:
        put_weights(hub, adapted, file)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    labels, logits = json.loads(done.stdout.splitlines()[-1])
    assert labels == LABELS
    assert torch.allclose(torch.tensor(logits), adapted(images), atol=1e-5)
