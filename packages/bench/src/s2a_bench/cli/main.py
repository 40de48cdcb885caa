"""The command line: the commands together, and what their errors become. Each command has a file of its own."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from s2a_bench import failures
from s2a_bench.cli.audit import Audit
from s2a_bench.cli.closed_pipe import quiet_when_closed
from s2a_bench.cli.common import BAD_INPUT, INTERRUPTED, SOME_FAILED, make_console, print_text
from s2a_bench.cli.data import DataList, DataPrepare, DataVerify
from s2a_bench.cli.estimate import Estimate
from s2a_bench.cli.experiments import Experiments
from s2a_bench.cli.export import Export
from s2a_bench.cli.finetune import Finetune
from s2a_bench.cli.fits import Fits
from s2a_bench.cli.help_text import wrapping_help
from s2a_bench.cli.memory import Memory
from s2a_bench.cli.methods import Methods
from s2a_bench.cli.predict import Predict
from s2a_bench.cli.pretrain import Pretrain
from s2a_bench.cli.records import Records
from s2a_bench.cli.report import Report
from s2a_bench.cli.serve import Serve
from s2a_bench.cli.sweep import Sweep
from s2a_bench.cli.track import Track
from s2a_bench.cli.ui import Ui
from s2a_bench.errors import is_input_error, sentences
from s2a_bench.files import let_streams_take_any_text


def _named(command: Any, name: str, text: str | None = None) -> Any:
    return Annotated[command, tyro.conf.subcommand(name, description=text)]


_DATA: Any = Union[  # noqa: UP007
    _named(DataList, "list"), _named(DataPrepare, "prepare"), _named(DataVerify, "verify")
]
COMMANDS: Any = Union[  # noqa: UP007
    _named(Sweep, "sweep"),
    _named(Finetune, "finetune"),
    _named(Memory, "memory"),
    _named(Fits, "fits"),
    _named(Estimate, "estimate"),
    _named(Methods, "methods"),
    _named(Experiments, "experiments"),
    _named(_DATA, "data", "What data exists; brings a download into the standard layout; checks it."),
    _named(Records, "records"),
    _named(Report, "report"),
    _named(Track, "track"),
    _named(Ui, "ui"),
    _named(Audit, "audit"),
    _named(Predict, "predict"),
    _named(Export, "export"),
    _named(Serve, "serve"),
    _named(Pretrain, "pretrain"),
]
"""Every command: a dataclass of its arguments with ``run(console) -> exit code``."""

SETTINGS: Any = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
"""How tyro names the arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes those of the process.

    Returns:
        The exit code.
    """
    if argv is None:  # the process is ours: being told to end is like Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        argv = sys.argv[1:]
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started the process: >&-
        nowhere = Path(os.devnull).open("w", encoding="utf-8")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    let_streams_take_any_text()
    with quiet_when_closed():
        with wrapping_help():
            command = tyro.cli(
                COMMANDS,
                args=list(argv),
                prog="s2a-bench",
                description="Fine-tuning methods for vision backbones, compared in accuracy and memory.",
                config=SETTINGS,
            )
        return _run(command)


def _run(command: Any) -> int:
    """The exit code of a command."""
    console = make_console()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
            return command.run(console)
    except ValueError as error:
        if not is_input_error(error):
            raise
        for sentence in sentences(error):
            print_text(make_console(sys.stderr), f"s2a-bench: {sentence}")
        return BAD_INPUT
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            given = str(error.filename)
            print(
                f"s2a-bench: The path {given[:80]}... is too long for the file system; give another.", file=sys.stderr
            )
            return BAD_INPUT
        if (full := failures.full_sentence(error)) is None:
            raise
        print(f"s2a-bench: {full}", file=sys.stderr)
        return SOME_FAILED
    except KeyboardInterrupt:
        print("s2a-bench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _show_warning(usual: Callable[..., None], message: Any, category: type[Warning], *where: Any) -> None:
    """A broken package of methods is for the user: a sentence, as everything else that this program says."""
    if category.__name__ == "BrokenPackageWarning":
        print(f"s2a-bench: {message}", file=sys.stderr)
    else:
        usual(message, category, *where)


if __name__ == "__main__":
    sys.exit(main())
