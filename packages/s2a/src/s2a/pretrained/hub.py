"""Shares an adapter folder on the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from pathlib import Path

from s2a.adapted import Adapted
from s2a.errors import S2AError
from s2a.pretrained.config import CONFIG_FILE, FILES, read_config
from s2a.pretrained.fetch import reason
from s2a.pretrained.load import read_state
from s2a.pretrained.save import save_pretrained

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def push_to_hub(
    folder_or_adapted: str | os.PathLike[str] | Adapted,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Uploads an adapter folder; ``s2a.from_pretrained(repo_id)`` then loads it anywhere.

    Of a folder, the three files of ``s2a.save_pretrained`` are uploaded, and the file of the backbone's weights where
    the config names one that lies in the folder; nothing else. An adapted model is saved to
    a temporary folder first, with the labels it has; to give metrics and data too, save it and push the folder.

    Args:
        folder_or_adapted: What ``s2a.save_pretrained`` wrote, or an adapted model.
        repo_id: ``owner/name``; it is made where it does not exist.
        private: Of a new repository; ``None``: as the owner's account has it.
        token: Of the hub, with the right to write; ``None``: the one that is logged in.
        revision: Branch, made where it does not exist; ``None``: ``main``.
        commit_message: ``None``: a sentence.

    Returns:
        Address of the commit.

    Raises:
        S2AError: No adapter folder, no repository's name, or the hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    if not isinstance(repo_id, str) or not _REPO_ID.fullmatch(repo_id):
        raise S2AError(f"repo_id {repo_id!r} must be owner/name.")
    if isinstance(folder_or_adapted, Adapted):
        with tempfile.TemporaryDirectory() as temporary:
            folder = save_pretrained(folder_or_adapted, Path(temporary) / "adapter")
            return push_to_hub(
                folder, repo_id, private=private, token=token, revision=revision, commit_message=commit_message
            )
    try:
        folder = Path(folder_or_adapted)
    except TypeError:
        raise S2AError(
            f"push_to_hub takes a folder or an adapted model, not {type(folder_or_adapted).__name__}."
        ) from None
    config = read_config(folder / CONFIG_FILE)
    read_state(folder, config).tensors()
    files = [*FILES]
    weights = (config["backbone"]["weights"] or {}).get("file")
    if weights and (folder / weights).is_file():
        files.append(glob.escape(weights))
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or "Adapter of s2a",
            allow_patterns=files,
        )
    except Exception as error:  # Of the hub's own types, of its HTTP library's, of the system's.
        raise S2AError(
            f"{folder} was not uploaded to {repo_id} ({reason(error)}); check the name and the right to write there "
            "(hf auth login, or token=)."
        ) from error
    return str(commit.commit_url)
