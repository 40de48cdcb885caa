"""A fine-tuning from its request to its results. Without torch until the images are known to be good."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

from s2a_bench.finetuning import prepare
from s2a_bench.finetuning.request import FinetuneRequest
from s2a_bench.finetuning.result import Result
from s2a_bench.sweeps.events import Listener, notify

_NOTE = "note: "
"""With which what is worth knowing of the images begins, among the steps of their preparation."""


def finetune(request: FinetuneRequest, listeners: Sequence[Listener] = ()) -> Result:
    """Runs a fine-tuning, or finds that it is finished.

    Args:
        request: What is asked for, checked by ``request.check_request``.
        listeners: Receive ``message``, ``planned``, ``started``, ``epoch``, ``finished`` and ``ended``, and, those that
            have it, ``progress(what, done, total)`` while images are prepared.

    Raises:
        InputError: Bad input, before anything was written: one sentence for each mistake.
        S2AError: A method or a value that its config does not take, before anything was written.
        FinetuneFailed: The training failed.
        KeyboardInterrupt: As it came. The best epoch so far is in the output folder, and the same call goes on.
    """
    say = functools.partial(notify, listeners, "message")

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith(_NOTE):
            say(what.removeprefix(_NOTE), "info")
        else:
            notify(listeners, "progress", what, done, total)

    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(prepare.staging(request.output))
        data = prepare.prepare(request, stage, progress)
        notify(listeners, "progress", "loading torch, backbone and method", 0, 0)
        from s2a_bench.finetuning.training import train_prepared  # torch with it: bad images need not wait for it

        return train_prepared(request, data, stack.close, listeners)
