"""Cards: what a method's file may say about the method, and what is known of a method that says nothing."""

from __future__ import annotations

import dataclasses

import pytest
import s2a
from s2a import registry
from s2a.card import SHAPES, Card, Recipe, Style
from s2a.errors import BrokenPackageWarning


@pytest.mark.parametrize("rates", [(1e-3, 0.0), (1e-3, float("nan")), (1e-3, float("inf")), (1e-3, True), ("1e-3",)])
def test_a_learning_rate_that_is_no_positive_number_is_refused(rates):
    with pytest.raises(s2a.S2AError, match="must be a number above 0"):
        Recipe(1e-3, rates)


@pytest.mark.parametrize("rates", [(1e-2, 1e-3), (1e-3, 1e-3, 1e-2)])
def test_searched_rates_must_ascend(rates):
    with pytest.raises(s2a.S2AError, match="ascend"):
        Recipe(1e-3, rates)


def test_a_search_always_tries_the_default():
    with pytest.raises(s2a.S2AError, match=r"learning_rate=0.002 is not among searched_rates"):
        Recipe(2e-3)


@pytest.mark.parametrize("colour", ["red", "#FF0000", "#f00", "url(x)", None])
def test_a_colour_has_six_digits(colour):
    with pytest.raises(s2a.S2AError, match="#rrggbb"):
        Style(colour, "#ffffff", "star")
    with pytest.raises(s2a.S2AError, match="#rrggbb"):
        Style("#ffffff", colour, "star")


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(s2a.S2AError, match=", ".join(SHAPES)):
        Style("#ffffff", "#ffffff", "moon")


def _card(**values) -> Card:
    return Card("Mine", "a", "b", "c", "d", "e", "f", **values)


@dataclasses.dataclass(frozen=True)
class MyConfig:
    scale: float = 0.1


@pytest.mark.parametrize(
    ("searched", "words"),
    [(("scael", (0.1, 1.0)), "'scael', which MyConfig does not have"), (("scale", (1.0, 2.0)), "the default 0.1")],
)
def test_a_card_that_does_not_fit_its_config_is_refused_at_registration(monkeypatch, searched, words):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    class Mine(s2a.Method):
        card = _card(recipe=Recipe(searched_option=searched))

    with pytest.raises(s2a.S2AError, match=words):
        s2a.register_method("mine", MyConfig)(Mine)
    assert "mine" not in s2a.list_methods()


def test_a_method_that_is_unknown_or_has_no_card_gets_the_defaults(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    class Mine(s2a.Method):
        pass

    s2a.register_method("mine", MyConfig)(Mine)
    for name in ("mine", "was_installed_once"):
        card = registry.get_card(name)
        assert (card.title, card.recipe, card.style, card.compared_by_default) == (name, Recipe(), None, False)
        assert card.order > max(registry.get_card(ours).order for ours in ("lora", "s2a"))


def test_a_package_that_cannot_be_imported_hides_no_card_of_the_others(monkeypatch):
    from importlib.metadata import EntryPoint

    points = [EntryPoint("broken", "no_such_package_of_methods", "s2a.methods")]
    points += [EntryPoint("baselines", "s2a_baselines", "s2a.methods")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "_broken", {})
    with pytest.warns(BrokenPackageWarning, match="'no_such_package_of_methods' cannot be imported"):
        assert registry.get_card("lora").title == "LoRA"
    assert "lora" in s2a.list_methods()


@pytest.mark.parametrize(
    ("width", "share"), [(64, 1.0), (96, 1.0), (128, 1.0), (256, 1 / 2), (768, 1 / 6), (2048, 1 / 16)]
)
def test_rates_fall_with_the_width_and_never_rise(width, share):
    recipe = Recipe(learning_rate=1e-2)
    assert recipe.rate_at(width) == pytest.approx(1e-2 * share, rel=0.05)  # two digits
    assert [recipe.rate_at(width, rate) for rate in recipe.searched_rates] == pytest.approx(
        [rate * share for rate in recipe.searched_rates], rel=0.05
    )
    assert recipe.rate_at(width) in [recipe.rate_at(width, rate) for rate in recipe.searched_rates]
    assert dataclasses.replace(recipe, width_power=0).rate_at(width) == 1e-2
    assert dataclasses.replace(recipe, width_power=2.0).rate_at(width) == pytest.approx(1e-2 * share**2, rel=0.05)


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf"), True, "1"])
def test_a_power_that_is_none_is_refused(power):
    with pytest.raises(s2a.S2AError, match="width_power"):
        Recipe(width_power=power)
