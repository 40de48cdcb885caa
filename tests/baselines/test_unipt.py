"""UniPT against its equations, written out with loops over images, tokens and patches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_baselines.unipt import UniPTConfig, split_patches
from torch import Tensor, nn

EPS = 1e-6
TOKENS = ("vit", "vit_registers", "eva")
MAPS = ("swin", "convnext", "convnext_conv", "resnet")
LAST_BLOCKS = {
    "swin": [f"layers.{s}.blocks.{i}" for s, i in ((0, 1), (1, 1), (2, 0))],
    "convnext": [f"stages.{s}.blocks.{i}" for s, i in ((0, 0), (1, 0), (2, 1), (3, 0))],
    "resnet": [f"layer{s}.0" for s in (1, 2, 3, 4)],
}
LAST_BLOCKS["convnext_conv"] = LAST_BLOCKS["convnext"]


def attached(name: str, side: int | None = None, **options: Any) -> tuple[Any, Any, Tensor]:
    """A plain tiny model in evaluation mode, an adapted copy away from its start, and images, all in float64."""
    make_model, size = tiny.MODELS[name]
    size = side or size
    model = make_model().eval().double()
    adapted = s2a.attach(copy.deepcopy(model), UniPTConfig(**options), tiny.CLASSES, image_size=size)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, adapted, torch.randn(2, 3, size, size, dtype=torch.float64)


@torch.no_grad()
def states(model: Any, images: Tensor, places: list[tuple[str, bool]]) -> list[Tensor]:
    """Input (False) or output (True) of modules of the plain model."""
    found: dict[int, Tensor] = {}

    def keep(index: int, after: bool) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[index] = (output if after else args[0]).clone()

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(i, a)) for i, (n, a) in enumerate(places)]
    model.forward_features(images)
    for handle in handles:
        handle.remove()
    return [found[i] for i in range(len(places))]


# The oracle. Weights are looked up by name and every product is spelled out; it calls nothing of the code under test.


class Weights(dict[str, Tensor]):
    """Leaves of the oracle: copies of the method's parameters."""

    def linear(self, path: str, x: Tensor) -> Tensor:
        """W x + b of one vector."""
        weight, bias = self[f"{path}.weight"], self[f"{path}.bias"]
        return torch.stack([(weight[o] * x).sum() for o in range(len(weight))]) + bias

    def layer_norm(self, path: str, x: Tensor) -> Tensor:
        """One vector over its channels."""
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * self[f"{path}.weight"] + self[f"{path}.bias"]

    def batch_norm(self, path: str, x: Tensor, running: tuple[Tensor, Tensor] | None) -> Tensor:
        """Every channel of ``(B, P, m)`` over images and positions, or by running mean and variance."""
        mean, variance = running or (x.mean((0, 1)), x.var((0, 1), correction=0))
        return (x - mean) / (variance + 1e-5).sqrt() * self[f"{path}.weight"] + self[f"{path}.bias"]


class Oracle:
    """The equations. ``running`` holds the batch norms' statistics in evaluation mode, and is empty in training."""

    def __init__(self, method: nn.Module, batch_norm: bool, training: bool) -> None:
        self.weights = Weights({n: p.detach().clone().requires_grad_() for n, p in method.named_parameters()})
        self.batch_norm = batch_norm
        self.running = {}
        for name, module in method.named_modules():
            if isinstance(module, nn.BatchNorm1d) and not training:
                assert module.running_mean is not None and module.running_var is not None
                self.running[name] = module.running_mean.clone(), module.running_var.clone()

    def project(self, path: str, x: Tensor) -> Tensor:
        """norm(W x + b), ``(B, P, C)`` to ``(B, P, m)``."""
        w = self.weights
        y = torch.stack([torch.stack([w.linear(f"{path}.layer", v) for v in image]) for image in x])
        if self.batch_norm:
            return w.batch_norm(f"{path}.norm", y, self.running.get(f"{path}.norm"))
        return torch.stack([torch.stack([w.layer_norm(f"{path}.norm", v) for v in image]) for image in y])

    def mix(self, anchor: Tensor, targets: list[Tensor]) -> Tensor:
        """A and all T_k ``(B, N, m)`` to ``(B, N, C)``."""
        w, merged = self.weights, []
        for b, a in enumerate(anchor):
            total, products, scores = torch.zeros_like(a), [], []
            for target in targets:
                t = target[b]
                rows = []
                for i in range(len(a)):
                    row = torch.stack([(a[i] * t[j]).sum().clamp(min=0) for j in range(len(t))])
                    row = row / (row.abs().sum() + EPS) + torch.eye(len(t), dtype=t.dtype)[i]
                    rows.append((row[:, None] * t).sum(0))
                products.append(torch.stack(rows))
                if "mixer.gate.weight" in w:
                    scores.append(w.linear("mixer.gate", a.mean(0) * t.mean(0)))
            exponents = [score.exp() for score in scores] or [torch.ones(1, dtype=a.dtype)]
            for exponent, product in zip(exponents, products, strict=True):
                total = total + exponent / sum(exponents) * product
            merged.append(total)
        out = anchor + self.project("mixer.merge", torch.stack(merged))
        return torch.stack([torch.stack([w.linear("mixer.up", v.clamp(min=0)) for v in image]) for image in out])

    def tokens(self, taps: list[Tensor]) -> Tensor:
        """The whole token version, before pooling."""
        reduced = [self.project(f"reduce.{k}", tap) for k, tap in enumerate(taps)]
        return self.mix(reduced[-1], reduced[:-1])

    def maps(self, taps: list[Tensor], before: bool) -> Tensor:
        """The whole map version on ``(B, H, W, C)``; every position finds its patch as nearest upsampling would."""
        last, reduced = taps[-1], []
        batch, rows, columns, _ = last.shape
        for k, h in enumerate(taps[:-1]):
            height, width = h.shape[1:3]
            members: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for i in range(height):
                for j in range(width):
                    members.setdefault((i * rows // height, j * columns // width), []).append((i, j))
            assert len(members) == rows * columns
            largest = -(-height // rows) * -(-width // columns)
            values = h
            if before:
                values = self.project(f"reduce.{k}", h.flatten(1, 2)).unflatten(1, (height, width))
            images = []
            for b in range(batch):
                sums = []
                for p in range(rows):
                    for q in range(columns):
                        u = self.weights.linear(f"weigh.{k}.layer", last[b, p, q]).clamp(min=0)
                        raw = [(u * h[b, i, j]).sum().clamp(min=0) for i, j in members[p, q]]
                        shares = [r / (sum(raw) + EPS) + 1 / largest for r in raw]
                        found = [s * values[b, i, j] for s, (i, j) in zip(shares, members[p, q], strict=True)]
                        sums.append(torch.stack(found).sum(0))
                images.append(torch.stack(sums))
            target = torch.stack(images)
            reduced.append(target if before else self.project(f"reduce.{k}", target))
        anchor = self.project(f"reduce.{len(taps) - 1}", last.flatten(1, 2))
        return self.mix(anchor, reduced)


def compare(adapted: Any, images: Tensor, oracle: Oracle, expected: Tensor) -> None:
    """Outputs and the gradients of every parameter."""
    found = adapted.method(adapted.backbone, images)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    parameters = dict(adapted.method.named_parameters())
    assert parameters.keys() == oracle.weights.keys()
    for name, leaf in oracle.weights.items():
        grad = parameters[name].grad
        assert grad is not None and leaf.grad is not None
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert not any(p.requires_grad or p.grad is not None for p in adapted.backbone.parameters())


@pytest.mark.parametrize("name", TOKENS)
def test_token_version_is_its_equations(name: str) -> None:
    model, adapted, images = attached(name, reduction=16)
    taps = states(model, images, [("blocks.0", False), ("blocks.0", True), ("blocks.1", True)])
    oracle = Oracle(adapted.method, batch_norm=False, training=False)
    tokens = oracle.tokens(taps)
    compare(adapted, images, oracle, tokens[:, 0] if model.global_pool == "token" else tokens[:, 1:].mean(1))


@pytest.mark.parametrize("project", ["before", "after"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MAPS)
def test_map_version_is_its_equations(name: str, training: bool, project: str) -> None:
    model, adapted, images = attached(name, 32 if name != "swin" else None, project=project, reduction=16)
    for module in adapted.method.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    adapted.train(training)
    taps = states(model, images, [(block, True) for block in LAST_BLOCKS[name]])
    if name != "swin":
        taps = [tap.permute(0, 2, 3, 1) for tap in taps]
    oracle = Oracle(adapted.method, batch_norm=True, training=training)
    compare(adapted, images, oracle, oracle.maps(taps, project == "before").mean(1))


@pytest.mark.parametrize(("name", "side"), [("convnext", 84), ("resnet", 36), ("resnet", 44)])
def test_maps_of_odd_sides(name: str, side: int) -> None:
    model, adapted, images = attached(name, side, reduction=16)
    taps = [t.permute(0, 2, 3, 1) for t in states(model, images, [(block, True) for block in LAST_BLOCKS[name]])]
    assert any(tap.shape[1] % taps[-1].shape[1] for tap in taps)
    oracle = Oracle(adapted.train().method, batch_norm=True, training=True)
    compare(adapted, images, oracle, oracle.maps(taps, before=False).mean(1))


@pytest.mark.parametrize(("name", "taps"), [("vit", (1,)), ("swin", (1,)), ("convnext", (3,))])
def test_one_target_needs_no_gate(name: str, taps: tuple[int, ...]) -> None:
    model, adapted, images = attached(name, taps=taps, reduction=16)
    assert adapted.method.mixer.gate is None
    if name == "vit":
        oracle = Oracle(adapted.method, batch_norm=False, training=False)
        expected = oracle.tokens(states(model, images, [("blocks.0", True), ("blocks.1", True)]))[:, 0]
    else:
        places = [(LAST_BLOCKS[name][i], True) for i in (taps[0] - 1, -1)]
        found = states(model, images, places)
        found = found if name == "swin" else [tap.permute(0, 2, 3, 1) for tap in found]
        oracle = Oracle(adapted.method, batch_norm=True, training=False)
        expected = oracle.maps(found, before=name == "swin").mean(1)
    compare(adapted, images, oracle, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20), st.integers(0, 20))
def test_patches_are_what_nearest_upsampling_covers(rows: int, columns: int, more: int, wider: int) -> None:
    """Every position is in one patch, that of the position it would be upsampled from; the rest is zero."""
    height, width = rows + more, columns + wider
    x = 1.0 + torch.arange(height * width, dtype=torch.float32).view(1, height, width, 1)
    patches = split_patches(x, (rows, columns))
    assert patches.is_contiguous()
    assert patches.shape == (1, rows * columns, -(-height // rows) * -(-width // columns), 1)
    upsampled = torch.tensor(
        [[i * rows // height * columns + j * columns // width for j in range(width)] for i in range(height)]
    )
    for p in range(rows * columns):
        inside = patches[0, p, :, 0]
        assert sorted(inside[inside > 0].tolist()) == sorted(x[0, ..., 0][upsampled == p].tolist())


def test_average_pooled_vit_reads_the_patches() -> None:
    make_model = lambda: tiny.vit(global_pool="avg")  # noqa: E731
    model = make_model().eval()
    adapted = s2a.attach(make_model(), UniPTConfig(), 5, image_size=32).eval()
    adapted.backbone.load_state_dict(
        {n: v for n, v in model.state_dict().items() if not n.startswith("head.")}, strict=False
    )
    images = torch.randn(2, 3, 32, 32)
    taps = states(model, images, [("blocks.0", False), ("blocks.0", True), ("blocks.1", True)])
    method: Any = adapted.method
    reduced = [layer(tap) for layer, tap in zip(method.reduce, taps, strict=True)]
    expected = method.mixer(reduced[-1], reduced[:-1])[:, 1:].mean(1)
    torch.testing.assert_close(method(adapted.backbone, images), expected)
