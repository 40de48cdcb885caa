"""Checkpoints in the middle of a cell: a killed cell goes on from the last one, on a CPU to the same bits.

Layout of a file ``checkpoints/<cell_id>.pt``::

    one line of JSON   {"format": 1, "sha256": 64 hex digits, "identity": {cell, protocol, code, torch, device}}
    the rest           ``torch.save`` of a dictionary of plain values and CPU tensors (``Checkpointer.save_epoch``)

``sha256`` covers the identity and the rest. The line has the same length whatever the digest is, so that it is written
twice: with zeros first, with the digest once the rest is there. A file that is damaged, or whose identity is another
one (another cell, protocol, code, version of torch or kind of device), is left alone and the record says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from s2a_bench.cells.outputs import Keep, checkpoint_path
from s2a_bench.cells.record import PROTOCOL, Record
from s2a_bench.cells.select import Selection
from s2a_bench.cells.source_code import code_id
from s2a_bench.files import replacing

FORMAT = 1
_SHARE = 0.05  # of a cell's time that may go into writing checkpoints
_WORDS = {
    "cell": "another cell",
    "protocol": "another protocol",
    "code": "other code",
    "torch": "another version of torch",
    "device": "another kind of device",
}


class Checkpointer:
    """Writes the state of one cell's training now and then, and restores it; the training loop calls it.

    An error with a checkpoint never stops the cell: it becomes one of the record's notes.
    """

    def __init__(
        self,
        keep: Keep,
        record: Record,
        device: str,
        clock: Callable[[], float] = time.monotonic,
        selection: Selection | None = None,
    ) -> None:
        """Prepares for one cell.

        Args:
            keep: Where checkpoints go and how often they are written.
            record: Of the cell; ``resumed``, ``notes`` and ``started_at`` are set in it.
            device: torch device of the training.
            clock: For tests.
            selection: Of the best epoch, whose weights are written and restored too; ``None``: there is none.
        """
        self.path = checkpoint_path(keep.output, record.cell_id)
        self.starts: list[int] = []
        """Epochs after which the training was resumed."""
        self._every, self._record, self._clock = keep.checkpoint_every, record, clock
        self._device = torch.device(device).type
        self._due = clock() + self._every
        self._selection = selection

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer, order: torch.Generator) -> list[dict]:
        """Puts the last checkpoint's state into its arguments and torch's generators.

        Returns:
            The curve so far; empty if the training begins anew.
        """
        state = self._read_usable(model)
        if state is None:
            return []
        # In place: the optimiser's state is keyed by these very parameters.
        with torch.no_grad():
            for name, target in _changing_tensors(model).items():
                target.copy_(state["model"][name])
        optimiser.load_state_dict(state["optimiser"])
        # The order of the images has a generator of its own; dropout and stochastic depth draw from torch's.
        if self._selection is not None:
            self._selection.load_state(state["selection"])
        order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if self._device == "cuda":
            torch.cuda.set_rng_state(state["random_device"], next(model.parameters()).device)
        self.starts = [*state["starts"], len(state["curve"])]
        self._record.resumed, self._record.started_at = len(self.starts), state["started_at"]
        return state["curve"]

    def save_epoch(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, order: torch.Generator, curve: list[dict]
    ) -> None:
        """Called at the end of every epoch; writes a checkpoint if it is time."""
        began = self._clock()
        if began < self._due:
            return
        device = next(model.parameters()).device
        state = {
            "curve": curve,
            "starts": self.starts,
            "started_at": self._record.started_at,
            "model": {name: tensor.detach().cpu() for name, tensor in _changing_tensors(model).items()},
            "optimiser": _to_cpu(optimiser.state_dict()),
            "selection": None if self._selection is None else self._selection.state(),
            "order": order.get_state(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        try:
            write(self.path, self._identity(model), state)
        except OSError as error:
            self._note(f"No checkpoint could be written ({error.strerror or error}); training went on without.")
        # Writing may take _SHARE of the time: a large state on a slow disk is written less often.
        took = self._clock() - began
        self._due = self._clock() + max(self._every, took / _SHARE)

    def _read_usable(self, model: nn.Module) -> dict[str, Any] | None:
        """The state of the checkpoint, if there is one and it belongs to this training of this model."""
        try:
            state = read(self.path, self._identity(model))
            stored = {name: (tensor.shape, tensor.dtype) for name, tensor in state["model"].items()}
            if stored != {name: (tensor.shape, tensor.dtype) for name, tensor in _changing_tensors(model).items()}:
                raise Unusable("it does not fit the model")
        except FileNotFoundError:
            return None
        except (OSError, Unusable) as error:
            self._note(f"The checkpoint {self.path.name} was not used: {error}; the training began anew.")
            return None
        return state

    def _identity(self, model: nn.Module) -> dict[str, Any]:
        method = getattr(model, "method", model)
        return {
            "cell": self._record.cell_id,
            "protocol": PROTOCOL,
            "code": code_id(type(method).__module__),
            "torch": torch.__version__,
            "device": self._device,
        }

    def _note(self, sentence: str) -> None:
        if sentence not in self._record.notes:
            self._record.notes.append(sentence)


class Unusable(ValueError):
    """A file that is not a checkpoint, or not this cell's."""


def write(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        OSError: It could not be written.
    """
    with replacing(path) as file:
        file.write(_header(identity, "0" * 64))  # of the length of the real one
        body = _Hashing(file, _key(identity))
        torch.save(state, cast("BinaryIO", body))
        if body.error is not None:
            raise body.error
        file.seek(0)
        file.write(_header(identity, body.digest.hexdigest()))


def read(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint; everything in it lies on the CPU.

    Raises:
        FileNotFoundError: There is none.
        Unusable: It is damaged, or its identity is another one.
    """
    with path.open("rb") as file:
        try:
            header = json.loads(file.readline(10_000))
            identity_given, expected_sum = header["identity"], header["sha256"]
            if header["format"] != FORMAT or not isinstance(identity_given, dict):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise Unusable("it is not a checkpoint, or damaged") from None
        # The checksum first: what is damaged is not given to torch at all.
        start = file.tell()
        digest = hashlib.sha256(_key(identity_given))
        while block := file.read(1 << 20):
            digest.update(block)
        if digest.hexdigest() != expected_sum:
            raise Unusable("it is damaged or half-written (its checksum does not match)")
        for name, words in _WORDS.items():
            if identity_given.get(name) != identity[name]:
                raise Unusable(f"it was made by {words} ({identity_given.get(name)}, not {identity[name]})")
        file.seek(start)
        try:
            # Plain values and tensors only: nothing in a file is ever run.
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise Unusable(f"torch cannot load it ({type(error).__name__})") from error


def _header(identity: dict[str, Any], digest: str) -> bytes:
    return json.dumps({"format": FORMAT, "sha256": digest, "identity": identity}).encode() + b"\n"


def _key(identity: dict[str, Any]) -> bytes:
    return json.dumps(identity, sort_keys=True).encode()


class _Hashing:
    """A file for ``torch.save`` that is hashed as it is written.

    An error is kept, not raised: thrown through torch's writer it would come out as another one.
    """

    def __init__(self, file: BinaryIO, salt: bytes) -> None:
        self._file, self.digest, self.error = file, hashlib.sha256(salt), None

    error: OSError | None

    def write(self, data: bytes) -> int:
        """Writes on, unless something has failed before."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Flushes, see ``write``."""
        with contextlib.suppress(OSError):
            self._file.flush()


def _changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that train, and buffers. The rest is made again from checkpoint and seed."""
    return {
        **{name: p for name, p in model.named_parameters() if p.requires_grad},
        **dict(model.named_buffers()),
    }


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _to_cpu(entry) for key, entry in value.items()}
    return [_to_cpu(entry) for entry in value] if isinstance(value, list) else value
