"""Files that are written whole or not at all, locks between processes, and what a terminal can show."""

from s2a_bench.files.atomic import (
    make_folder,
    move_into_place,
    replacing,
    sync_file,
    sync_folder,
    temporary_owner,
    write_atomic,
)
from s2a_bench.files.locks import locked, process_runs, reserved
from s2a_bench.files.streams import let_streams_take_any_text

__all__ = [
    "let_streams_take_any_text",
    "locked",
    "make_folder",
    "move_into_place",
    "process_runs",
    "replacing",
    "reserved",
    "sync_file",
    "sync_folder",
    "temporary_owner",
    "write_atomic",
]
