"""Scores of a list of images: against scikit-learn and by hand."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import scores
from s2a_bench.cells.scores import Scored
from s2a_bench.cells.train import class_weights, loss_of
from s2a_bench.config import TrainConfig
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch import nn


def scored(labels, predicted, classes) -> Scored:
    """Every image goes to its predicted class with certainty."""
    probabilities = torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()
    return Scored(torch.tensor(labels), probabilities, 0.0)


@st.composite
def cases(draw):
    classes = draw(st.integers(2, 5))
    count = draw(st.integers(1, 30))
    several = st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)
    return draw(several), draw(several), classes


@given(cases())
def test_the_numbers_are_those_of_scikit_learn(case):
    labels, predicted, classes = case
    found = scored(labels, predicted, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that were predicted and have no image
        assert found.balanced_accuracy == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predicted))
    assert found.accuracy == pytest.approx(100 * metrics.accuracy_score(labels, predicted))
    f1 = metrics.f1_score(labels, predicted, average="macro", zero_division=0)  # type: ignore[arg-type]
    assert found.macro_f1 == pytest.approx(100 * f1)


def test_by_hand():
    # 4 images of class 0, 3 right; 1 of class 1, wrong; 1 of class 2, right; none of class 3.
    found = scored([0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 0, 2], 4)
    assert found.confusion.tolist() == [[3, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert found.per_class[:3].tolist() == [75.0, 0.0, 100.0] and bool(found.per_class[3].isnan())
    assert found.accuracy == pytest.approx(100 * 4 / 6)
    assert found.balanced_accuracy == pytest.approx((75 + 0 + 100) / 3)
    # F1: class 0 has precision 3/4 and recall 3/4, class 1 none, class 2 both 1; class 3 is nowhere.
    assert found.macro_f1 == pytest.approx(100 * (0.75 + 0 + 1) / 3)


class Pictures:
    """Rows of numbers in place of images."""

    def __init__(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        assert generator is None, "scoring draws nothing"
        return self.rows[indices]


def test_a_pass_over_a_list():
    torch.manual_seed(0)
    images = Pictures(torch.randn(300, 4), torch.randint(0, 3, (300,)))
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train()
    recipe = TrainConfig(label_smoothing=0.3)
    found = scores.score(model, images, recipe)
    plain = model[1](images.rows).double().detach()
    rows = torch.arange(300)
    expected = (plain.logsumexp(1) - plain[rows, images.labels]).mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-5), "without dropout and label smoothing"
    assert torch.allclose(found.probabilities.double(), plain.softmax(1), atol=1e-6)
    assert found.accuracy == scores.accuracy(model, images, recipe, batch_size=7)
    assert not model.training


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_balanced_loss_counts_every_class_the_same(smoothing):
    labels = torch.tensor([0] * 8 + [2] * 3 + [3])
    weights = class_weights(labels)
    present = np.unique(labels.numpy())
    expected = compute_class_weight("balanced", classes=present, y=labels.numpy())
    assert weights[present].numpy() == pytest.approx(expected)
    assert weights[1] == 0 and float(weights[labels].mean()) == pytest.approx(1)
    logits = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0))
    recipe = TrainConfig(label_smoothing=smoothing, balance=True)
    plain = dataclasses.replace(recipe, balance=False)
    by_class = [loss_of(logits[labels == c], labels[labels == c], plain) for c in (0, 2, 3)]
    assert float(loss_of(logits, labels, recipe, weights)) == pytest.approx(float(sum(by_class)) / 3, rel=1e-5)
    if not smoothing:
        theirs = torch.nn.functional.cross_entropy(logits, labels, weight=torch.cat([weights, torch.zeros(1)]))
        assert float(loss_of(logits, labels, recipe, weights)) == pytest.approx(float(theirs), rel=1e-5)
