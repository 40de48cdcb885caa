"""Adapter folders on disk: written whole or not at all; only an adapter's own folder is ever replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from s2a.errors import S2AError
from s2a.pretrained.config import CONFIG_FILE, FILES, join, read_config


def check_target(folder: str | os.PathLike[str]) -> Path:
    """The path that a folder is to be written to.

    Raises:
        S2AError: Something is there that is neither an empty folder nor an adapter's.
    """
    try:
        target = Path(os.path.realpath(folder))
        target.exists()  # which complains of names that no folder can have
    except TypeError:
        raise S2AError(f"save_pretrained takes the path of a folder, not {type(folder).__name__}.") from None
    except (OSError, ValueError) as error:  # too long; a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise S2AError(f"{str(folder)!r:.99} cannot be a folder ({reason}); save elsewhere.") from error
    if target.is_file() or (target.exists() and not target.is_dir()):
        raise S2AError(f"{target} is a file; give the path of a folder.")
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir())
        if others := [name for name in names if name not in FILES]:
            raise S2AError(f"{target} has other files ({join(others)}), which would be lost; save to another folder.")
        if names:
            try:
                read_config(target / CONFIG_FILE)
            except S2AError as error:
                raise S2AError(
                    f"{target} is not empty, and no adapter folder that could be replaced ({str(error).rstrip('.')}); "
                    "save to another folder."
                ) from error
    return target


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` that takes its place at the end; on any error ``target`` stays as it was.

    Raises:
        S2AError: The place cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise S2AError(f"{target} cannot be written ({error.strerror or error}); save elsewhere.") from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it for the owner alone
        _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(temporary: Path, target: Path) -> None:
    """Renames a folder to ``target``; the former one is set aside first and put back if that fails."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    former = aside / target.name
    try:
        target.rename(former)
        try:
            temporary.rename(target)
        except BaseException:
            former.rename(target)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rmdir()  # Only if it is empty: what could not be put back stays there.
        raise
    shutil.rmtree(aside, ignore_errors=True)
