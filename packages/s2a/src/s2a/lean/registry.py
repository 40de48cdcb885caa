"""The registry of lean forwards: which modules have a forward pass that keeps little for the backward pass.

``make_lean`` asks the registry about the class of every module of a backbone and of a method; it knows no method by
name. The library registers norms and pools here, S2A its side branch, and packages with methods of their own register
theirs:

    class MySideBlock(nn.Module):
        def forward(self, x):  # (B, C, H, W) to (B, C, H, W)
            ...

    s2a.lean.register_lean_forward(MySideBlock)(s2a.lean.recompute_map_forward)

The pattern is that of opacus' ``register_grad_sampler``
(https://github.com/pytorch/opacus/blob/main/opacus/grad_sample/utils.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from s2a.errors import S2AError

Forward = TypeVar("Forward", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class LeanForward:
    """A registered forward pass.

    Attributes:
        forward: Replaces the module's ``forward``.
        bits: Bits per element of the codes that it keeps.
        frozen_bits: Those where the module's own ``weight`` does not train.
    """

    forward: Callable[..., Any]
    bits: int
    frozen_bits: int

    def bits_for(self, module: nn.Module) -> int:
        """Bits per element for one module, by whether its own ``weight`` trains."""
        weight = module._parameters.get("weight")
        return self.bits if weight is not None and weight.requires_grad else self.frozen_bits


_LEAN_FORWARDS: dict[type[nn.Module], LeanForward] = {}


def register_lean_forward(
    *module_classes: type[nn.Module], bits: int = 8, frozen_bits: int | None = None
) -> Callable[[Forward], Forward]:
    """Decorator: ``forward(self, x, ...)`` runs instead of the classes' own under ``activations="lean"``.

    **Matching.** By exact class, ``type(module) is module_class``: a subclass may compute something else and has to be
    registered itself. Modules of the backbone and of the method are both looked at.

    **What the function may assume.** ``self`` is the module, ``self.s2a_lean_bits`` the bits per element to keep, and
    ``type(self).forward(self, x, ...)`` the module's own forward pass, which the function falls back to where it cannot
    do better. It takes the same arguments and returns the same values, up to the order of sums; only what it saves for
    the backward pass differs. It is called with and without gradient, under autocast and by ``torch.compile``.

    **What it must be.** A function at the top of a module: deep copies and pickles of an adapted model refer to it by
    name.

    **Undoing.** ``attach`` sets ``forward`` and ``s2a_lean_bits`` on the instance; ``detach`` deletes both, so that the
    class's own forward pass is there again.

    Args:
        module_classes: Classes that the function serves.
        bits: Value of ``s2a_lean_bits``: one of ``s2a.ops.rows.WIDTHS``.
        frozen_bits: The same where the module's own ``weight`` does not train; ``None``: ``bits``.

    Returns:
        The decorator; it gives the function back as it is.

    Raises:
        S2AError: No class, something that is no ``nn.Module`` class, or a class that has a lean forward already.
    """
    if not module_classes:
        raise S2AError("register_lean_forward got no class; name the nn.Module classes that the forward is for.")
    for cls in module_classes:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise S2AError(f"register_lean_forward takes nn.Module classes, not {cls!r}; give the module's class.")

    def decorate(forward: Forward) -> Forward:
        for cls in module_classes:
            known = _LEAN_FORWARDS.get(cls)
            if known is not None and _name(known.forward) != _name(forward):  # A reloaded module registers anew.
                raise S2AError(
                    f"{cls.__name__} already has the lean forward {_name(known.forward)}; {_name(forward)} cannot be "
                    "registered for it too: register a subclass."
                )
        entry = LeanForward(forward, bits, bits if frozen_bits is None else frozen_bits)
        _LEAN_FORWARDS.update(dict.fromkeys(module_classes, entry))
        return forward

    return decorate


def lean_forward_of(module: nn.Module) -> LeanForward | None:
    """The lean forward registered for the module's exact class."""
    return _LEAN_FORWARDS.get(type(module))


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@runtime_checkable
class WritesInPlace(Protocol):
    """A module of a method that can write its output over its input: a sum with the residual stream, say.

    With ``LeanOptions.in_place`` the attribute is set to True on every module of the method that has it; ``detach``
    takes it back. The module then writes over an input only where ``s2a.lean.residual_stream.writable`` allows it.

    Attributes:
        s2a_in_place: Whether to write over the input; False on the class.
    """

    s2a_in_place: bool
