"""Every registered method keeps its promises on every family. A new method is tested without an edit here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import s2a
import torch
import torch.nn.functional as F
from method_contract import QUICK
from s2a import registry, testing
from s2a.backbones.edits import Edits
from tiny import CLASSES, MODELS, vit
from torch import Tensor, nn

PAIRS = list(itertools.product(s2a.list_methods(), MODELS))

SPECIAL = {
    ("adapter", "swin"),
    ("bias", "eva"),
    ("lora", "convnext_conv"),
    ("lst", "convnext"),
    ("ssf", "resnet"),
    ("unipt", "resnet"),
    ("vpt", "convnext"),
    ("vpt", "swin"),
}
"""Pairs whose method does on this family what it does not do on a plain ViT."""


def in_fast_ring(method: str, family: str) -> bool:
    """Whether a pair compiles and learns in the fast ring: every method on a ViT, S2A on every family, and those."""
    return family == "vit" or method == "s2a" or (method, family) in SPECIAL


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(*pair, marks=[] if pair[1] in ("swin", "convnext") or in_fast_ring(*pair) else pytest.mark.full)
        for pair in PAIRS
    ],
)
def test_method_keeps_its_promises(method: str, family: str) -> None:
    keep_promises(method, family, QUICK)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("method", "family"),
    # Compiling takes seconds: in the fast ring S2A on every family that is there, and LoRA on a ViT.
    [
        pytest.param(*p, marks=[] if in_fast_ring(*p) and (p[0] == "s2a" or p == ("lora", "vit")) else pytest.mark.full)
        for p in PAIRS
    ],
)
def test_method_compiles_and_learns(method: str, family: str) -> None:
    keep_promises(method, family, testing.SLOW_CHECKS)


def keep_promises(method: str, family: str, checks: Sequence[Callable[[testing.Case], None]]) -> None:
    make_model, size = MODELS[family]
    config = s2a.method_config(method)
    model = make_model()
    before = testing.snapshot(model)
    try:
        s2a.attach(model, config, CLASSES, image_size=size)
    except s2a.UnsupportedModel:  # A method may refuse a family, but cleanly.
        assert not testing.differences(before, testing.snapshot(model))
        return
    testing.check_method(config, make_model, CLASSES, image_size=size, checks=checks)


@pytest.mark.parametrize("method", s2a.list_methods())
def test_method_supports_a_plain_vit(method: str) -> None:
    make_model, size = MODELS["vit"]
    s2a.attach(make_model(), s2a.method_config(method), CLASSES, image_size=size)


# The check itself: a method that breaks one promise is found, and told which.


@dataclasses.dataclass(frozen=True)
class BrokenConfig:
    """Which promise the method below breaks."""

    fault: str = ""


class Broken(s2a.Method):
    """Features plus a learned vector, and one fault."""

    identity_at_start = True

    def __init__(self, config: BrokenConfig, backbone: Any, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.fault = config.fault
        self.shift = nn.Parameter(torch.zeros(backbone.features))
        self.other = nn.Parameter(torch.ones(2), requires_grad=config.fault == "unreached")
        if config.fault == "narrow":
            self.feature_dim -= 1
        if config.fault == "hook":
            backbone.model.blocks[0].register_forward_hook(_nothing)
        if config.fault == "attribute":
            backbone.model.note = 1
        if config.fault == "closure":
            backbone.model.norm.register_forward_hook(lambda module, args, out: out + self.shift)
        if config.fault == "keeps":
            self.trains_backbone = False
            edits.train(backbone.model.blocks[0].norm1.bias)
        if config.fault == "lambda":
            self.function = lambda x: x

    def forward(self, model: Any, images: Tensor) -> Tensor:
        if self.fault == "moves" or (self.fault == "drift" and self.training):
            with torch.no_grad():
                model.blocks[0].mlp.fc1.weight.add_(1e-3)
        features = super().forward(model, images) + (1 if self.fault == "start" else 0)
        if self.fault == "random":
            features = F.dropout(features, 0.5, training=True)
        if self.fault == "hidden":
            return features + self.shift * self.calls()
        return features + self.shift

    def calls(self) -> int:
        """State that no state_dict has."""
        self.count = getattr(self, "count", 0) + self.training
        return self.count


def _nothing(module: nn.Module, args: object, out: object) -> None:
    """A hook that nobody takes off."""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("drift", "frozen, but moved: backbone.blocks.0.mlp.fc1.weight"),
        ("", "nothing is wrong"),
        ("narrow", "features are 64 wide, feature_dim is 63"),
        ("random", "two forward passes in evaluation mode differ"),
        ("start", "features at the start are not the backbone's"),
        ("unreached", "no gradient in 3 steps: method.other"),
        ("moves", "evaluation mode differ"),
        ("keeps", "trains_backbone is False, but the backbone keeps tensors"),
        ("hook", "detach did not restore: hooks of 'blocks.0'"),
        ("attribute", "detach did not restore: module ''"),
        ("hidden", "save and load change the logits"),
        ("lambda", "cannot be pickled"),
        ("closure", "detach did not restore: hooks of 'norm'"),
    ],
)
def test_a_broken_promise_is_found(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s2a.list_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    s2a.register_method("broken", BrokenConfig)(Broken)
    if not fault:
        testing.check_method(BrokenConfig(), vit)
        return
    with pytest.raises(AssertionError, match=message):
        testing.check_method(BrokenConfig(fault), vit)


def test_checking_leaves_the_random_state() -> None:
    state = torch.random.get_rng_state()
    testing.check_method(s2a.method_config("linear"), vit)
    assert torch.equal(state, torch.random.get_rng_state())
