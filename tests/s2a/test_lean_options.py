"""The options of lean activations: what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import s2a
import tiny
from s2a.lean.options import LeanOptions, parse_size


@pytest.mark.each_value
@pytest.mark.parametrize("method", ["s2a", "bias", "lora", "full", "adapter", "adaptformer", "ssf", "vpt"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "leaner"}, "activations='leaner' is unknown; choose one of 'exact'.*'lean'"),
        (
            {"activations": "exact", "memory_budget_mb": 640},
            "memory_budget_mb needs activations='lean'.* it is 'exact'",
        ),
        ({"activations": "exact", "memory_budget": "8GiB"}, "memory_budget needs activations='lean'"),
        ({"activations": "lean", "memory_budget_mb": 1, "memory_budget": "8GiB"}, "give one of them"),
        (
            {"activations": "lean", "saved_budget_mb": 1, "peak_budget": "8GiB"},
            "saved_budget_mb limits weights and saved tensors, peak_budget the peak of a whole step: two different",
        ),
        ({"activations": "lean", "peak_budget": "8MB", "memory_budget": "8GiB"}, "are two names of one limit"),
        ({"activations": "exact", "peak_budget": "8GiB"}, "peak_budget needs activations='lean'"),
        ({"activations": "lean", "saved_budget_mb": -1}, "saved_budget_mb=-1 must be a number of megabytes"),
        ({"activations": "lean", "peak_budget": "8"}, "peak_budget='8' must be a number and one of B, KB"),
        *(
            ({"activations": "lean", "memory_budget_mb": value}, "must be a number of megabytes")
            for value in (0, -1, float("nan"), float("inf"), True, "640")
        ),
        *(
            ({"activations": "lean", "memory_budget": value}, "must be a number and one of B, KB")
            for value in ("8", "GiB", "8 Gib", "-1GiB", "0MB", 8, "1e3MB", "")
        ),
        *(
            ({"activations": "lean", "budget_batch": value}, "must be an integer of at least 1")
            for value in (0, -1, 2.0, True, "2")
        ),
        ({"activations": "lean", "recompute": "fp8"}, "recompute='fp8' is unknown; choose 'auto', 'same' or 'bf16'"),
        ({"activations": "exact", "recompute": "bf16"}, "recompute='bf16' needs activations='lean'"),
        ({"activations": "exact", "offload": True}, "offload=True needs activations='lean'; here it is 'exact'"),
        ({"activations": "lean", "offload": "host"}, "offload='host' must be True or False"),
    ],
)
def test_bad_options_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        s2a.method_config(method, **options)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 1024**3), ("640MB", 640_000_000), (" 1.5 GB ", 1_500_000_000), ("512 KiB", 524_288), ("7B", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_older_names_of_the_budgets_are_the_newer_ones() -> None:
    lean: dict[str, Any] = {"activations": "lean"}
    for old, new, value in (("memory_budget_mb", "saved_budget_mb", 640), ("memory_budget", "peak_budget", "8GiB")):
        config = s2a.method_config("bias", **lean, **{old: value})
        assert config == s2a.method_config("bias", **lean, **{new: value})
        assert getattr(config, new) == value


def test_options_are_checked_without_a_method() -> None:
    LeanOptions(activations="lean", memory_budget_mb=640.0, budget_batch=1).check_lean()
    assert s2a.method_config("bias").activations == "exact"


def test_bits_are_those_of_activations_on_their_own() -> None:
    adapted = s2a.attach(tiny.vit(), s2a.S2AConfig(lrp_rank=4, activations="lean", bits=2), 3, image_size=32)
    kept = {branch.role: branch.saved_bits.inner for branch in adapted._branches}
    assert kept == {"attn": 0, "mlp": 0}  # In a fused branch the activation is computed again.
    assert adapted.backbone.blocks[0].mlp.act.s2a_bits == 2  # type: ignore[index, union-attr]


def test_configs_saved_with_the_former_default_are_read() -> None:
    assert s2a.method_config("bias", recompute="same") == s2a.method_config("bias")
    assert s2a.method_config("bias", activations="lean", recompute="same").recompute == "same"
