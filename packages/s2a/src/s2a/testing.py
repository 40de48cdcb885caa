"""What every method must keep to, as a check that any package can call on its own method.

``check_method(config, make_model)`` raises an ``AssertionError`` that names the first promise broken. It needs no test
framework, trains tiny models only a few steps, and leaves the random state as it was.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a.adapted import Adapted, trainable_parameters
from s2a.attach import attach, detach, merge
from s2a.backbones import describe, input_channels, pooled_features
from s2a.errors import S2AError
from s2a.memory import saved_bytes
from s2a.registry import Method
from s2a.state import load, save

STEPS = 3
"""Optimiser steps of a check: a parameter behind two zero-initialised ones gets its first gradient in the third."""


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that attaching and detaching must leave as it was: values, flags, modes, hooks, layout."""
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"value of {name}"] = tensor.detach().clone()
        found[f"requires_grad of {name}"] = tensor.requires_grad
        found[f"grad of {name}"] = tensor.grad
    for name, module in model.named_modules():
        found[f"module {name!r}"] = (type(module), module.training, sorted(module.__dict__), sorted(module._modules))
        found[f"hooks of {name!r}"] = (len(module._forward_pre_hooks), len(module._forward_hooks))
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two snapshots; values are compared bit for bit."""
    found = sorted(before.keys() ^ after.keys())
    for key in before.keys() & after.keys():
        one, other = before[key], after[key]
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one, other):
                found.append(key)
        elif one is not other and one != other:
            found.append(key)
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on one backbone.

    Attributes:
        config: The method's config.
        model: The backbone as it came; checks work on copies.
        num_classes: Classes of the head.
        images: A batch of noise.
    """

    config: Any
    model: nn.Module
    num_classes: int
    images: Tensor

    def attached(self) -> Adapted:
        """A copy of the backbone under the method."""
        size = (self.images.shape[-2], self.images.shape[-1])
        return attach(copy.deepcopy(self.model), self.config, self.num_classes, image_size=size)

    def loss(self, adapted: nn.Module) -> Tensor:
        """Cross-entropy against labels that use all classes."""
        return F.cross_entropy(adapted(self.images), torch.arange(len(self.images)) % self.num_classes)

    def trained(self, adapted: Adapted) -> set[str]:
        """Trains some steps; the names of the parameters that met a gradient other than zero."""
        parameters = trainable_parameters(adapted)
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0)
        reached: set[str] = set()
        adapted.train()
        for _ in range(STEPS):
            optimizer.zero_grad()
            self.loss(adapted).backward()
            reached |= {n for n, p in parameters.items() if p.grad is not None and bool((p.grad != 0).any())}
            optimizer.step()
        return reached

    def logits(self, adapted: nn.Module) -> Tensor:
        """Logits of the batch in evaluation mode."""
        adapted.eval()
        with torch.no_grad():
            return adapted(self.images)


def _require(promise: str, broken: Sequence[str] | bool) -> None:
    if isinstance(broken, bool):
        broken = [""] if broken else []
    if broken:
        shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
        raise AssertionError(f"{promise}{f': {shown}' if shown else ''}.")


def check_output(case: Case) -> None:
    """Logits have the shape (B, K), are finite, and the same for the same images."""
    adapted = case.attached()
    with torch.no_grad():
        width = adapted.method(adapted.backbone, case.images).shape[1]
    _require(
        f"features are {width} wide, feature_dim is {adapted.method.feature_dim}", width != adapted.method.feature_dim
    )
    logits = case.logits(adapted)
    _require(f"logits have shape {tuple(logits.shape)}", logits.shape != (len(case.images), case.num_classes))
    _require("logits are not finite", not bool(logits.isfinite().all()))
    _require("two forward passes in evaluation mode differ", not torch.equal(logits, case.logits(adapted)))


def check_identity(case: Case) -> None:
    """Where the method promises it, the backbone's features are unchanged at the start."""
    adapted = case.attached().eval()
    if not adapted.method.identity_at_start:
        return
    with torch.no_grad():
        expected = pooled_features(copy.deepcopy(case.model).eval(), case.images)
        features = adapted.method(adapted.backbone, case.images)[:, : expected.shape[1]]
    scale = float(expected.abs().max())
    _require("features at the start are not the backbone's", not torch.allclose(features, expected, 1e-4, 1e-5 * scale))


def check_training(case: Case) -> None:
    """Gradients reach everything trainable, all of it moves, and nothing else does."""
    adapted = case.attached()
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in adapted.backbone.named_buffers()}
    trainable = trainable_parameters(adapted)
    _require("not trainable", sorted({f"head.{n}" for n, _ in adapted.head.named_parameters()} - trainable.keys()))
    reached = case.trained(adapted)
    _require(f"no gradient in {STEPS} steps", sorted(trainable.keys() - reached))
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
    _require("trainable, but did not move", sorted(trainable.keys() - moved))
    _require("frozen, but moved", sorted(moved - trainable.keys()))
    useless = [n for n, p in adapted.named_parameters() if n not in trainable and p.grad is not None]
    _require("frozen, but has a gradient", useless)
    if not adapted.method.trains_backbone:
        changed = [n for n, b in adapted.backbone.named_buffers() if not torch.equal(b, buffers[n])]
        _require("trains_backbone is False, but buffers changed", changed)
        kept = [n for n, size in saved_bytes(adapted, case.images).items() if n.startswith("backbone") and size]
        _require("trains_backbone is False, but the backbone keeps tensors", kept)


def check_detach(case: Case) -> None:
    """Detaching restores the backbone bit for bit, before and after training, and it can be adapted again."""
    model = copy.deepcopy(case.model)
    size = (case.images.shape[-2], case.images.shape[-1])
    before = snapshot(model)
    for steps in (False, True):
        adapted = attach(model, case.config, case.num_classes, image_size=size)
        if steps:
            case.trained(adapted)
            adapted.train(case.model.training)
        back = detach(adapted)
        _require("detach returned another object", back is not model)
        _require("detach did not restore", differences(before, snapshot(model)))


def check_state(case: Case) -> None:
    """Saved and loaded, copied, pickled, or moved by ``state_dict``: the logits are the same bit for bit."""
    adapted = case.attached()
    case.trained(adapted)
    logits = case.logits(adapted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save(adapted, path)
        loaded = load(copy.deepcopy(case.model), path)
    _require("save and load change the logits", not torch.equal(logits, case.logits(loaded)))
    stream = io.BytesIO()
    try:
        torch.save(adapted, stream)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise AssertionError(f"the adapted model cannot be pickled: {error}") from error
    stream.seek(0)
    pickled = torch.load(stream, weights_only=False)
    _require("pickling changes the logits", not torch.equal(logits, case.logits(pickled)))
    other = case.attached()
    other.load_state_dict(adapted.state_dict())
    _require("state_dict does not carry the logits", not torch.equal(logits, case.logits(other)))


def check_copy(case: Case) -> None:
    """A deep copy is the same function, and independent: training or detaching it does not touch the original."""
    adapted = case.attached()
    logits = case.logits(adapted)
    copied = copy.deepcopy(adapted)
    _require("a deep copy has other logits", not torch.equal(logits, case.logits(copied)))
    _require(
        "a deep copy gets no gradient somewhere", sorted(trainable_parameters(copied).keys() - case.trained(copied))
    )
    detach(copied)
    _require("training and detaching a deep copy changed the original", not torch.equal(logits, case.logits(adapted)))


def check_inference(case: Case) -> None:
    """Without gradient nothing is kept for a backward pass."""
    adapted = case.attached().eval()
    with torch.no_grad():
        kept = saved_bytes(adapted, case.images)
    _require("kept without gradient", sorted(kept))


def check_keeps(case: Case) -> None:
    """The method's own modules hold for the backward pass what it declares, byte for byte; lean ones no more."""
    adapted = case.attached().train()
    measured = saved_bytes(adapted, case.images).shared
    own = {name.removeprefix("method").removeprefix("."): size for name, size in measured.items() if _is_own(name)}
    declared = {name: size for name, size in adapted.method.keeps(len(case.images)).items() if size}
    if getattr(case.config, "activations", "exact") == "lean":  # Codes of what is declared, of whole modules at a time.
        total, limit = sum(own.values()), sum(declared.values())
        _require(f"{total} bytes are kept where exact activations are {limit}", total > limit)
        return
    wrong = [
        f"{name or 'the method itself'} keeps {own.get(name, 0)} bytes, declared {declared.get(name, 0)}"
        for name in sorted(own.keys() | declared.keys())
        if own.get(name, 0) != declared.get(name, 0)
    ]
    _require("not what keeps() declares", wrong)


def _is_own(name: str) -> bool:
    return name == "method" or name.startswith("method.")


def check_merge(case: Case) -> None:
    """A method that can be merged becomes a plain model of the same logits; one that cannot says so, undisturbed."""
    adapted = case.attached()
    case.trained(adapted)
    logits = case.logits(adapted)
    if type(adapted.method).fold is Method.fold:
        try:
            merge(adapted)
        except S2AError:
            _require("refusing to merge changed the logits", not torch.equal(logits, case.logits(adapted)))
            return
        raise AssertionError("fold is not written, yet merging went through.")
    merged = merge(adapted).eval()
    with torch.no_grad():
        plain = merged(case.images)
    scale = float(logits.abs().max())
    _require("merging changes the logits", not torch.allclose(plain, logits, 1e-3, 1e-4 * scale))
    _require("a merged model has other parts than the plain one", _layout(merged) != _layout(case.model))
    _require("merging changed the adapted model", not torch.equal(logits, case.logits(adapted)))


def _layout(model: nn.Module) -> list[tuple[str, type, int]]:
    return [(n, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for n, m in model.named_modules()]


def check_autocast(case: Case) -> None:
    """Under bf16 autocast a training step gives finite gradients of the parameters' own type, near the exact ones."""
    adapted = case.attached().train()
    state = torch.random.get_rng_state()
    exact = torch.autograd.grad(case.loss(adapted), list(trainable_parameters(adapted).values()), allow_unused=True)
    torch.random.set_rng_state(state)  # The same dropout.
    with torch.autocast("cpu", torch.bfloat16):
        loss = case.loss(adapted)
    names, parameters = zip(*trainable_parameters(adapted).items(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [(n, p, g) for n, p, g in zip(names, parameters, grads, strict=True) if g is not None]
    _require("gradient of another type under autocast", [n for n, p, g in found if g.dtype != p.dtype])
    _require("gradient not finite under autocast", [n for n, _, g in found if not bool(g.isfinite().all())])
    near = torch.cat([g.flatten() for g in grads if g is not None])
    far = torch.cat([g.flatten() for g in exact if g is not None])
    cosine = float(F.cosine_similarity(near, far, dim=0))
    _require(f"gradients under autocast have a cosine of {cosine:.3f} with the exact ones", cosine < 0.95)


def check_checkpointing(case: Case) -> None:
    """With timm's gradient checkpointing the gradients are the same."""
    adapted = case.attached().train()
    if not hasattr(adapted.backbone, "set_grad_checkpointing"):
        return
    gradients = []
    for enable in (False, True):
        adapted.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = case.loss(adapted)
            gradients.append(torch.autograd.grad(loss, list(trainable_parameters(adapted).values()), allow_unused=True))
    adapted.backbone.set_grad_checkpointing(False)  # type: ignore[operator]
    wrong = [
        name
        for name, one, other in zip(trainable_parameters(adapted), *gradients, strict=True)
        if (one is None) != (other is None) or (one is not None and not torch.allclose(one, other, 1e-4, 1e-6))
    ]
    _require("gradients differ under checkpointing", wrong)


def check_compile(case: Case) -> None:
    """Under ``torch.compile`` the logits are the same (traced, without a backend's own code generation)."""
    adapted = case.attached().eval()
    with torch.no_grad():
        logits = adapted(case.images)
        torch._dynamo.reset()
        compiled = torch.compile(adapted, backend="eager")(case.images)
    torch._dynamo.reset()
    scale = float(logits.abs().max())
    _require("compiling changes the logits", not torch.allclose(logits, compiled, 1e-4, 1e-5 * scale))


LEARNING_STEPS = 30


def check_learning(case: Case) -> None:
    """The loss on 32 real digits (scikit-learn's, 8 x 8 pixels enlarged) falls within 30 steps."""
    images, labels = _digits(case.images)
    size = (case.images.shape[-2], case.images.shape[-1])
    adapted = attach(copy.deepcopy(case.model), case.config, 10, image_size=size).train()
    optimizer = torch.optim.AdamW(trainable_parameters(adapted).values(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(LEARNING_STEPS):
        loss = F.cross_entropy(adapted(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = losses[0], sum(losses[-3:]) / 3
    # A random backbone leaves a linear probe little to see: it is the direction that counts.
    _require(f"the loss on digits goes from {first:.3f} to {last:.3f} in {LEARNING_STEPS} steps", last > 0.98 * first)


def _digits(like: Tensor) -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("check_learning trains on scikit-learn's digits: pip install scikit-learn.") from error
    data: Any = load_digits()
    images = (
        torch.as_tensor(data.images[:32], dtype=torch.float32).unsqueeze(1).expand(-1, like.shape[1], -1, -1) / 8 - 1
    )
    return F.interpolate(images, like.shape[-2:], mode="bilinear"), torch.as_tensor(data.target[:32]).long()


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_output,
    check_identity,
    check_training,
    check_detach,
    check_state,
    check_copy,
    check_inference,
    check_keeps,
    check_merge,
    check_autocast,
    check_checkpointing,
    check_compile,
    check_learning,
)
"""Every check, in the order in which ``check_method`` runs them."""

SLOW_CHECKS = (check_compile, check_learning)
"""Those that take seconds; each of the others takes a few hundredths of one."""


def check_method(
    config: Any,
    make_model: Callable[[], nn.Module],
    num_classes: int = 5,
    *,
    image_size: int | Sequence[int] | None = None,
    batch_size: int = 4,
    checks: Sequence[Callable[[Case], None]] | None = None,
) -> None:
    """Checks a method on a backbone.

    Args:
        config: The method's config.
        make_model: Makes the timm model; take a tiny one.
        num_classes: Classes of the head.
        image_size: Side, or height and width, of the images; ``None`` takes the model's own.
        batch_size: Images per step.
        checks: Which of ``CHECKS`` to run; ``None``: all of them.

    Raises:
        AssertionError: A promise is broken; the message says which, and by what.
        S2AError: The method refuses the config or the model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model()
        size = describe(model, image_size).image_size
        case = Case(config, model, num_classes, torch.randn(batch_size, input_channels(model), *size))
        for check in CHECKS if checks is None else checks:
            check(case)
