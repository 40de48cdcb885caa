"""Attaching, detaching, and the registry behind it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import os
import subprocess
import sys
from typing import Any

import pytest
import s2a
import tiny
import torch
from s2a import registry, testing
from s2a.backbones.edits import Edits
from s2a.errors import BrokenPackageWarning
from s2a.testing import check_method, differences, snapshot
from torch import Tensor, nn


@pytest.mark.parametrize("name", tiny.MODELS)
def test_only_the_method_and_the_head_train(name: str) -> None:
    make_model, size = tiny.MODELS[name]
    adapted = s2a.attach(make_model(), s2a.S2AConfig(), 7, image_size=size)
    trainable = s2a.trainable_parameters(adapted)
    outside = {n for n in trainable if not n.startswith(("method.", "head."))}
    assert outside
    assert all(n.rpartition(".")[2] in ("bias", "q_bias", "v_bias") for n in outside)
    assert {
        n for n, _ in adapted.named_parameters() if n.startswith(("method.", "head."))
    } == trainable.keys() - outside
    assert adapted(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_kept_classifier_is_the_start(name: str) -> None:
    make_model, size = tiny.MODELS[name]
    model, images = make_model().eval(), torch.randn(2, 3, size, size)
    expected = model(images)
    adapted = s2a.attach(model, s2a.S2AConfig(activations="exact"), image_size=size)
    torch.testing.assert_close(adapted(images), expected)
    assert all(p.requires_grad for p in adapted.head.parameters())


def test_a_new_head_is_small_and_centred() -> None:
    head: Any = s2a.attach(tiny.vit(), s2a.S2AConfig(), 50).head
    assert not bool(head.bias.any())
    assert 0.01 < float(head.weight.detach().std()) < 0.03


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(training: bool) -> None:
    model = tiny.resnet().train(training)
    model.bn1.train(not training)
    adapted = s2a.attach(model, s2a.S2AConfig(), 5, image_size=64)
    assert adapted.training is adapted.method.training is adapted.head.training is training
    assert model.bn1.training is not training


def test_meta_models_can_be_adapted() -> None:
    model = tiny.vit().to("meta")
    adapted = s2a.attach(model, s2a.S2AConfig(), 5)
    assert {p.device.type for p in adapted.parameters()} == {"meta"}


def test_detach_follows_a_move() -> None:
    """Training often moves the adapted model; what was set aside must come along."""
    model = tiny.resnet()
    original = copy.deepcopy(model)
    adapted = s2a.attach(model, s2a.S2AConfig(), 5, image_size=64).double().train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    adapted(images).sum().backward()  # Moves the batch-norm statistics, too.
    back = s2a.detach(adapted)
    assert torch.equal(back.eval()(images), original.double().eval()(images))


def test_detach_restores_gradients_flags() -> None:
    model = tiny.vit()
    model.pos_embed.requires_grad_(False)
    before = snapshot(model)
    adapted = s2a.attach(model, s2a.method_config("full"), 5)
    assert model.pos_embed.requires_grad
    adapted(torch.randn(2, 3, 32, 32)).sum().backward()
    s2a.detach(adapted)
    assert not differences(before, snapshot(model))


def test_methods_can_follow_each_other() -> None:
    model = tiny.vit()
    before = snapshot(model)
    for name in ("s2a", "lora", "linear", "full", "bias", "s2a"):
        s2a.detach(s2a.attach(model, s2a.method_config(name), 5))
        assert not differences(before, snapshot(model)), name


@dataclasses.dataclass(frozen=True)
class Stranger:
    """A config of no method."""


def _twice() -> None:
    s2a.attach(s2a.attach(tiny.vit(), s2a.S2AConfig(), 5).backbone, s2a.S2AConfig(), 5)


def _detach_twice() -> None:
    adapted = s2a.attach(tiny.vit(), s2a.S2AConfig(), 5)
    s2a.detach(adapted)
    s2a.detach(adapted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_twice, "already adapted by 's2a'; call s2a.detach"),
        (
            lambda: s2a.attach(s2a.attach(tiny.vit(), s2a.S2AConfig(), 5), s2a.S2AConfig(), 5),
            "already adapted by 's2a'",
        ),
        (_detach_twice, "detached already"),
        (lambda: s2a.detach(tiny.vit()), "detach takes what s2a.attach returned, not VisionTransformer"),
        (lambda: s2a.attach(tiny.vit(), s2a.S2AConfig(), 0), "num_classes=0 must be an integer of at least 1"),
        (lambda: s2a.attach(tiny.vit(), s2a.S2AConfig(), 5.5), "num_classes=5.5 must be an integer of at least 1"),  # type: ignore[arg-type]
        (lambda: s2a.attach(tiny.vit(), s2a.S2AConfig(), True), "num_classes=True must be an integer of at least 1"),
        (lambda: s2a.attach(None, s2a.S2AConfig(), 5), "attach takes a timm model, not NoneType"),  # type: ignore
        (lambda: s2a.attach(tiny.vit(), s2a.S2AConfig(), 5, image_size="32"), "image_size='32' must be a side"),  # type: ignore
        (lambda: s2a.attach(tiny.vit(), s2a.S2AConfig(), 5, image_size=(3, 32, 32)), "must be a side, or height"),
        (lambda: s2a.attach(tiny.vit(patch_drop_rate=0.5), s2a.S2AConfig(), 5), "drops patches in training"),
        (lambda: s2a.method_config("s2a", sites=(0, "a")), "must be ascending block indices"),
        (lambda: s2a.method_config("s2a", sites=3), "must be ascending block indices"),
        (lambda: s2a.method_config("s2a", bits=4.0), "bits=4.0 is unknown"),
        (lambda: s2a.quantize_activations(tiny.vit(), bits=True), "bits=True must be one of"),
        (lambda: s2a.attach(tiny.vit(num_classes=0), s2a.S2AConfig()), "no linear classifier to keep"),
        (lambda: s2a.attach(tiny.vit(), Stranger(), 5), r"Stranger is not a registered .*S2AConfig \(s2a\)"),
        (lambda: s2a.attach(tiny.vit(), "s2a", 5), "str is not a registered"),
        (lambda: s2a.attach(nn.Linear(2, 2), s2a.S2AConfig(), 5), "Linear is not a supported backbone"),
        (lambda: s2a.method_config("s2b"), r"Unknown method 's2b': did you mean 's2a'\? Registered: .*s2a"),
        (lambda: s2a.method_config("zzz"), "Unknown method 'zzz': Registered"),
        (lambda: s2a.method_config("s2a", lrp_rnk=3), r"no option 'lrp_rnk': did you mean 'lrp_rank'"),
        (lambda: s2a.method_config("linear", rank=3), "no option 'rank': Options: none"),
        (lambda: s2a.method_config("s2a", bits=7), "bits=7"),
    ],
)
def test_bad_input_gets_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        call()


def test_adapted_models_say_what_they_are() -> None:
    adapted = s2a.attach(tiny.vit(), s2a.S2AConfig(lrp_rank=3), 5)
    assert "lrp_rank=3" in repr(adapted)
    assert (adapted.name, adapted.config.lrp_rank, adapted.image_size) == ("s2a", 3, (32, 32))


# The registry


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """Config of the method below."""

    start: float = 1.0


class Scale(s2a.Method):
    """A third-party method: features times a learned vector."""

    identity_at_start = True

    def __init__(self, config: ScaleConfig, backbone: Any, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.scale = nn.Parameter(torch.full((backbone.features,), config.start))

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        return super().forward(model, images) * self.scale

    def keeps(self, batch_size: int) -> dict[str, int]:
        return {"": 4 * batch_size * self.feature_dim}


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> dict[str, registry.Entry]:
    s2a.list_methods()
    table = dict(registry._METHODS)
    monkeypatch.setattr(registry, "_METHODS", table)
    return table


def test_a_method_is_one_class(methods: dict[str, registry.Entry]) -> None:
    s2a.register_method("scale", ScaleConfig)(Scale)
    assert "scale" in s2a.list_methods()
    adapted = s2a.attach(tiny.vit(), s2a.method_config("scale", start=0.5), 5)
    assert s2a.trainable_parameters(adapted).keys() == {"method.scale", "head.weight", "head.bias"}
    testing.check_method(ScaleConfig(), tiny.vit)


def test_names_and_configs_are_taken_once(methods: dict[str, registry.Entry]) -> None:
    s2a.register_method("scale", ScaleConfig)(Scale)
    s2a.register_method("scale", ScaleConfig)(Scale)  # A reloaded module may register again.
    for name, config in (("s2a", ScaleConfig), ("other", ScaleConfig), ("scale", Stranger)):
        with pytest.raises(s2a.S2AError, match="choose another name and an own config class"):
            s2a.register_method(name, config)(type("Other", (Scale,), {}))


def test_installed_packages_are_found() -> None:
    assert {"full", "linear", "bias", "lora", "s2a"} <= set(s2a.list_methods())
    groups = importlib.metadata.entry_points(group="s2a.methods")
    assert "s2a_baselines" in {point.value for point in groups}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("print('{\"garbage\": 1}'); raise SystemExit", "SystemExit"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def", "SyntaxError"),
    ],
)
def test_a_broken_package_takes_nothing_away(code, reason, tmp_path, monkeypatch, capsys) -> None:
    """Of the first one everything is known; the second is named, where it is missed too."""
    (tmp_path / "broken_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        importlib.metadata.EntryPoint("broken", "broken_methods", "s2a.methods"),
        importlib.metadata.EntryPoint("baselines", "s2a_baselines", "s2a.methods"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "_broken", {})
    with pytest.warns(BrokenPackageWarning, match=f"'broken_methods' cannot be imported .{reason}"):
        assert {"lora", "s2a"} <= {*s2a.list_methods()}
    assert s2a.method_config("lora") and "lora" in s2a.list_methods()
    with pytest.raises(s2a.S2AError, match=f"Unknown method 'theirs'.*'broken_methods' cannot be imported .{reason}"):
        s2a.method_config("theirs")
    assert capsys.readouterr().out == ""


def test_edits_are_undone_last_one_first() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = snapshot(model)
    edits = Edits()
    edits.replace(model, "1", nn.Tanh())
    edits.replace(model, "1", nn.Sigmoid())
    edits.override(model[1], "note", 1)
    edits.override(model[1], "note", 2)
    edits.train(model[0].weight)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(edits.original(model[0].weight), before["value of 0.weight"])
    assert edits.original(model[0].bias) is model[0].bias
    edits.undo()
    assert not differences(before, snapshot(model))
    edits.undo()  # An empty log: nothing to do.
    assert not differences(before, snapshot(model))


def test_images_of_one_channel(methods: dict[str, registry.Entry]) -> None:
    """The model's own first layer says how many channels its images have."""
    adapted = s2a.attach(tiny.vit(in_chans=1), s2a.S2AConfig(lrp_rank=2), 5)
    assert adapted(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert s2a.theoretical_memory(adapted, 2).total > 0
    check_method(s2a.method_config("bias"), lambda: tiny.vit(in_chans=1), 5)


def test_padded_images_have_a_grid() -> None:
    model = tiny.vit(dynamic_img_size=True, dynamic_img_pad=True)
    adapted = s2a.attach(model, s2a.S2AConfig(lrp_rank=2), 5, image_size=(45, 33))
    assert adapted(torch.randn(2, 3, 45, 33)).shape == (2, 5)
    with pytest.raises(s2a.S2AError, match="another size than the model was adapted for"):
        adapted(torch.randn(2, 3, 32, 32))


def test_threads_that_ask_while_the_methods_are_imported_see_them_all() -> None:
    code = """
import threading, s2a
barrier, found = threading.Barrier(4), []
def ask():
    barrier.wait()
    found.append(tuple(s2a.list_methods()))
threads = [threading.Thread(target=ask) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(found), len(set(found)), "lora" in found[0])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "1", "True"]
