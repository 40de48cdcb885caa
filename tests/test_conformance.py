"""Every registered method keeps its promises on every family. A new method is tested without an edit here."""

from __future__ import annotations

import pytest
import s2a
from s2a import testing
from tiny import CLASSES, MODELS


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("method", s2a.list_methods())
def test_method_keeps_its_promises(method: str, family: str) -> None:
    make_model, size = MODELS[family]
    config = s2a.method_config(method)
    model = make_model()
    before = testing.snapshot(model)
    try:
        s2a.attach(model, config, CLASSES, image_size=size)
    except s2a.UnsupportedModel:  # A method may refuse a family, but cleanly.
        assert not testing.differences(before, testing.snapshot(model))
        return
    testing.check_method(config, make_model, CLASSES, image_size=size)


@pytest.mark.parametrize("method", s2a.list_methods())
def test_method_supports_a_plain_vit(method: str) -> None:
    make_model, size = MODELS["vit"]
    s2a.attach(make_model(), s2a.method_config(method), CLASSES, image_size=size)
