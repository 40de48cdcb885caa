"""``s2a.export``: files that other programs load give the adapted model's logits, and nothing else takes their name."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from pass_models import CASES, adapted_model
from s2a.exporting import compare, onnx_file
from s2a.exporting.export import SUFFIXES
from safetensors import safe_open
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
LABELS = ["fox", "a/b", "größe", "🦊", "fox "]
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
VIT = {"name": "vit_tiny_patch16_224", "args": TINY}
"""How ``tiny.vit`` is made; older versions of timm do not note it."""
MERGES = ("bias", "full", "lora", "lora_two", "lora_mlp", "lora_fa", "ssf", "linear")


def digest(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        state.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    state.update(repr([(n, p.requires_grad) for n, p in model.named_parameters()] + [model.training]).encode())
    return state.hexdigest()


def logits(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def test_a_timm_folder_is_loaded_by_timm_alone(tmp_path):
    adapted, images = adapted_model("vit", "lora", "lean")
    adapted.labels = LABELS
    adapted.train()
    before = digest(adapted)
    report = s2a.export(adapted, tmp_path / "model", images=images, backbone=VIT)
    assert digest(adapted) == before
    wanted = logits(adapted.eval(), images)
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    torch.testing.assert_close(logits(model, images), wanted, rtol=1e-4, atol=1e-5)
    assert report == s2a.ExportReport(tmp_path / "model", report.largest_difference, 6, True, "timm")
    assert model.pretrained_cfg["label_names"] == LABELS and model.num_classes == tiny.CLASSES
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 32)
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json"}


def test_a_timm_file_says_how_it_is_loaded(tmp_path):
    adapted, images = adapted_model("resnet", "bias", "exact")
    adapted.labels = LABELS
    s2a.export(adapted, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        facts = file.metadata()
    arguments = {"num_classes": int(facts["num_classes"]), **json.loads(facts["model_args"])}
    path = str(tmp_path / "model.safetensors")
    model = timm.create_model(facts["architecture"], checkpoint_path=path, **arguments).eval()
    torch.testing.assert_close(logits(model, images), logits(adapted, images), rtol=1e-4, atol=1e-5)
    assert json.loads(facts["label_names"]) == LABELS
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("size", [32, 48, 98, 112, 196, 224, 256, 336, 384, 448, 512, 518])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_timms_own_transform_gives_the_images_of_the_adapter(size, resize):
    """Short side 8/7 of the size and a central crop, or all of it squashed, by timm's transform for the config."""
    import numpy as np
    from PIL import Image
    from s2a.exporting.timm_file import _crop_fraction

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 417, 3), dtype=np.uint8))
    crops = resize == "crop"
    form = {"crop_pct": _crop_fraction(size) if crops else 1.0, "crop_mode": "center" if crops else "squash"}
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"}
    transform: Any = create_transform((3, size, size), **plain, **form)
    found = transform(picture)
    short = round(size * 8 / 7)
    scaled = picture.resize((int(short * 417 / 301), short) if crops else (size, size), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    cut = np.asarray(scaled)[top : top + size, left : left + size].transpose(2, 0, 1)
    np.testing.assert_allclose(found.numpy() * 255, cut, atol=1e-3)


def test_a_method_that_does_not_merge_names_those_that_do(tmp_path):
    adapted, _ = adapted_model("vit", "s2a", "lean")
    with pytest.raises(s2a.S2AError, match=r"'s2a' cannot be merged.*bias, full, linear, lora, ssf can.*'onnx' or 'to"):
        s2a.export(adapted, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.compile
def test_a_torch_program_runs_without_the_library(tmp_path):
    """In a process that cannot import it, at batch sizes that were not tried, with its facts beside it."""
    adapted, images = adapted_model("vit", "s2a", "lean")
    adapted.labels = LABELS
    before = digest(adapted)
    s2a.export(adapted, tmp_path / "m.pt2", "torch", images=images)
    assert digest(adapted) == before
    torch.save((images, logits(adapted, images)), tmp_path / "wanted.pt")
    script = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules.update({"s2a": None, "s2a_baselines": None, "timm": None})
import torch
images, wanted = torch.load("wanted.pt")
facts = {"labels": "", "image": "", "method": ""}
program = torch.export.load("m.pt2", extra_files=facts).module()
for n in (1, 2, 5, 6):
    torch.testing.assert_close(program(images[:n]), wanted[:n], rtol=1e-4, atol=1e-5)
print(json.dumps(facts))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = {key: json.loads(value) for key, value in json.loads(done.stdout).items()}
    assert facts["labels"] == LABELS and facts["method"] == "s2a" and facts["image"]["size"] == 32


def test_a_model_that_cannot_be_traced_is_a_sentence(tmp_path):
    """As a method of somebody else's whose forward pass looks at values."""
    adapted, _ = adapted_model("vit", "bias", "exact")

    class Looks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if input.sum() > 0 else input[:, :5]

    adapted.head = Looks(64, 5).eval()
    with pytest.raises(s2a.S2AError, match=r"torch\.export cannot trace this model under 'bias'"):
        s2a.export(adapted, tmp_path / "m.pt2", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.full
@pytest.mark.compile
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_gradient_checkpointing_is_no_part_of_the_graph(tmp_path, format):
    adapted, images = adapted_model("vit", "s2a", "lean")
    adapted.set_grad_checkpointing(True)
    s2a.export(adapted, tmp_path / f"m{SUFFIXES[format]}", format, images=images)
    assert adapted.backbone.grad_checkpointing


@needs_onnx
@pytest.mark.compile
def test_an_onnx_model_has_any_batch_and_its_facts(tmp_path):
    import onnx
    import onnxruntime

    adapted, images = adapted_model("vit", "s2a", "lean")
    adapted.labels = LABELS
    s2a.export(adapted, tmp_path / "m.onnx", "onnx", images=images[:1])
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {onnx_file.OPSET}
    assert {node.domain for node in model.graph.node} <= {""}, "only ONNX's own operators"
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key in ("labels", "image")}
    assert facts["labels"] == LABELS and facts["image"]["mean"] == [0.5, 0.5, 0.5]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 3, 6):
        found = torch.from_numpy(session.run(["logits"], {"images": images[:n].numpy()})[0])
        torch.testing.assert_close(found, logits(adapted, images[:n]), rtol=1e-4, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@needs_onnx
@pytest.mark.full
@pytest.mark.compile
def test_large_weights_lie_beside_an_onnx_model(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnx_file, "WHOLE_LIMIT", 1000)
    adapted, images = adapted_model("vit", "bias", "exact")
    s2a.export(adapted, tmp_path / "m.onnx", "onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    (tmp_path / "moved").mkdir()
    for part in ("m.onnx", "m.onnx.data"):
        (tmp_path / part).rename(tmp_path / "moved" / part)
    session = onnxruntime.InferenceSession(str(tmp_path / "moved" / "m.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(found, logits(adapted, images), rtol=1e-4, atol=1e-5)


def test_onnx_without_its_packages_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    adapted, _ = adapted_model("vit", "bias", "exact")
    with pytest.raises(s2a.S2AError, match=r"pip install 's2a\[onnx\]'"):
        s2a.export(adapted, tmp_path / "m.onnx", "onnx")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backbone_in_half_precision_becomes_float32(tmp_path, dtype):
    """The file has the values of the frozen weights exactly; the updates are added in float32."""
    model = tiny.vit().to(dtype)
    adapted = s2a.attach(model, s2a.method_config("lora", rank=4), tiny.CLASSES)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    s2a.export(adapted, tmp_path / "model", backbone=VIT)
    found: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float32}
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(logits(found, images), logits(copy.deepcopy(adapted).float().eval(), images))
    assert next(adapted.backbone.parameters()).dtype == dtype


def test_another_function_is_refused_and_what_was_there_stays(tmp_path, monkeypatch):
    adapted, images = adapted_model("vit", "lora", "exact")
    s2a.export(adapted, tmp_path / "model", backbone=VIT)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with torch.no_grad():
        adapted.head.bias += 1
    with monkeypatch.context() as patch:
        patch.setattr(compare, "TOLERANCE", -1.0)
        with pytest.raises(s2a.S2AError, match="differs from the adapted model"):
            s2a.export(adapted, tmp_path / "model", images=images, backbone=VIT)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    s2a.export(adapted, tmp_path / "model", images=images, backbone=VIT)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_backbone_that_timm_would_build_otherwise_is_told_apart(tmp_path):
    """Shapes alone do not show it: the same tensors, another activation function."""
    model = timm.create_model("vit_tiny_patch16_224", act_layer="relu", **TINY)
    model.__dict__.pop("_model_args", None)  # As older versions of timm, which do not note them.
    adapted = s2a.attach(model, s2a.method_config("bias"), tiny.CLASSES)
    with pytest.raises(s2a.S2AError, match="differs from the adapted model"):
        s2a.export(adapted, tmp_path / "model", backbone=VIT)
    with pytest.raises(s2a.S2AError, match=r"pass backbone="):
        s2a.export(adapted, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    full = {"name": "vit_tiny_patch16_224", "args": {**TINY, "act_layer": "relu"}}
    s2a.export(adapted, tmp_path / "model", backbone=full)


@pytest.mark.parametrize(
    ("path", "format", "images", "words"),
    [
        ("m", "tf", None, "choose one of timm, onnx, torch"),
        ("m", "onnx", None, "must end in .onnx"),
        ("m.onnx", "torch", None, "must end in .pt2"),
        ("no/m.pt2", "torch", None, "is not a folder; create it"),
        ("a\0.pt2", "torch", None, "zero byte"),
        ("full", "timm", None, r"holds other files \(precious\)"),
        ("full/precious", "timm", None, "is a file; give a new folder"),
        ("m.pt2", "torch", torch.zeros(2, 3, 16, 16), r"shape \(2, 3, 16, 16\).*\(N, 3, 32, 32\)"),
        ("m.pt2", "torch", torch.zeros(0, 3, 32, 32), "at least one"),
        ("m.pt2", "torch", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floating point"),
        ("m.pt2", "torch", ["a.jpg"], "takes a tensor"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path, path, format, images, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    adapted, _ = adapted_model("vit", "lora", "exact")
    with pytest.raises(s2a.S2AError, match=words):
        s2a.export(adapted, tmp_path / path, format, images=images)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["full", "full/precious"]


def test_models_that_cannot_be_exported_say_why(tmp_path):
    adapted: Any = s2a.attach(tiny.vit(), s2a.method_config("lora", rank=4), tiny.CLASSES)
    with pytest.raises(s2a.S2AError, match=r"export takes what s2a\.attach returned, not VisionTransformer"):
        s2a.export(adapted.backbone, tmp_path / "m")  # type: ignore[arg-type]
    adapted.labels = ["one"]
    with pytest.raises(s2a.S2AError, match="1 labels and 5 classes"):
        s2a.export(adapted, tmp_path / "m")
    adapted.labels = None
    head = adapted.head
    adapted.head = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5))
    with pytest.raises(s2a.S2AError, match="head is a Sequential"):
        s2a.export(adapted, tmp_path / "m")
    adapted.head = head
    with torch.no_grad():
        head.bias[0] = float("nan")
    with pytest.raises(s2a.S2AError, match="not finite"):
        s2a.export(adapted, tmp_path / "m", backbone=VIT)
    s2a.detach(adapted)
    with pytest.raises(s2a.S2AError, match="was detached"):
        s2a.export(adapted, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_head_without_bias_gets_one_of_zeros(tmp_path):
    adapted, images = adapted_model("vit", "lora", "exact")
    adapted.head = nn.Linear(64, 7, bias=False).eval()
    s2a.export(adapted, tmp_path / "m", images=images, backbone=VIT)
    assert adapted.head.bias is None


@pytest.mark.full
@pytest.mark.compile
@pytest.mark.parametrize("format", ["timm", "torch", pytest.param("onnx", marks=needs_onnx)])
@pytest.mark.parametrize(("family", "method", "mode"), [c for c in CASES if c[2] != "budget"])
def test_every_method_and_family_in_every_format(tmp_path, family, method, mode, format):
    """What ``export`` accepts is as near as rounding; what it refuses are methods that do not merge."""
    adapted, images = adapted_model(family, method, mode)
    path = tmp_path / ("m" if format == "timm" else f"m{SUFFIXES[format]}")
    if format == "timm" and method not in MERGES:
        with pytest.raises(s2a.S2AError, match="cannot be merged"):
            s2a.export(adapted, path)
        return
    if format == "timm" and not hasattr(adapted.backbone, "_model_args"):
        pytest.skip("this version of timm does not note the arguments of a model")
    report = s2a.export(adapted, path, format, images=images)
    assert report.largest_difference < 1e-5 * max(1.0, float(logits(adapted, images).abs().max()))
    assert dataclasses.asdict(report)["images"] == 6 and Path(report.path).exists()
