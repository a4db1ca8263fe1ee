from __future__ import annotations

import pytest
import torch
from torch import nn

import qat_vsam.evaluate
from qat_vsam.errors import ConfigError, DataError
from qat_vsam.evaluate import accuracy, sharpness


def test_accuracy_counts_over_batches_of_different_sizes() -> None:
    logits = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])] * 5
    labels = torch.tensor([0, 1, 0, 3, 0])
    result = accuracy(lambda x: x, [(logits[:3], labels[:3]), (logits[3:], labels[3:])])
    assert (result.correct, result.total, result.value) == (4, 5, 0.8)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-6)


def test_an_image_with_a_logit_that_is_not_finite_is_wrong() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [1.0, 0.0]])
    result = accuracy(lambda x: x, [(logits, torch.zeros(3, dtype=torch.int64))])
    assert result.correct == 1
    assert result.loss != result.loss


def test_evaluation_leaves_modes_statistics_and_gradients_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Dropout())
    model.train()
    model[1].eval()  # a batch norm that fine-tuning keeps frozen
    before = {key: value.clone() for key, value in model.state_dict().items()}
    accuracy(model, [(torch.randn(3, 4), torch.tensor([0, 1, 1]))])
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model[2].weight.grad is None


def test_modes_come_back_when_the_model_raises() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError):
        accuracy(model, [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))])
    assert model.training
    assert model[0].training


def test_no_batches_is_an_error_and_not_zero_percent() -> None:
    with pytest.raises(DataError, match="no images"):
        accuracy(lambda x: x, [])
    with pytest.raises(DataError, match="no images"):
        sharpness(nn.Linear(1, 1), [])


def test_the_room_can_be_called_as_its_main_function() -> None:
    batches = [(torch.eye(2), torch.tensor([0, 1]))]
    assert qat_vsam.evaluate(lambda x: x, batches) == accuracy(lambda x: x, batches)


def _square(y: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return (y**2).sum(1).mean()


def test_sharpness_on_a_quadratic_is_rho_g_plus_half_the_curvature() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.eye(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    hessian = 2 / 3 * x @ x
    w = model.weight.detach().flatten()
    g = hessian @ w
    direction = g / g.norm()
    rho = 0.3
    expected = rho * g.norm() + rho**2 / 2 * direction @ hessian @ direction
    measured = sharpness(model, [(x, torch.zeros(3))], rho=rho, loss=_square)
    assert measured.value == pytest.approx(float(expected), rel=1e-10)
    assert measured.loss == pytest.approx(float(0.5 * w @ hessian @ w), rel=1e-10)


def test_sharpness_gives_weights_statistics_and_gradients_back_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [(torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 1, 0])) for _ in range(3)]
    result = sharpness(model, batches, rho=0.1)
    assert result.batches == 3
    assert result.value > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None


def test_sharpness_gives_weights_back_when_the_second_loss_raises() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    losses = iter([_square])

    def fails_at_the_second_call(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return next(losses)(y, target)

    with pytest.raises(StopIteration):
        sharpness(model, [(torch.ones(1, 2), torch.zeros(1))], loss=fails_at_the_second_call)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_must_be_positive(rho: float) -> None:
    with pytest.raises(ConfigError, match="rho"):
        sharpness(nn.Linear(1, 1), [], rho=rho)
