"""Finds files that an adapter needs: in its folder, in the hub's cache, on the hub."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path
from typing import Any

import safetensors
import timm

from s2a.errors import S2AError
from s2a.pretrained.backbone import HUB_FILE, sha256_of, weights_of
from s2a.pretrained.config import CONFIG_FILE, FILES

_PATIENCE = 10
"""Seconds until a hub that does not answer counts as out of reach."""
_ADVICE = "pass weights=FILE (on the command line: --weights FILE)"


def wanted(config: dict[str, Any]) -> str:
    """The backbone that an adapter belongs to, in words."""
    backbone = config["backbone"]
    weights = backbone["weights"] or {}
    words = {"hub": "hub", "revision": "revision", "file": "file", "sha256": "sha256"}
    known = [f"{word} {weights[key]}" for key, word in words.items() if weights.get(key)]
    return f"{backbone['name']} ({', '.join([*known, 's2a id ' + str(backbone.get('id'))])})"


def find_weights(config: dict[str, Any], folder: Path, needed: bool) -> Path | None:
    """The file of a backbone's weights; ``None`` where it has its own.

    Args:
        config: The adapter's.
        folder: The adapter's.
        needed: False for a backbone that brings its weights: then only a file in the folder takes their place.

    Raises:
        S2AError: There is none, or it is not the one that was meant.
    """
    weights = config["backbone"]["weights"] or {}
    name, digest = weights.get("file"), weights.get("sha256")
    if name and (folder / name).is_file():
        return _checked(folder / name, digest)
    if not needed:
        return None
    hub, file, at = weights.get("hub"), name or HUB_FILE, weights.get("revision")
    if not hub:
        # The weights came from a file of somebody's; they may be timm's own all the same.
        own = timm.get_pretrained_cfg(config["backbone"]["name"], allow_unregistered=True)
        known = weights_of(own.to_dict()) if own is not None else None
        hub, file, at = (known or {}).get("hub"), HUB_FILE, None
        if hub is None:
            raise S2AError(f"the adapter belongs to {wanted(config)}, which no hub has; {_ADVICE}.")
    try:
        path = download(hub, file, at)
    except Unreachable as error:
        raise S2AError(
            f"the adapter belongs to {wanted(config)}; it is neither in the cache nor reachable ({error}); {_ADVICE}."
        ) from error
    return _checked(path, digest if weights.get("hub") else None)


class Unreachable(Exception):
    """A file of the hub is neither in its cache nor to be had; the message says why."""


def download(hub: str, name: str, revision: str | None = None, token: str | None = None) -> Path:
    """A file of a hub's repository, from the cache or the hub.

    Raises:
        Unreachable: It is in neither.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # What is in the cache needs no network: the weights are compared with the adapter's anyway.
    with contextlib.suppress(Exception):
        return Path(hf_hub_download(hub, name, revision=revision, local_files_only=True))
    try:
        # One question first: a download would ask an unreachable hub six times, with a warning for each.
        get_hf_file_metadata(hf_hub_url(hub, name, revision=revision), token=token, timeout=_PATIENCE)
        return Path(hf_hub_download(hub, name, revision=revision, token=token, etag_timeout=_PATIENCE))
    except Exception as error:  # Of the hub's own types, of its HTTP library's, of the system's.
        raise Unreachable(reason(error)) from error


def fetch_folder(hub: str, revision: str | None, token: str | None) -> Path:
    """An adapter's files from the hub, or from its cache where the hub cannot be reached.

    Raises:
        S2AError: There is no such repository, or it has no adapter, or it is neither cached nor reachable.
    """
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            hub, revision=revision, token=token, allow_patterns=list(FILES), etag_timeout=_PATIENCE
        )
    except Exception as error:
        at = f" at {revision}" if revision else ""
        raise S2AError(
            f"there is no folder {hub}, and the adapter {hub}{at} cannot be had from the hub ({reason(error)})."
        ) from error
    if not (Path(path) / CONFIG_FILE).is_file():
        raise S2AError(f"{hub} on the hub has no {CONFIG_FILE}: it is no adapter that s2a.save_pretrained wrote.")
    return Path(path)


def fetch_weights_beside(config: dict[str, Any], hub: str, revision: str | None, token: str | None) -> None:
    """Brings a backbone's weights that the adapter's own repository has, and no other one, beside the adapter."""
    weights = config["backbone"]["weights"] or {}
    if weights.get("file") and not weights.get("hub") and timm.is_model(config["backbone"]["name"]):
        with contextlib.suppress(Unreachable):
            download(hub, weights["file"], revision, token)


def reason(error: BaseException) -> str:
    """The first line of what caused an error, with its type: the hub's library wraps those of connections."""
    while error.__cause__ is not None and not getattr(error, "response", None):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: {textwrap.shorten(lines[0], 160, placeholder=' ...')}"
        if lines
        else type(error).__name__
    )


def _checked(path: Path, digest: str | None) -> Path:
    """A file that an adapter names: safetensors, whatever it is called, with the hash that it should have."""
    try:
        with safetensors.safe_open(path, framework="pt"):
            pass
    except Exception as error:
        raise S2AError(
            f"{path} is no safetensors file, and others are only read when they are given; pass weights=FILE."
        ) from error
    if digest and (found := sha256_of(path)) != digest:
        raise S2AError(f"{path} has sha256 {found}, the adapter's backbone {digest}; pass the right one, weights=FILE.")
    return path
