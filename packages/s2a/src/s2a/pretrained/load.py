"""Makes an adapted model of an adapter folder, on disk or on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from s2a import saved_file
from s2a.adapted import Adapted, cast_frozen
from s2a.errors import S2AError, StateMismatch
from s2a.identity import identify
from s2a.image_transform import make_transform
from s2a.pretrained.backbone import check_image_size, check_name, create, create_empty, registered, sentence
from s2a.pretrained.config import CONFIG_FILE, STATE_FILE, read_config
from s2a.pretrained.fetch import fetch_folder, fetch_weights_beside, find_weights, wanted
from s2a.registry import list_methods
from s2a.saved_file import SavedFile
from s2a.state import belongs_to
from s2a.state import load_file as load_state
from s2a.weights import create_with_weights, load_file, weight_files

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def from_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Adapted:
    """The adapted model that ``s2a.save_pretrained`` wrote, with its backbone, ready to predict.

    The backbone's weights come from ``weights``; else from a ``.safetensors`` file that the config names and that lies
    in the folder; else, for a name of the entry-point group ``s2a.backbones``, from the installed package; else from
    the hub. Whatever they come from, they are compared with the ones that the adapter was trained on. Nothing in the
    folder is unpickled or run.

    Args:
        folder_or_hub_id: A folder, or ``owner/name`` (also ``owner/name@revision``) on the hub.
        weights: The backbone's weights: a file, or a folder with one, as ``s2a.weights`` reads them.
        device: Where the model goes; ``None``: the CPU.
        revision: Branch, tag or commit on the hub.
        token: Of the hub; ``None``: the one that is logged in.

    Returns:
        The model in evaluation mode, with ``.labels`` (class names or ``None``), ``.transform()`` (PIL image -> its
        input ``(3, H, W)``) and ``.card`` (the config). A memory budget stays in ``.config``; call ``s2a.plan_memory``
        before training on.

    Raises:
        S2AError: No such folder, one that is damaged, of a newer version or not an adapter's; a backbone that cannot be
            made or whose weights cannot be had; a device that is not there.
        StateMismatch: The weights are not those that the adapter belongs to.
    """
    place = _check_device(device)
    folder, config, state, given = _read(folder_or_hub_id, weights, revision, token)
    with sentence(str(folder_or_hub_id)):
        check_method(config)
        check_name(config["backbone"]["name"])
        model = _make_backbone(config, state, folder, given)
    adapted = _put_on(model, state, config)
    adapted.labels, adapted.card = config["labels"], config
    if config["image"] is not None:
        transform = make_transform(config["image"])
        with sentence(f"{folder / CONFIG_FILE} is damaged"):
            check_image_size(adapted, transform)
        adapted._transform = transform
    return (adapted if place is None else adapted.to(place)).eval()


def backbone_of(
    folder_or_hub_id: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """The frozen backbone that an adapter belongs to, without the adapter: what ``s2a.MultiTask`` takes.

    Args:
        folder_or_hub_id: The adapter, as of ``from_pretrained``.
        weights: The backbone's weights; from where the adapter says if left out.
        device: Where it goes; ``None``: the CPU.
        revision: Branch, tag or commit on the hub.
        token: Of the hub.

    Returns:
        A timm model in evaluation mode, whose weights are the adapter's, but for a ``full`` one's.

    Raises:
        S2AError: As ``from_pretrained``.
        StateMismatch: The weights are not those that the adapter belongs to.
    """
    place = _check_device(device)
    folder, config, state, given = _read(folder_or_hub_id, weights, revision, token)
    with sentence(str(folder_or_hub_id)):
        check_name(config["backbone"]["name"])
        model = _in_format(_make_backbone(config, state, folder, given), config)
    if not belongs_to(state, model):
        raise StateMismatch(
            f"these are other weights than those that {folder_or_hub_id} was trained on: {wanted(config)}; pass "
            "weights=FILE."
        )
    return (model if place is None else model.to(place)).eval()


def _read(
    folder_or_hub_id: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    revision: str | None,
    token: str | None,
) -> tuple[Path, dict[str, Any], SavedFile, Path | None]:
    """An adapter's folder, its config, the header of its state, and the weights' file where one is given."""
    given = None if weights is None else _check_file(weights)
    folder, repository = folder_of(folder_or_hub_id, revision, token)
    config = read_config(folder / CONFIG_FILE)
    if repository is not None and given is None:
        fetch_weights_beside(config, *repository, token)
    return folder, config, read_state(folder, config), given


def _check_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()  # "meta" has no values to give back
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise S2AError(f"device {str(device)!r} cannot be used here ({reason}); take another one, 'cpu'.") from error
    return found


def _check_file(weights: str | os.PathLike[str]) -> Path:
    try:
        path = Path(weights)
    except TypeError:
        raise S2AError(f"weights takes the path of a file, not {type(weights).__name__}.") from None
    if not os.path.exists(path):  # noqa: PTH110 - False for names that no file can have
        raise S2AError(f"there is no weights file at {path}.")
    weight_files(path)  # of a folder or an index: whether its files are there
    return path


def folder_of(
    given: str | os.PathLike[str], revision: str | None, token: str | None
) -> tuple[Path, tuple[str, str | None] | None]:
    """The folder on disk; of one from the hub also its repository and revision.

    Raises:
        S2AError: Neither a folder of an adapter nor a hub id that can be had.
    """
    try:
        path = Path(given)
    except TypeError:
        raise S2AError(f"from_pretrained takes a folder or a hub id, not {type(given).__name__}.") from None
    if os.path.isdir(path):  # noqa: PTH112 - False for names that no folder can have
        if revision is not None:
            raise S2AError(f"revision={revision!r} is for the hub; {path} is a folder.")
        if not (path / CONFIG_FILE).is_file():
            raise S2AError(f"{path} has no {CONFIG_FILE}: it is no folder that s2a.save_pretrained wrote.")
        return path, None
    if os.path.exists(path):  # noqa: PTH110
        raise S2AError(
            f"{path} is a file; from_pretrained takes the folder that s2a.save_pretrained wrote. A file of s2a.save is "
            "loaded on its backbone by s2a.load(model, path)."
        )
    match = _HUB_ID.fullmatch(str(given))
    if match is None:
        raise S2AError(f"there is no folder {given!s:.200}, and it is no hub id owner/name either.")
    at = match["revision"]
    if at and revision and at != revision:
        raise S2AError(f"{given} names the revision {at}, revision= says {revision!r}; give one.")
    return fetch_folder(match["id"], revision or at, token), (match["id"], revision or at)


def read_state(folder: Path, config: dict[str, Any]) -> SavedFile:
    """The header of the trained state, which belongs to the config."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise S2AError(f"{folder} has no {STATE_FILE}: the adapter's weights are missing; take another copy.")
    state = saved_file.read(path)
    same = (state.method, state.num_classes, state.header.get("checksum"), state.header["backbone_id"])
    if same != (config["method"], config["num_classes"], config["checksum"], config["backbone"].get("id")):
        raise S2AError(f"{folder}: {CONFIG_FILE} and {STATE_FILE} are not of one save; take both from the same copy.")
    if state.head["kind"] == "own":
        raise S2AError(f"{path} has a head of its own; load it by s2a.load(model, path, head=...).")
    return state


def check_method(config: dict[str, Any]) -> None:
    """Checks that an adapter's method is installed.

    Raises:
        S2AError: It is not.
    """
    if config["method"] not in list_methods():
        package = f" of the package {config['package']}" if config["package"] else ""
        raise S2AError(
            f"the method {config['method']!r}{package} is not installed here; install it. There are: "
            f"{', '.join(list_methods())}."
        )


def _make_backbone(config: dict[str, Any], state: SavedFile, folder: Path, given: Path | None) -> nn.Module:
    backbone = config["backbone"]
    name, args = backbone["name"], backbone["args"]
    ours = not timm.is_model(name) and registered(name) is not None
    if not ours:
        # Before anything large is fetched: is it the model at all?
        layout = identify(create_empty(name, args)).layout
        if state.backbone is not None and layout != state.backbone.get("layout"):
            raise S2AError(
                f"the backbone {name} with the arguments {args} has other tensors than the one that was adapted; "
                "the config is damaged, or this version of timm makes another model of that name."
            )
    path = given or find_weights(config, folder, needed=not ours)
    if not ours:
        assert path is not None
        return _timm_model(config, path, state)
    model = create(name, args)
    if path is not None:
        load_file(model, path, name)
    return model


def _timm_model(config: dict[str, Any], path: Path, state: SavedFile) -> nn.Module:
    name, args = config["backbone"]["name"], config["backbone"]["args"]
    try:
        return create_with_weights(name, path, **args)
    except S2AError as error:
        # Perhaps only the classifier has another size, which the adapter does not use: timm then leaves it out.
        with contextlib.suppress(S2AError):
            model = create_with_weights(name, path, **{**args, "num_classes": 1})
            if belongs_to(state, model):
                return model
        raise S2AError(f"{str(error).rstrip('.')}; the adapter belongs to {wanted(config)}.") from error


def _in_format(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The model in the number format that it had when the method was attached."""
    dtype = config["backbone"].get("dtype")
    return model.to(getattr(torch, dtype)) if dtype in ("bfloat16", "float16", "float64") else model


def _put_on(model: nn.Module, state: SavedFile, config: dict[str, Any]) -> Adapted:
    backbone = config["backbone"]
    try:
        adapted = load_state(_in_format(model, config).eval(), state, plan=False)
    except StateMismatch as error:
        raise StateMismatch(f"{error} The adapter belongs to {wanted(config)}; pass weights=FILE.") from error
    if backbone.get("frozen_dtype"):
        cast_frozen(adapted, getattr(torch, backbone["frozen_dtype"]))
    return adapted
