"""``MultiTask``: adapters of one backbone by name, added and removed while others answer."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from s2a.adapted import Adapted, apply_head, classes_of, require_adapted
from s2a.attach import refuse_adapted
from s2a.backbones import family_of, input_channels
from s2a.backbones.number_format import HALVES
from s2a.errors import S2AError
from s2a.identity import identify
from s2a.image_transform import ImageTransform, make_transform
from s2a.multitask.forms import Form, Tensors, mixed_features
from s2a.multitask.share import own_values, share_copy, storages
from s2a.pretrained.backbone import check_image_size, sentence
from s2a.pretrained.config import CONFIG_FILE, read_config
from s2a.pretrained.load import check_method, folder_of, read_state
from s2a.registry import method_config
from s2a.saved_file import SavedFile, read
from s2a.state import load_file, save


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One adapter among others.

    Attributes:
        name: Of the task.
        method: Registered name of its method.
        config: The method's config, as it was trained; a pass that only predicts keeps nothing, lean or not.
        num_classes: K of its logits.
        image_size: Height and width of its images.
        labels: Class names in the order of the logits, where the adapter folder has them.
        transform: PIL image -> its input ``(3, H, W)``, as the folder says; ``None`` of a trained model without one.
        bytes: Memory of its tensors that the backbone does not hold.
    """

    name: str
    method: str
    config: Any
    num_classes: int
    image_size: tuple[int, int]
    labels: tuple[str, ...] | None
    transform: ImageTransform | None
    bytes: int
    _form: Form = dataclasses.field(repr=False)
    _tensors: Tensors = dataclasses.field(repr=False)
    _head: nn.Module = dataclasses.field(repr=False)

    def _logits(self, features: Tensor) -> Tensor:
        return apply_head(self._head, features)


class MultiTask:
    """Any number of adapters of one frozen backbone, methods and class counts mixed.

    Each task has modules and trained values of its own and reads the backbone's weights where they are: they are held
    once and never written. A call may run on any thread, beside others and beside ``add`` and ``remove``; it ends with
    the tasks that it began with.

    Args:
        model: A timm model of a supported family, with its trained weights, on the device where it is to stay. It is
            put into evaluation mode and must not be changed or adapted as long as tasks use it.

    Raises:
        S2AError: Not a model, or one that is adapted already.
        UnsupportedModel: A model of no supported family.

    Example:
        multi = s2a.MultiTask(timm.create_model("vit_base_patch16_224", pretrained=True))
        multi.add("birds", "birds/adapter"); multi.add("cars", "cars/adapter")
        multi(images, "birds")                          # (B, 200)
        multi(images, ["birds", "cars", "birds"])       # a list: (200,), (196,), (200,)
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise S2AError(f"MultiTask takes a timm model, not {type(model).__name__}.")
        refuse_adapted(model)
        family_of(model)
        self._model = model.eval()
        self._identity = identify(model)
        self._held = storages(model)
        self._weight = next(p for p in model.parameters() if p.is_floating_point())
        # Held by their tasks: a form that none has any more is let go. A hook of a pass may add a task.
        self._forms: dict[Any, list[weakref.ref[Form]]] = {}
        self._forming = threading.RLock()
        self._tasks: Mapping[str, Task] = MappingProxyType({})
        self._lock = threading.Lock()

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name, as they are now; later changes are not seen in it."""
        return self._tasks

    def add(
        self, name: str, adapter: str | os.PathLike[str] | Adapted, *, replace: bool = False, token: str | None = None
    ) -> Task:
        """Adds an adapter; calls that run meanwhile are not disturbed.

        Args:
            name: Of the task.
            adapter: An adapter folder or hub id (``s2a.save_pretrained``), a file of ``s2a.save``, or an adapted model,
                whose trained values are copied.
            replace: Puts it in the place of a task of that name; calls that run end with the former one.
            token: Of the hub.

        Returns:
            The task.

        Raises:
            S2AError: A name that is taken or empty; an adapter that cannot be read; one that trained all weights of
                its backbone (``full``), so that nothing is shared.
            StateMismatch: An adapter of other weights than the backbone's.
        """
        if not isinstance(name, str) or not name:
            raise S2AError(f"name={name!r} must be a text that is not empty.")
        self._check_free(name, replace)
        task = self._make(name, adapter, token)
        with self._lock:
            self._check_free(name, replace)
            self._tasks = MappingProxyType({**self._tasks, name: task})
        return task

    def remove(self, name: str) -> None:
        """Removes a task; calls that run end with it.

        Raises:
            S2AError: There is none of that name.
        """
        with self._lock:
            self._find(name, self._tasks)
            self._tasks = MappingProxyType({other: task for other, task in self._tasks.items() if other != name})

    def __call__(self, images: Tensor, tasks: str | Sequence[str]) -> Any:
        """Logits of a batch, without gradients.

        Args:
            images: ``(B, 3, H, W)`` on the backbone's device, of the size that the tasks were trained with.
            tasks: One name for all images, or one for each.

        Returns:
            ``(B, K)`` of one task; for a sequence of names a list of B tensors ``(K_i,)``.

        Raises:
            S2AError: A task that is not there, another number of names than of images, images of another form or size.
        """
        present = self._tasks  # One table for the whole call.
        self._check_images(images)
        if isinstance(tasks, str):
            task = self._find(tasks, present)
            _check_size(images, task)
            with torch.no_grad():
                return task._logits(task._form.features(task._tensors, images))
        if not isinstance(tasks, Sequence):
            raise S2AError(f"tasks must be a name, or a list of one for each image, not {type(tasks).__name__}.")
        names = list(tasks)
        if len(names) != len(images):
            raise S2AError(f"{len(names)} names of tasks for {len(images)} images; give one for all, or one for each.")
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(self._find(name, present).name, []).append(row)
        forms: dict[Form, list[Task]] = {}
        for name in rows:
            task = present[name]
            _check_size(images, task)
            forms.setdefault(task._form, []).append(task)
        logits: list[Tensor] = [images] * len(images)
        with torch.no_grad():
            for form, members in forms.items():
                given = [images[rows[task.name]] for task in members]
                features = mixed_features(form, [task._tensors for task in members], given)
                for task, x in zip(members, features, strict=True):
                    for row, values in zip(rows[task.name], task._logits(x), strict=True):
                        logits[row] = values
        return logits

    def _check_images(self, images: Any) -> None:
        channels = input_channels(self._model)
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
            form = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise S2AError(f"images must be a tensor (B, {channels}, H, W), not {form}.")
        if images.dtype not in (*HALVES, self._weight.dtype):
            raise S2AError(f"images are {images.dtype}, the backbone is {self._weight.dtype}; cast them.")
        if images.device != self._weight.device:
            raise S2AError(f"images are on {images.device}, the backbone is on {self._weight.device}; move them.")

    def _check_free(self, name: str, replace: bool) -> None:
        if name in self._tasks and not replace:
            raise S2AError(f"there is a task {name!r} already; remove it first, take another name, or replace=True.")

    def _find(self, name: Any, present: Mapping[str, Task]) -> Task:
        task = present.get(name) if isinstance(name, str) else None
        if task is None:
            known = ", ".join(map(repr, sorted(present))) or "none"
            raise S2AError(f"there is no task {name!r}; there are: {known}.")
        return task

    def _make(self, name: str, adapter: Any, token: str | None) -> Task:
        card, head, transform = None, None, None
        if isinstance(adapter, Adapted):
            labels = adapter.labels
            transform = adapter._transform
            head = copy.deepcopy(adapter.head) if type(adapter.head) not in (nn.Linear, nn.Identity) else None
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "adapter.safetensors")
                try:
                    save(adapter, path)
                    state = read(path)
                    adapted = self._load(state, head)
                except S2AError as error:
                    raise type(error)(str(error).replace(str(path), f"the model for task {name!r}")) from error
        elif not isinstance(adapter, str | os.PathLike):
            if isinstance(adapter, nn.Module):
                require_adapted("MultiTask.add", adapter)
            raise S2AError(
                f"MultiTask.add takes a folder or a hub id, a file of s2a.save or an adapted model, not "
                f"{type(adapter).__name__}."
            )
        elif os.path.isfile(adapter):  # noqa: PTH113 - False for names that no file can have
            state, labels = read(adapter), None
            adapted = self._load(state, None)
        else:
            place, _ = folder_of(adapter, None, token)
            card = read_config(place / CONFIG_FILE)
            state, labels = read_state(place, card), card["labels"]
            with sentence(str(adapter)):
                check_method(card)
            adapted = self._load(state, None)
        config = method_config(state.method, **state.config)
        if card is not None and card["image"] is not None:
            transform = make_transform(card["image"])
            with sentence(f"{adapter}: {CONFIG_FILE} is damaged"):
                check_image_size(adapted, transform)
        own = storages(adapted)
        height, width = adapted.image_size
        head = adapted.head
        form, tensors = self._form_of(adapted)
        return Task(
            name=name,
            method=adapted.name,
            config=config,
            num_classes=classes_of(head),
            image_size=(height, width),
            labels=None if labels is None else tuple(labels),
            transform=transform,
            bytes=sum(count for address, count in own.items() if address not in self._held),
            _form=form,
            _tensors=tensors,
            _head=head,
        )

    def _form_of(self, adapted: Adapted) -> tuple[Form, Tensors]:
        """The form of an adapter, maybe one that others have, and its own tensors."""
        tensors = {
            name: tensor.detach()
            for name, tensor in (*adapted.named_parameters(), *adapted.named_buffers())
            if not name.startswith("head.") and tensor.untyped_storage().data_ptr() not in self._held
        }
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items())
        head = next(adapted.head.parameters(), None)
        key = (adapted.name, repr(adapted.config), adapted.image_size, shapes, None if head is None else head.dtype)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1, input_channels(self._model), *adapted.image_size, generator=generator)
        images = images.to(self._weight.device, self._weight.dtype)
        with self._forming, torch.no_grad():
            known = [form for ref in self._forms.get(key, []) if (form := ref()) is not None]
            wanted = adapted.forward_features(images) if known else images
            for form in known:
                # Numbers that are no tensors (a scale) may differ: such tasks have another form.
                if torch.equal(form.features(tensors, images), wanted):
                    form.try_mixing(tensors, images)
                    return form, tensors
            form = Form(adapted, tensors.keys())
            self._forms = {other: alive for other, refs in self._forms.items() if (alive := [r for r in refs if r()])}
            self._forms[key] = [*self._forms.get(key, []), weakref.ref(form)]
        return form, tensors

    def _load(self, file: SavedFile, head: nn.Module | None) -> Adapted:
        """The adapter on a copy of the backbone that shares its values."""
        copied = share_copy(self._model)

        def unshare(adapted: Adapted) -> None:
            names = {n.removeprefix("backbone.") for n in file.shapes if n.startswith("backbone.")}
            own_values(adapted.backbone, names)
            if not storages(adapted.backbone).keys() & self._weights():
                raise S2AError(
                    f"{adapted.name!r} trained all weights of its backbone, so that there is nothing to share; serve "
                    "it as a model of its own (s2a.from_pretrained)."
                )

        adapted = load_file(copied, file, head=head, identity=self._identity, exact=True, before_values=unshare)
        adapted.eval().requires_grad_(False)
        adapted._edits.forget()
        return adapted

    def _weights(self) -> set[int]:
        return {p.untyped_storage().data_ptr() for p in self._model.parameters() if p.ndim > 1}


def _check_size(images: Tensor, task: Task) -> None:
    if tuple(images.shape[-2:]) != task.image_size:
        given, wanted = ("x".join(map(str, size)) for size in (images.shape[-2:], task.image_size))
        raise S2AError(f"the images have {given} pixels, task {task.name!r} was trained with {wanted}; resize them.")
