"""The closure that the loop hands to optimizers which choose rows by their losses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from qat_vsam.train import CostLedger, training_step
from qat_vsam.train.loop import row_losses

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 2


class HardRows(torch.optim.SGD):
    """Looks at the losses, without a gradient, and steps on the two rows with the largest."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.method = SimpleNamespace(needs_row_losses=True)
        self.gradient_evaluations = 0.0

    @torch.no_grad()
    def step(self, closure=None, batch_size=None):
        self.before, self.losses = closure(slice(None), backward=False)
        self.gradients_before = [p.grad for p in self.param_groups[0]["params"]]
        self.rows = self.losses.topk(2).indices
        with torch.enable_grad():
            value, self.chosen = closure(self.rows)
        super().step()
        return value


@pytest.fixture
def stepped():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    expected = functional.cross_entropy(model(X), Y, reduction="none").detach()
    optimizer = HardRows(model.parameters())
    value, passes = training_step(model, optimizer, functional.cross_entropy, X, Y, None)
    return optimizer, expected, value, passes


def test_a_method_that_needs_them_gets_the_losses_of_the_rows(stepped):
    optimizer, expected, value, _ = stepped
    torch.testing.assert_close(optimizer.losses, expected)
    torch.testing.assert_close(optimizer.chosen, expected[optimizer.rows])
    torch.testing.assert_close(value, expected[optimizer.rows].mean())
    assert not optimizer.losses.requires_grad
    assert not optimizer.chosen.requires_grad


def test_a_pass_without_backward_leaves_no_gradient_and_counts_as_a_forward_only(stepped):
    optimizer, _, _, passes = stepped
    assert optimizer.gradients_before == [None, None]
    ledger = CostLedger()
    ledger.count_step(6, passes)
    assert (ledger.forwards, ledger.gradient_evaluations) == (2, 2 / 6)


def test_row_losses_are_of_any_mean_loss():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 3, 2, 1, 1])
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    each = row_losses(smooth, logits, targets)
    assert each.shape == (5,)
    torch.testing.assert_close(each.mean(), smooth(logits, targets))
