"""The model card: the hub reads its front matter, and whatever names are in it, it stays the same document."""

from __future__ import annotations

import re
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from s2a.pretrained.card import escape, make_card

MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})
HOSTILE = [
    "a|b",
    "`code`",
    "---",
    "# title",
    "- item",
    "1. item",
    "<script>alert(1)</script>",
    "[link](http://example.com)",
    "![image](x.png)",
    "**bold** _and_ *italic*",
    "new\nline\r\n\r\nparagraph",
    "tab\tand\x00control\x1b[31m",
    "a/b\\c",
    "&amp; &lt;",
    "$x$ ~~gone~~",
    "www.example.com http://example.com @somebody",
    "🐈‍⬛ 日本語 مرحبا",
    "```\nfence",
    "\u202eright to left",
    "x" * 500,
]


def config(**changes: Any) -> dict[str, Any]:
    values = {
        "schema": 1,
        "library": "s2a",
        "method": "s2a",
        "package": "s2a",
        "config": {},
        "num_classes": 3,
        "checksum": "0",
        "backbone": {
            "name": "vit_small_patch14_dinov2.lvd142m",
            "args": {"img_size": 224},
            "weights": {"hub": "timm/vit_small_patch14_dinov2.lvd142m", "revision": None, "file": "m", "sha256": None},
            "id": "0" * 16,
            "dtype": "float32",
            "frozen_dtype": None,
            "licence": "apache-2.0",
        },
        "image": {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize": "crop"},
        "labels": ["cat", "dog", "cow"],
        "metrics": {"accuracy": 91.25, "val_accuracy": 93.5, "macro_f1": 90.5, "peak_mb": 1234.5, "curve": [1, 2]},
        "data": {"name": "pets", "counts": {"train": 80, "test": 20}, "data_id": "ab12", "licence": "cc-by-4.0"},
        "memory": {
            "params_trained": 10,
            "params_total": 1000,
            "adapter_bytes": 2_000_000,
            "backbone_bytes": 88_000_000,
        },
        "versions": {},
    }
    return {**values, **changes}


def document(card: str) -> str:
    """The HTML of a card's text, without its front matter."""
    text = ModelCard(card).text
    return MARKDOWN.render(text)


def shape(html: str) -> list[str]:
    """The document's tags in order."""
    return re.findall(r"</?[a-z0-9]+", html)


def test_the_front_matter_says_what_the_hub_asks() -> None:
    data: Any = ModelCard(make_card(config())).data
    assert data.library_name == "s2a"
    assert data.base_model == "timm/vit_small_patch14_dinov2.lvd142m"
    assert data.pipeline_tag == "image-classification"
    assert data.license == "apache-2.0"
    assert "s2a" in data.tags
    results = {(r.metric_type, r.dataset_split): r.metric_value for r in data.eval_results}
    assert results == {("accuracy", None): 91.25, ("accuracy", "validation"): 93.5, ("f1", None): 90.5}
    assert {r.dataset_name for r in data.eval_results} == {"pets"}
    assert {r.task_type for r in data.eval_results} == {"image-classification"}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("mit", {"license": "mit"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("My own; © terms", {"license": "other", "license_name": "my-own-terms"}),
        (None, {}),
    ],
)
def test_licences_are_the_hubs_or_other(licence: str | None, expected: dict[str, str]) -> None:
    card = make_card(config(backbone={**config()["backbone"], "licence": licence}))
    data = ModelCard(card).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    assert ("not known" in card) == (licence is None)


def test_the_card_says_what_the_folder_has() -> None:
    html = document(make_card(config()))
    for words in (
        "cat, dog, cow",
        "91.25",
        "pets",
        "train 80, test 20",
        "1,234.5 MB",
        "10 of 1,000 (1.00 %)",
        "2.00 MB",
    ):
        assert words in html
    for section in ("Classes", "Data", "Metrics", "Memory", "Backbone", "How to use", "Licence", "Limits"):
        assert f"<h2>{section}</h2>" in html
    assert 's2a.from_pretrained("FOLDER")' in make_card(config())
    assert "s2a-bench predict FOLDER" in make_card(config())


def test_the_card_names_the_packages_that_bring_method_and_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "# pip install s2a\n" in make_card(config(package="s2a"))
    assert "# pip install s2a-baselines\n" in make_card(config(package="s2a_baselines"))
    point = SimpleNamespace(dist=SimpleNamespace(name="some-package"))
    monkeypatch.setattr("s2a.pretrained.card.registered", lambda name: point)
    card = make_card(config(package="s2a"))
    assert "# pip install s2a some-package\n" in card
    assert "Name in timm" not in card


def test_the_python_in_the_card_is_python() -> None:
    for classes in (3, 0):
        code = re.search(r"```python\n(.*?)```", make_card(config(num_classes=classes, labels=None)), re.DOTALL)
        assert code is not None
        compile(code[1], "card", "exec")


def test_little_is_enough() -> None:
    bare = config(labels=None, metrics=None, data=None, image=None, package=None)
    bare["backbone"] = {**bare["backbone"], "weights": None, "args": {}, "licence": None}
    card: Any = ModelCard(make_card(bare))
    assert card.data.base_model is None
    assert card.data.eval_results is None
    features: Any = ModelCard(make_card({**bare, "num_classes": 0}))
    assert features.data.pipeline_tag == "image-feature-extraction"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_change_nothing_but_themselves(name: str) -> None:
    plain = shape(document(make_card(config(labels=["x"] * 3, data={"name": "x", "x": "x"}, metrics={"x": "x"}))))
    values = config(labels=[name] * 3, data={"name": name, name: name}, metrics={name: name})
    values["backbone"] = {**values["backbone"], "licence": name}
    card = make_card(values)
    assert shape(document(card)) == plain
    assert ModelCard(card).data.to_dict()["library_name"] == "s2a"
    assert max(map(len, card.splitlines())) < 3000


def test_names_are_shown_as_they_are() -> None:
    names = [name for name in HOSTILE if name.isprintable() and "  " not in name and len(name) < 80]
    rendered = MARKDOWN.render(f"x {escape(' '.join(names), 10_000)}")
    assert len(names) > 10
    assert unescape(rendered).strip() == f"<p>x {' '.join(names)}</p>"


@given(st.text(max_size=60))
def test_any_text_stays_on_one_line_and_makes_no_markup(name: str) -> None:
    shown = escape(name)
    assert len(shown.splitlines()) <= 1
    html = MARKDOWN.render(f"x {shown}")
    assert shape(html) == ["<p", "</p"]


def test_ten_thousand_classes_make_a_short_card() -> None:
    labels = [f"class {i:05}" for i in range(10_000)]
    card = make_card(config(num_classes=10_000, labels=labels))
    assert len(card) < 8000
    assert "class 00049, and 9950 more" in card
    assert "class 00050" not in card
