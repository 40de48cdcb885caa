"""Checks of forward and backward passes: logits, gradients, what is kept, number formats, compilers, learning."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2a.adapted import trainable_parameters
from s2a.attach import attach
from s2a.backbones import pooled_features
from s2a.memory import saved_bytes
from s2a.testing.case import STEPS, Case, require


def check_output(case: Case) -> None:
    """Logits have the shape (B, K), are finite, and the same for the same images."""
    adapted = case.attached()
    with torch.no_grad():
        width = adapted.method(adapted.backbone, case.images).shape[1]
    require(
        f"features are {width} wide, feature_dim is {adapted.method.feature_dim}", width != adapted.method.feature_dim
    )
    logits = case.logits(adapted)
    require(f"logits have shape {tuple(logits.shape)}", logits.shape != (len(case.images), case.num_classes))
    require("logits are not finite", not bool(logits.isfinite().all()))
    require("two forward passes in evaluation mode differ", not torch.equal(logits, case.logits(adapted)))


def check_identity(case: Case) -> None:
    """Where the method promises it, the backbone's features are unchanged at the start."""
    adapted = case.attached().eval()
    if not adapted.method.identity_at_start:
        return
    with torch.no_grad():
        expected = pooled_features(copy.deepcopy(case.model).eval(), case.images)
        features = adapted.method(adapted.backbone, case.images)[:, : expected.shape[1]]
    scale = float(expected.abs().max())
    require("features at the start are not the backbone's", not torch.allclose(features, expected, 1e-4, 1e-5 * scale))


def check_training(case: Case) -> None:
    """Gradients reach everything trainable, all of it moves, and nothing else does."""
    adapted = case.attached()
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in adapted.backbone.named_buffers()}
    trainable = trainable_parameters(adapted)
    require("not trainable", sorted({f"head.{n}" for n, _ in adapted.head.named_parameters()} - trainable.keys()))
    reached = case.trained(adapted)
    require(f"no gradient in {STEPS} steps", sorted(trainable.keys() - reached))
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
    require("trainable, but did not move", sorted(trainable.keys() - moved))
    require("frozen, but moved", sorted(moved - trainable.keys()))
    useless = [n for n, p in adapted.named_parameters() if n not in trainable and p.grad is not None]
    require("frozen, but has a gradient", useless)
    if not adapted.method.trains_backbone:
        changed = [n for n, b in adapted.backbone.named_buffers() if not torch.equal(b, buffers[n])]
        require("trains_backbone is False, but buffers changed", changed)
        kept = [n for n, size in saved_bytes(adapted, case.images).items() if n.startswith("backbone") and size]
        require("trains_backbone is False, but the backbone keeps tensors", kept)


def check_inference(case: Case) -> None:
    """Without gradient nothing is kept for a backward pass."""
    adapted = case.attached().eval()
    with torch.no_grad():
        kept = saved_bytes(adapted, case.images)
    require("kept without gradient", sorted(kept))


def check_keeps(case: Case) -> None:
    """The method's own modules hold for the backward pass what it declares, byte for byte; lean ones no more."""
    adapted = case.attached().train()
    measured = saved_bytes(adapted, case.images).shared
    own = {name.removeprefix("method").removeprefix("."): size for name, size in measured.items() if _is_own(name)}
    declared = {name: size for name, size in adapted.method.keeps(len(case.images)).items() if size}
    if getattr(case.config, "activations", "exact") == "lean":  # Codes of what is declared, of whole modules at a time.
        total, limit = sum(own.values()), sum(declared.values())
        require(f"{total} bytes are kept where exact activations are {limit}", total > limit)
        return
    wrong = [
        f"{name or 'the method itself'} keeps {own.get(name, 0)} bytes, declared {declared.get(name, 0)}"
        for name in sorted(own.keys() | declared.keys())
        if own.get(name, 0) != declared.get(name, 0)
    ]
    require("not what keeps() declares", wrong)


def _is_own(name: str) -> bool:
    return name == "method" or name.startswith("method.")


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
    require("gradient of another type under autocast", [n for n, p, g in found if g.dtype != p.dtype])
    require("gradient not finite under autocast", [n for n, _, g in found if not bool(g.isfinite().all())])
    near = torch.cat([g.flatten() for g in grads if g is not None])
    far = torch.cat([g.flatten() for g in exact if g is not None])
    cosine = float(F.cosine_similarity(near, far, dim=0))
    require(f"gradients under autocast have a cosine of {cosine:.3f} with the exact ones", cosine < 0.95)


def check_checkpointing(case: Case) -> None:
    """With timm's gradient checkpointing the gradients are the same."""
    adapted = case.attached().train()
    if not hasattr(adapted.backbone, "set_grad_checkpointing"):
        return
    for branch in adapted._branches:
        branch.recompute = "same"  # A checkpointed last block has other products to compute again.
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
    require("gradients differ under checkpointing", wrong)


def check_compile(case: Case) -> None:
    """Under ``torch.compile`` the logits are the same (traced, without a backend's own code generation)."""
    adapted = case.attached().eval()
    with torch.no_grad():
        logits = adapted(case.images)
        torch._dynamo.reset()
        compiled = torch.compile(adapted, backend="eager")(case.images)
    torch._dynamo.reset()
    scale = float(logits.abs().max())
    require("compiling changes the logits", not torch.allclose(logits, compiled, 1e-4, 1e-5 * scale))


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
    require(f"the loss on digits goes from {first:.3f} to {last:.3f} in {LEARNING_STEPS} steps", last > 0.98 * first)


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
