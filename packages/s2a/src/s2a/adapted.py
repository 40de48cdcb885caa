"""The adapted model: a backbone, the method on it and the head; what trains, and the format of frozen weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2a.backbones import Backbone, Edits, input_channels
from s2a.backbones.edits import Undoable
from s2a.backbones.number_format import HALVES, compute_format, frozen_dtype
from s2a.backbones.refusals import path_inside
from s2a.errors import S2AError
from s2a.identity import UNKNOWN, Identity, fingerprint, from_text, is_rounded, is_unchanged
from s2a.image_transform import ImageTransform, default_transform
from s2a.lean import FusedBranch
from s2a.lean.plan import Plan
from s2a.ops.offload import offloading
from s2a.paging import page_of, set_home
from s2a.registry import Method


class Adapted(nn.Module):
    """A backbone under a method: images ``(B, 3, H, W)`` to logits ``(B, K)``.

    It answers as a timm model does, so that timm's helpers take it: data config, parameter groups, gradient
    checkpointing, classifier. What it does not have itself is looked up on the backbone (``pretrained_cfg``,
    ``embed_dim``, ``patch_embed`` ...).

    Attributes:
        backbone: The timm model that was given, edited in place; its own classifier is set aside.
        method: The method's module, holding every parameter it added.
        head: The classifier, trained; any module of features ``(B, C)`` may take its place.
        name: The method's registered name.
        config: The method's config.
        labels: Class names in the order of the logits, where ``s2a.from_pretrained`` found them.
        card: What the adapter folder says (``adapter_config.json``), where the model came from one.
    """

    labels: list[str] | None = None
    card: dict[str, Any] | None = None
    _transform: ImageTransform | None = None
    _paging: Sequence[Undoable] = ()  # The edits of ``s2a.page_frozen``.
    _paged_by_plan = False  # ``plan_memory`` made them, and may take them back.

    def __init__(
        self,
        view: Backbone,
        config: Any,
        name: str,
        method: Method,
        head: nn.Module,
        edits: Edits,
        identity: Identity,
        places: Mapping[str, tuple[nn.Module, str]],
        branches: tuple[FusedBranch, ...] = (),
        make_plan: Callable[[Adapted], Plan] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = view.model
        self.method = method
        self.head = head
        self.name = name
        self.config = config
        self.image_size = view.image_size
        self._branches = branches
        self._plan: Plan | None = None
        # The planner needs this class, so it is handed in. Pickles refer to it by name: no lambda, no closure.
        self._make_plan = make_plan
        self._edits = edits
        # Which weights the backbone had here, and where each tensor is: methods may wrap modules.
        self._attached = self._identity = identity
        self._places = places
        self._classifier = view.classifier
        self._trained: set[str] = set()
        self.note_trained()
        self._attach_trained = frozenset(self._trained)
        self._dtype = frozen_dtype(view.model, edits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.forward_head(self.forward_features(images))

    @property
    def plan(self) -> Plan | None:
        """What lean activations keep, block by block, and what it comes to; ``None`` without them.

        Made when it is first asked for: that takes two forward passes of few images.
        """
        if self._plan is None and self._make_plan is not None:
            self._plan = self._make_plan(self)
        return self._plan

    def transform(self) -> ImageTransform:
        """What makes the model's input ``(3, H, W)`` of a PIL image: as in the adapter folder, else as timm has it.

        Raises:
            S2AError: The model does not take RGB images.
        """
        if (channels := input_channels(self.backbone)) != 3:
            raise S2AError(f"The model takes images of {channels} channels; transform is for RGB images.")
        return self._transform or default_transform(self.backbone, self.image_size)

    # What timm's helpers ask of a model.

    def __getattr__(self, name: str) -> Any:
        """What only the backbone has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            backbone = self.__dict__.get("_modules", {}).get("backbone")
            if backbone is None or name.startswith("_"):
                raise
            return getattr(backbone, name)

    @property
    def num_classes(self) -> int:
        """K of the head; 0 where it has no linear layer."""
        return classes_of(self.head)

    @property
    def num_features(self) -> int:
        """Width of ``forward_features``'s output."""
        return self.method.feature_dim

    @property
    def head_hidden_size(self) -> int:
        """Width of the head's input."""
        return self.method.feature_dim

    def forward_features(self, images: Tensor) -> Tensor:
        """The method's features, already pooled, ``(B, num_features)``."""
        with compute_format(self.backbone, self.head, images):
            if not getattr(self.config, "offload", False) or torch.compiler.is_compiling():
                return self.method(self.backbone, images)
            with offloading():
                return self.method(self.backbone, images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of ``forward_features``'s output, or with ``pre_logits`` that output itself."""
        return features if pre_logits else apply_head(self.head, features)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new linear head in place of the present one; 0 classes: none, logits are then the features.

        Args:
            num_classes: K.
            global_pool: ``None``, or the pooling that the backbone has: a method is made for it.

        Raises:
            S2AError: Another pooling, or no class count.
        """
        if type(num_classes) is not int or num_classes < 0:
            raise S2AError(f"num_classes={num_classes!r} must be a non-negative integer.")
        if global_pool is not None and global_pool != (pool := getattr(self.backbone, "global_pool", None)):
            raise S2AError(
                f"global_pool={global_pool!r} is not the backbone's {pool!r}, for which the method was made; create "
                "the model with that pooling and attach again."
            )
        weight = next(p for p in (*self.head.parameters(), *self.backbone.parameters()) if p.is_floating_point())
        head = new_head(self.method.feature_dim, num_classes) if num_classes else nn.Identity()
        self.head = head.to(weight.device, weight.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the backbone's gradient checkpointing on or off."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's parameters that timm's optimiser factory leaves out of weight decay."""
        names = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that put the backbone's parameters into layers (``layer_decay``).

        What the method added and the head come last: they train at the full rate.
        """
        found: dict[str, Any] = self.backbone.group_matcher(coarse=coarse)  # type: ignore[operator]
        return {
            group: [(_below_backbone(pattern), suffix) for pattern, suffix in spec]
            if isinstance(spec, list | tuple)
            else _below_backbone(spec)
            for group, spec in found.items()
            if spec is not None
        }

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Refused.

        Raises:
            S2AError: Always.
        """
        raise S2AError("The method was made for the backbone's present input size; detach, change it, attach again.")

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> None:
        """Refused.

        Raises:
            S2AError: Always.
        """
        raise S2AError("The method was made for all blocks of the backbone; detach, prune it, attach again.")

    # Which weights it belongs to, and what of it trains.

    def note_trained(self) -> None:
        """Notes the names of what trains now: averages of weights are frozen before they are saved."""
        self._trained |= trainable_parameters(self).keys()

    def requires_grad_(self, requires_grad: bool = True) -> Adapted:
        """As in torch; what trained until now is noted."""
        self.note_trained()
        return super().requires_grad_(requires_grad)

    def train(self, mode: bool = True) -> Adapted:
        """As in torch; what trains now is noted."""
        self.note_trained()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; what trains now is noted."""
        self.note_trained()
        return super().__getstate__()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; the backbone's identity is in the metadata, which ``torch.save`` keeps."""
        self.note_trained()
        state = super().state_dict(*args, **kwargs)
        prefix = str(kwargs.get("prefix", args[1] if len(args) > 1 else ""))
        metadata = getattr(state, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})["s2a_identity"] = self._identity.text
        return state

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any, **kwargs: Any
    ) -> None:
        """A state that brings the backbone's weights brings their identity too."""
        if all(f"{prefix}backbone.{name}" in state_dict for name, _ in self.backbone.named_parameters()):
            identity = from_text(local_metadata.get("s2a_identity"))
            if identity is None or identity.layout != self._attached.layout:
                # Which values the trained parameters once had, such a state does not say.
                trained = dict.fromkeys(self._places.keys() - self._frozen().keys(), UNKNOWN)
                identity = dataclasses.replace(self._identity, tensors={**self._identity.tensors, **trained})
            self._identity = identity
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def _frozen(self) -> dict[str, Tensor]:
        """Tensors of the backbone that never trained, by their names in the plain backbone."""
        self.note_trained()
        trained = {id(p) for name, p in self.named_parameters() if name in self._trained}
        tensors = {name: getattr(module, leaf) for name, (module, leaf) in self._places.items()}
        return {n: t for n, t in tensors.items() if isinstance(t, nn.Parameter) and id(t) not in trained}

    def identify_now(self) -> tuple[Identity, dict[str, Tensor]]:
        """The identity that a saved state carries, and the frozen tensors that it does not describe.

        Frozen values move a little under casts and averages: then the identity of ``attach`` holds. Where most values
        are others, another checkpoint was put in, and its values are identified. Where few are, they were trained.
        """
        frozen = self._frozen()
        changed = {n: t for n, t in frozen.items() if not is_rounded(t, self._identity.tensors[n])}
        if 2 * _size(changed) <= _size(frozen):
            return self._identity, changed
        tensors = {n: fingerprint(frozen[n]) if n in frozen else UNKNOWN for n in self._identity.tensors}
        return dataclasses.replace(self._identity, checkpoint={}, tensors=tensors), {}

    def check_detachable(self) -> None:
        """Checks that undoing the edits gives back every bit.

        Raises:
            S2AError: Frozen weights are not those of ``attach`` any more.
        """
        names = {(id(module), leaf): name for name, (module, leaf) in self._places.items()}
        changed = [
            name
            for module, leaf, parameter in self._edits.frozen()
            if (name := names.get((id(module), leaf))) and not self._is_original(name, parameter)
        ]
        if changed:
            shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise S2AError(
                f"The backbone that was attached cannot be given back: its frozen weights were changed since ({shown}) "
                "by load_state_dict, an average of weights or in place. Create it anew from its checkpoint; what was "
                "trained stays in the adapted model, for s2a.save or s2a.merge."
            )

    def _is_original(self, name: str, parameter: nn.Parameter) -> bool:
        before = self._attached.tensors[name]
        if before is UNKNOWN or not before.known:
            module, leaf = self._places[name]
            return getattr(module, leaf).is_meta or not parameter.is_meta
        return is_unchanged(parameter, before)

    def extra_repr(self) -> str:
        """The config, for ``print(adapted)``."""
        return repr(self.config)


def apply_head(head: nn.Module, features: Tensor) -> Tensor:
    """Logits of features, in the head's dtype unless autocast says otherwise."""
    weight = next(head.parameters(), None)
    if weight is not None and features.dtype in HALVES and not torch.is_autocast_enabled(features.device.type):
        features = features.to(weight.dtype)  # Logits, and the loss made of them, in the head's dtype.
    return head(features)


def require_adapted(what: str, given: Any) -> Adapted:
    """What ``attach`` returned, as the function ``what`` takes it.

    Raises:
        S2AError: Something else; of a wrapper (``torch.compile``, ``DataParallel``) it names the module to give.
    """
    if isinstance(given, Adapted):
        return given
    inside = isinstance(given, nn.Module) and path_inside(given, lambda module: isinstance(module, Adapted))
    hint = f"; that is inside of it, at model.{inside}: give that" if inside else ""
    raise S2AError(f"{what} takes what s2a.attach returned, not {type(given).__name__}{hint}.")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def classes_of(head: nn.Module) -> int:
    """Outputs of a head's last layer; 0 where no layer says."""
    widths = [
        len(m.weight) if isinstance(m, nn.Linear | nn.Conv2d) else getattr(m, "out_features", None)
        for m in head.modules()
    ]
    return next((width for width in reversed(widths) if isinstance(width, int)), 0)


def new_head(width: int, num_classes: int) -> nn.Linear:
    """A linear layer of ``num_classes`` outputs in timm's initialisation."""
    head = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def refuse_reset(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Takes the place of ``reset_classifier`` of a backbone under a method, whose own classifier is set aside.

    Raises:
        S2AError: Always.
    """
    raise S2AError("The head is the adapted model's: call reset_classifier on what s2a.attach returned.")


def _below_backbone(pattern: str) -> str:
    """A regular expression for a model's names (``re.match``) as one for the same names behind ``backbone.``."""
    unanchored = re.sub(r"(?<![\\\[])\^", "", pattern)
    return rf"^backbone\.(?:{unanchored})"


def cast_frozen(adapted: Adapted, dtype: torch.dtype = torch.bfloat16) -> int:
    """Rounds the frozen weights of a backbone's linear and convolution layers to ``dtype``, in place.

    Trainable parameters, biases and norms stay as they are, so an optimiser works in full precision; the forward pass
    belongs under ``torch.autocast`` of the same dtype, whose copies of weights it saves. ``s2a.detach`` gives the
    rounded weights back: what was rounded off is gone.

    Args:
        adapted: What ``s2a.attach`` returned.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        Bytes saved.

    Raises:
        S2AError: Another dtype, or no adapted model.
    """
    adapted = require_adapted("cast_frozen", adapted)
    if dtype not in (torch.bfloat16, torch.float16):
        raise S2AError(f"dtype={dtype} must be torch.bfloat16 or torch.float16, which halve the frozen weights.")
    saved, device = 0, next(adapted.backbone.parameters()).device  # The first one is never paged.
    for module in adapted.backbone.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and weight is not None and not weight.requires_grad:
            saved += weight.numel() * (weight.element_size() - dtype.itemsize)
            if (page := page_of(module)) is None:
                weight.data = weight.data.to(dtype)
            else:
                set_home(weight, weight.detach().to(dtype), page.pager.pins_for(device))
    adapted._dtype = frozen_dtype(adapted.backbone, adapted._edits)
    return saved
