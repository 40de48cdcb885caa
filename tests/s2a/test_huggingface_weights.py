"""Weights in the layout of ``transformers``: a timm model computes what the model that they are of computes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from s2a import weights
from s2a.errors import S2AError
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

hf: Any = pytest.importorskip("transformers")

WIDTHS = [8, 16, 24, 32]
VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
TIMM_VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small model of ``transformers`` and the timm model that it is the same as."""

    model: str
    config: Callable[[], Any]
    name: str
    arguments: dict[str, Any]
    features: bool = False
    """Pooled features are compared, since timm has no classifier of that kind."""


def stages(**options: Any) -> dict[str, Any]:
    return {"hidden_sizes": WIDTHS, "depths": [1, 2, 1, 1], "num_labels": 5, **options}


CASES = {
    "vit": Case(
        "ViTForImageClassification",
        lambda: hf.ViTConfig(**VIT, intermediate_size=48, num_labels=5),
        "vit_tiny_patch16_224",
        {**TIMM_VIT, "mlp_ratio": 2},
    ),
    "deit": Case(
        "DeiTForImageClassificationWithTeacher",
        lambda: hf.DeiTConfig(**VIT, intermediate_size=48, num_labels=5),
        "deit_tiny_distilled_patch16_224",
        {**TIMM_VIT, "mlp_ratio": 2},
    ),
    "dinov2": Case(
        "Dinov2Model",
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=2, layerscale_value=0.5),
        "vit_small_patch14_dinov2",
        {**TIMM_VIT, "mlp_ratio": 2},
        features=True,
    ),
    "dinov2 with a classifier": Case(
        "Dinov2ForImageClassification",
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=2, num_labels=5),
        "vit_small_patch14_dinov2",
        {**TIMM_VIT, "mlp_ratio": 2},
        features=True,
    ),
    "dinov2 with registers": Case(
        "Dinov2WithRegistersModel",
        lambda: hf.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2),
        "vit_small_patch14_reg4_dinov2",
        {**TIMM_VIT, "mlp_ratio": 2},
        features=True,
    ),
    "dinov2 giant": Case(
        "Dinov2Model",
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=4, use_swiglu_ffn=True),
        "vit_giant_patch14_dinov2",
        {**TIMM_VIT, "mlp_ratio": 128 / 24},  # 64 = 24 * 4 * 2 / 3 per half
        features=True,
    ),
    "swin": Case(
        "SwinForImageClassification",
        lambda: hf.SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=12,
            depths=[2, 2, 2],
            num_heads=[1, 2, 4],
            window_size=4,
            num_labels=5,
        ),
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 64,
            "embed_dim": 12,
            "depths": (2, 2, 2),
            "num_heads": (1, 2, 4),
            "window_size": 4,
            "num_classes": 5,
        },
    ),
    "convnext": Case(
        "ConvNextForImageClassification",
        lambda: hf.ConvNextConfig(**stages(layer_scale_init_value=0.5)),
        "convnext_tiny",
        {"dims": WIDTHS, "depths": [1, 2, 1, 1], "num_classes": 5},
    ),
    "convnext of convolutions": Case(
        "ConvNextForImageClassification",
        lambda: hf.ConvNextConfig(**stages(layer_scale_init_value=0.5)),
        "convnext_tiny",
        {"dims": WIDTHS, "depths": [1, 2, 1, 1], "num_classes": 5, "conv_mlp": True},
    ),
    "convnext v2": Case(
        "ConvNextV2ForImageClassification",
        lambda: hf.ConvNextV2Config(**stages()),
        "convnextv2_tiny",
        {"dims": WIDTHS, "depths": [1, 2, 1, 1], "num_classes": 5},
    ),
    "resnet": Case(
        "ResNetForImageClassification",
        lambda: hf.ResNetConfig(**stages(embedding_size=64, hidden_sizes=[32, 64, 128, 256])),
        "resnet50",
        {"layers": [1, 2, 1, 1], "channels": (8, 16, 32, 64), "num_classes": 5},
    ),
    "resnet of basic blocks": Case(
        "ResNetForImageClassification",
        lambda: hf.ResNetConfig(**stages(embedding_size=64, hidden_sizes=[64, 16, 24, 32], layer_type="basic")),
        "resnet18",
        {"layers": [1, 2, 1, 1], "channels": (64, 16, 24, 32), "num_classes": 5},
    ),
}


def make(case: Case, folder: Path, **save: Any) -> nn.Module:
    """The model of ``transformers``, every value of it random, saved as it saves itself."""
    torch.manual_seed(3)
    model = getattr(hf, case.model)(case.config())
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.2 * torch.randn_like(value))
            else:
                value.normal_(std=0.2)
    model.eval().save_pretrained(folder, **save)
    return model


def outputs(model: nn.Module, case: Case, theirs: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = case.arguments.get("img_size", 64)
    images = torch.randn(2, 3, size, size, generator=generator)
    with torch.no_grad():
        if theirs:
            found = model(images)
            return found.logits if hasattr(found, "logits") else found.pooler_output
        whole: Any = model.eval()
        return whole.forward_head(whole.forward_features(images), pre_logits=True) if case.features else whole(images)


@pytest.mark.parametrize("key", CASES)
def test_the_same_outputs(key, tmp_path):
    case = CASES[key]
    model: Any = make(case, tmp_path)
    if case.features and hasattr(model, "classifier"):
        model = model.dinov2
    expected = outputs(model, case, theirs=True)
    found = outputs(weights.create_with_weights(case.name, tmp_path, **case.arguments), case, theirs=False)
    scale = expected.abs().max()
    assert scale > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, scale.item()))


TIMM_LIKE: dict[str, Any] = TIMM_VIT | {"mlp_ratio": 2}


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("vit")
    return folder, make(CASES["vit"], folder)


def same(path: Path, model: nn.Module, key: str = "vit", **changes: Any) -> nn.Module:
    case = CASES[key]
    found = weights.create_with_weights(case.name, path, **{**case.arguments, **changes})
    expected = outputs(model, case, theirs=True)
    torch.testing.assert_close(outputs(found, case, theirs=False), expected, rtol=0, atol=1e-5)
    return found


def test_a_file_of_the_folder_is_the_folder(vit):
    folder, model = vit
    same(folder / "model.safetensors", model)


@pytest.mark.parametrize("given", ["folder", "index"])
def test_a_file_in_parts(tmp_path, given):
    model = make(CASES["vit"], tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(weights.weight_files(tmp_path)) > 2 and not (tmp_path / "model.safetensors").exists()
    same(tmp_path if given == "folder" else index, model)
    lost = weights.weight_files(tmp_path)[1]
    lost.unlink()
    with pytest.raises(S2AError, match=f"names {lost.name}, not there; get all"):
        weights.read_weights(tmp_path)


@pytest.mark.parametrize("parts", [{}, {"weight_map": {}}, {"weight_map": {"a": "../other.safetensors"}}, [], "{"])
def test_an_index_that_is_none(tmp_path, parts):
    text = parts if isinstance(parts, str) else json.dumps(parts)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(S2AError, match=r"index\.json"):
        weights.read_weights(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(S2AError, match=r"holds no weights: none of model\.safetensors"):
        weights.read_weights(tmp_path)


@pytest.mark.parametrize("key", ["vit", "deit", "dinov2 giant", "swin"])
def test_the_names_that_a_model_has_in_memory(key, tmp_path):
    """``torch.save(model.state_dict())`` writes other names than ``save_pretrained``, by version of transformers."""
    model = make(CASES[key], tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    same(tmp_path, model, key)


@pytest.mark.parametrize("key", ["vit", "swin", "convnext", "resnet"])
def test_without_prefix_and_classifier(key, tmp_path):
    model = make(CASES[key], tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    prefix = model.base_model_prefix + "."  # type: ignore[operator]
    safetensors.torch.save_file(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, file
    )
    case = dataclasses.replace(CASES[key], features=True)
    inner = getattr(model, model.base_model_prefix)  # type: ignore[call-overload]
    found = weights.create_with_weights(case.name, file, **case.arguments)
    # Not every model has a pooler that pools as its classifier does: its input is caught instead.
    layer = next(m for n, m in model.named_modules() if n.startswith("classifier") and isinstance(m, nn.Linear))
    caught = []
    layer.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    outputs(model, case, theirs=True)
    torch.testing.assert_close(outputs(found, case, theirs=False), caught[0], rtol=0, atol=2e-5)
    assert inner is not None and next(iter(found.get_classifier().parameters())).shape[0] == 5  # type: ignore[operator]


def test_a_classifier_of_other_classes_is_left_out(vit):
    folder, model = vit
    found: Any = weights.create_with_weights("vit_tiny_patch16_224", folder, **TIMM_LIKE | {"num_classes": 7})
    assert found.head.weight.shape == (7, 24)
    assert torch.equal(found.cls_token, model.vit.embeddings.cls_token)  # type: ignore[union-attr]
    without: Any = weights.create_with_weights("vit_tiny_patch16_224", folder, **TIMM_LIKE | {"num_classes": 0})
    assert isinstance(without.head, nn.Identity)


def test_position_embeddings_of_another_grid_are_resampled(vit):
    folder, _ = vit
    large: Any = weights.create_with_weights("vit_tiny_patch16_224", folder, **TIMM_LIKE | {"img_size": 48})
    small: Any = weights.create_with_weights("vit_tiny_patch16_224", folder, **TIMM_LIKE)
    reference: Any = timm.create_model("vit_tiny_patch16_224", **TIMM_LIKE)
    reference.load_state_dict(small.state_dict())
    reference.set_input_size(48)  # timm's own resampling
    torch.testing.assert_close(large.pos_embed, reference.pos_embed)


def test_tables_of_relative_positions_of_another_window_are_resampled(tmp_path):
    make(CASES["swin"], tmp_path)
    arguments = CASES["swin"].arguments
    found: Any = weights.create_with_weights(CASES["swin"].name, tmp_path, **arguments | {"window_size": 8})
    # The middle of a table is the bias of a token on itself, whatever the window.
    table = safetensors.torch.load_file(tmp_path / "model.safetensors")
    old = table["swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"]
    new = found.layers[0].blocks[0].attn.relative_position_bias_table
    assert new.shape == (225, 1)
    torch.testing.assert_close(new[112], old[24], rtol=0, atol=1e-3)


def test_what_the_configs_state_becomes_the_models(vit, tmp_path):
    folder, _ = vit
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    edit(tmp_path, layer_norm_eps=1e-3)
    model: Any = weights.create_with_weights("vit_tiny_patch16_224", tmp_path, **TIMM_LIKE)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    resolved = resolve_model_data_config(model)
    assert (resolved["mean"], resolved["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert resolved["interpolation"] == "bilinear"
    (tmp_path / "config.json").unlink()
    model = weights.create_with_weights("vit_tiny_patch16_224", tmp_path, **TIMM_LIKE)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}, "timm's own"


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("key", "values", "sentence"),
    [
        ("vit", {"num_attention_heads": 4}, "its num_attention_heads is 4, the model's 3"),
        ("vit", {"hidden_act": "quick_gelu"}, "its hidden_act is 'quick_gelu', the model computes GELU"),
        ("vit", {"hidden_act": "mish"}, "its hidden_act is 'mish'"),
        ("vit", {"layer_norm_eps": "small"}, "its layer_norm_eps is 'small'"),
        ("vit", {"model_type": "swin"}, "config.json beside it is of a 'swin'"),
        ("swin", {"num_heads": [1, 2, 2]}, r"its num_heads is \[1, 2, 2\]"),
        ("resnet", {"downsample_in_bottleneck": True}, "its downsample_in_bottleneck is True"),
        ("convnext", {"hidden_act": "relu"}, "its hidden_act is 'relu'"),
    ],
)
def test_what_the_config_asks_for_and_no_shape_shows(key, values, sentence, tmp_path):
    make(CASES[key], tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(S2AError, match=sentence) as caught:
        weights.create_with_weights(CASES[key].name, tmp_path, **CASES[key].arguments)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_one_sentence(vit, tmp_path):
    folder, _ = vit
    with pytest.raises(S2AError, match=r"layout of a ViT.*does not hold weights of resnet18, which is a ResNet"):
        weights.create_with_weights("resnet18", folder)
    with pytest.raises(S2AError, match=r"tensors have another shape .* are missing \(blocks.2"):
        weights.create_with_weights("vit_tiny_patch16_224", folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    safetensors.torch.save_file({"beit.encoder.layer.0.lambda_1": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(S2AError, match=r"model_type 'beit'; of Hugging Face's layouts vit, deit, .* are understood"):
        weights.create_with_weights("vit_tiny_patch16_224", tmp_path)


def test_a_tensor_too_many_or_too_few_is_refused(vit, tmp_path):
    folder, _ = vit
    state = safetensors.torch.load_file(folder / "model.safetensors")
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state | {"vit.embeddings.extra": torch.ones(1)}, file)
    with pytest.raises(S2AError, match=r"1 tensors are not the model's \(embeddings.extra\)"):
        weights.create_with_weights("vit_tiny_patch16_224", file, **TIMM_LIKE)
    del state["vit.encoder.layer.1.attention.attention.key.bias"]
    safetensors.torch.save_file(state, file)
    with pytest.raises(S2AError, match=r"1 tensors are missing \(blocks.1.attn.qkv.bias\)"):
        weights.create_with_weights("vit_tiny_patch16_224", file, **TIMM_LIKE)


def test_timms_own_files_in_a_folder(tmp_path):
    """A folder as timm's hub has it: its config.json is not one of transformers."""
    arguments: dict[str, Any] = TIMM_LIKE | {"num_classes": 1000}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    found = weights.create_with_weights("vit_tiny_patch16_224", tmp_path, **arguments)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert weights.source_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_every_file_that_decides_is_named(vit, tmp_path):
    folder, _ = vit
    assert weights.source_files(folder) == [folder / "model.safetensors", folder / "config.json"]
    # A file of timm's layout beside a config of transformers: the config decides nothing.
    file = tmp_path / "timm.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **TIMM_LIKE).state_dict(), file)
    shutil.copy(folder / "config.json", tmp_path)
    assert weights.source_files(file) == [file]
