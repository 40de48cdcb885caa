"""Who changes a block, or looks into it, gets what the stock block gives, with a warning where fusion ends."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
from lean_models import assert_same, gradients, images_for, keep_all, pair
from s2a.backbones import calls
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Twice(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the value."""
        return 2 * x


def half(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook that changes what comes out."""
    return output / 2


def halved(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook that changes what goes in."""
    return (args[0] / 2, *args[1:])


def backward_half(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A full backward hook that changes a gradient."""
    return tuple(None if grad is None else grad / 2 for grad in inputs)


def replaced(path: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    """Puts another module at a path."""

    def change(block: Any) -> None:
        block.set_submodule(path, make(block.get_submodule(path)))

    return change


def drawn(old: nn.Linear) -> nn.Linear:
    """A linear layer of the same size and other weights."""
    new = nn.Linear(old.in_features, old.out_features)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.normal_(std=0.1, generator=generator)
            parameter.requires_grad_(False)
    return new


class Scaled(nn.Linear):
    """A linear layer of a class of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore
        """Three times the layer's."""
        return 3 * super().forward(x)


def scaled(old: nn.Linear) -> nn.Linear:
    """The same weights under the class above."""
    new = Scaled(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    return new.requires_grad_(False)


class Foreign(nn.Module):
    """Attention or an MLP of someone else's: one layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """The layer alone."""
        return self.layer(x)


def other_body(old: nn.Module) -> nn.Module:
    """A module in a body's place that knows nothing of lean activations."""
    width = old.get_submodule("proj" if hasattr(old, "proj") else "fc1").in_features  # type: ignore[operator]
    return Foreign(drawn(nn.Linear(width, width)))  # type: ignore


def used(module: nn.Module) -> Tensor:
    """A number that all biases have a part in, so that each has a gradient."""
    return torch.stack([p.sum() for p in module.parameters() if p.requires_grad]).sum()


def own_forward(path: str) -> Callable[[Any], None]:
    """Replaces a body's forward on the instance."""

    def change(block: Any) -> None:
        block.get_submodule(path).forward = lambda x, *args, **kwargs: 2 * x + 0 * used(block.get_submodule(path))

    return change


def hooked(path: str, kind: str, hook: Any) -> Callable[[Any], Any]:
    """Registers a hook."""
    return lambda block: getattr(block.get_submodule(path), f"register_{kind}")(hook)


def parametrized(path: str) -> Callable[[Any], Any]:
    """Registers a parametrisation of a weight."""
    return lambda block: parametrize.register_parametrization(block.get_submodule(path), "weight", Twice())


WARNED: dict[str, Callable[[Any], None]] = {
    **{f"hook on {p}": hooked(p, "forward_hook", half) for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
    **{f"hook on {p}": hooked(p, "forward_hook", half) for p in ("norm2", "mlp", "mlp.act", "mlp.drop1", "attn")},
    **{f"pre-hook on {p}": hooked(p, "forward_pre_hook", halved) for p in ("attn", "mlp", "attn.qkv", "mlp.act")},
    **{f"backward hook on {p}": hooked(p, "full_backward_hook", backward_half) for p in ("attn.qkv", "norm1", "mlp")},
    "own qkv": replaced("attn.qkv", scaled),
    "own fc2": replaced("mlp.fc2", scaled),
    "own activation": replaced("mlp.act", lambda old: nn.Softplus()),
    "own norm of queries": replaced("attn.q_norm", lambda old: nn.LayerNorm(32)),
    "own attention": replaced("attn", other_body),
    "own MLP": replaced("mlp", other_body),
    "own dropout": replaced("attn.attn_drop", lambda old: nn.Dropout(0.5)),
    "attention's forward": own_forward("attn"),
    "MLP's forward": own_forward("mlp"),
    "parametrised qkv": parametrized("attn.qkv"),
    "parametrised fc1": parametrized("mlp.fc1"),
    "parametrised norm": parametrized("norm1"),
}
"""Changes after which a branch's layers run one by one."""

SILENT: dict[str, Callable[[Any], None]] = {
    "hook on the block": hooked("", "forward_hook", half),
    "pre-hook on the block": hooked("", "forward_pre_hook", halved),
    "backward hook on the block": hooked("", "full_backward_hook", backward_half),
    "pre-hook on a norm": hooked("norm1", "forward_pre_hook", halved),
    "hook behind attention": hooked("attn.proj_drop", "forward_hook", half),
    "hook behind the MLP": hooked("mlp.drop2", "forward_hook", half),
    "another linear layer": replaced("mlp.fc1", drawn),
    "another activation": replaced("mlp.act", lambda old: nn.SiLU()),
    "another norm": replaced("norm1", lambda old: nn.LayerNorm(64).requires_grad_(False)),
    "weights written anew": lambda block: block.mlp.fc1.weight.data.mul_(2),
}
"""Changes that a fused branch knows how to take, or that end it without harm."""


@contextlib.contextmanager
def one_warning(text: str) -> Iterator[None]:
    """Exactly one warning, with ``text`` in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [text in str(warning.message) for warning in caught] == [True], [str(w.message) for w in caught]


def changed(change: Callable[[Any], None], family: str = "vit", method: str = "bias") -> tuple[Any, Any, Tensor]:
    """Exact and lean models whose first block was changed alike, in training mode."""
    exact, lean = (model.train() for model in pair(family, method))
    keep_all(lean)
    for model in (exact, lean):
        change(model.backbone.blocks[0])
    return exact, lean, images_for(family)


@pytest.mark.parametrize("name", WARNED)
def test_a_changed_branch_falls_back_and_says_so_once(name: str) -> None:
    exact, lean, images = changed(WARNED[name])
    found = []
    for i, model in enumerate((exact, lean, lean)):
        torch.manual_seed(1)
        with one_warning("Block blocks.0 was changed") if i == 1 else contextlib.nullcontext():
            found.append(gradients(model, images))
    for lean_grads in found[1:]:
        assert_same(lean_grads, found[0], 2e-2 if "MLP" in name or "mlp" in name or "fc" in name else 1e-3)


@pytest.mark.parametrize("name", SILENT)
def test_other_changes_are_taken_as_they_are(name: str) -> None:
    exact, lean, images = changed(SILENT[name])
    assert_same(gradients(lean, images), gradients(exact, images), 1e-3)


@pytest.mark.parametrize("name", ["hook on attn.qkv", "own MLP", "attention's forward", "parametrised norm"])
@pytest.mark.parametrize("mode", ["no gradient", "copied"])
def test_a_changed_block_is_right_in_every_mode(name: str, mode: str) -> None:
    exact, lean, images = changed(WARNED[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if mode == "copied":
            if name == "attention's forward":
                pytest.skip("a copy's own forward is the original's")
            lean = copy.deepcopy(lean)
            assert_same(gradients(lean, images), gradients(exact, images), 2e-2)
        with torch.no_grad():
            torch.testing.assert_close(lean(images), exact(images), rtol=1e-4, atol=1e-4)


def test_only_the_changed_branch_keeps_more() -> None:
    lean = pair("vit", "bias")[1].train()
    before = s2a.saved_bytes(lean, images_for("vit"))
    lean.backbone.blocks[0].attn.qkv.register_forward_hook(half)
    with one_warning("qkv has a hook"):
        after = s2a.saved_bytes(lean, images_for("vit"))
    for name, size in before.items():
        assert after[name] == size or name.startswith(("backbone.blocks.0.attn", "backbone.blocks.0.norm1"))


def test_hooks_that_only_look_see_what_they_would() -> None:
    exact, lean, images = changed(lambda block: None)
    seen: dict[str, list[Tensor]] = {}
    for model in (exact, lean):
        for path in ("blocks.0", "blocks.0.attn.proj_drop", "blocks.1", "norm"):
            seen.setdefault(path, [])
            module = model.backbone.get_submodule(path)
            module.register_forward_hook(lambda m, a, out, path=path: seen[path].append(out.detach()))
    for model in (exact, lean):
        model(images)
    for one, other in seen.values():
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_parts_called_by_themselves_are_stock() -> None:
    """Outside of its block's forward pass a norm is a norm, and attention takes what it is given."""
    exact, lean, _ = changed(lambda block: None)
    x = torch.randn(2, 65, 64, requires_grad=True)
    for path in ("norm1", "norm2", "attn", "mlp", ""):
        one, other = (model.backbone.blocks[0].get_submodule(path)(x) for model in (exact, lean))
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(out.sin().sum(), x)[0] for out in (one, other)]
        torch.testing.assert_close(grads[1], grads[0], rtol=5e-2, atol=5e-2)


def test_a_mask_given_to_a_block_is_used() -> None:
    exact, lean, _ = changed(lambda block: None)
    x = torch.randn(2, 65, 64, requires_grad=True)
    mask = torch.rand(65, 65) < 0.7
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        one, other = (model.backbone.blocks[0](x, **options) for model in (exact, lean))
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(out.sin().sum(), x)[0] for out in (one, other)]
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-3)


def test_an_error_inside_of_a_block_leaves_it_usable() -> None:
    exact, lean, images = changed(lambda block: None)
    expected = gradients(exact, images)

    def fail(module: nn.Module, args: Any, output: Any) -> None:
        raise KeyError("nothing")

    handle = lean.backbone.blocks[0].attn.proj_drop.register_forward_hook(fail)
    with pytest.raises(KeyError):
        lean(images)
    handle.remove()
    assert not calls._stack.entries
    assert_same(gradients(lean, images), expected, 1e-4)


# Padding, dropout, modes


@pytest.mark.parametrize("size", [64, 72, 96])
def test_swin_on_images_of_another_size(size: int) -> None:
    """Maps that are no whole windows are padded behind the norm: those blocks run layer by layer, without a warning."""
    model = tiny.swin(strict_img_size=False) if size != 64 else tiny.swin()
    exact, lean = (m.eval() for m in pair("swin", "bias", model))
    keep_all(lean)
    images = torch.randn(2, 3, size, size)
    assert_same(gradients(lean, images), gradients(exact, images), 2e-2 if size == 72 else 1e-4)


DROPPED: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "vit": (tiny.vit, {}),
    "swin": (tiny.swin, {}),
}


@pytest.mark.parametrize("rate", ["proj_drop_rate", "attn_drop_rate", "drop_path_rate", "pos_drop_rate"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", DROPPED)
def test_dropout_draws_the_same_numbers(family: str, rate: str, training: bool) -> None:
    if (family, rate) == ("swin", "pos_drop_rate"):
        pytest.skip("Swin has none")
    model = DROPPED[family][0](**{rate: 0.3})
    exact, lean = (m.train(training) for m in pair(family, "bias", model))
    for m in (exact, lean):
        for module in m.modules():
            if hasattr(module, "fused_attn") and rate == "attn_drop_rate":
                module.fused_attn = False  # The fused kernel draws as it likes.
    keep_all(lean)
    found, logits, images = [], [], images_for(family)
    for m in (exact, lean):
        torch.manual_seed(3)
        logits.append(m(images))
        torch.manual_seed(3)
        found.append(gradients(m, images))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert_same(found[1], found[0], 2e-2)


def test_gradients_in_evaluation_mode() -> None:
    """Saliency maps: with respect to the images, and of what trains."""
    for family in lean_models.FUSED:
        exact, lean = (m.eval() for m in pair(family, "bias"))
        keep_all(lean)
        images = images_for(family).requires_grad_()
        grads = [torch.autograd.grad(m(images).sin().sum(), images)[0] for m in (exact, lean)]
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-4)
