"""Calibration finds sign and step of every input, or says why it cannot."""

import copy

import pytest
import torch
from torch import nn

from qat_vsam.errors import ConfigError, InputError
from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.detour = False

    def forward(self, x):
        x = torch.nn.functional.relu(self.norm(self.first(x)))
        return self.last(self.drop(x) if self.detour else self.second(x))


def net(bits="w4a4", **options):
    torch.manual_seed(0)
    model = Net()
    prepare(model, QuantSpec.preset(bits, **options))
    return model


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 4, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("method", ["mse", "lsq"])
def test_signs_and_steps_come_from_all_batches(method):
    model = net()
    data = batches()
    with torch.no_grad():
        model.eval()
        x = torch.cat(data)
        hidden = nn.functional.relu(model.norm(nn.functional.linear(x, model.first.weight, model.first.bias)))
    calibrate(model, iter(data), method=method)
    assert [layer.input_quantizer.signed for _, layer in quant_layers(model)] == [True, False, True]
    step = model.second.input_quantizer.scale().item()
    if method == "lsq":
        assert step == pytest.approx((2 * hidden.abs().mean() / 15**0.5).item())
    else:

        def error(s):
            return ((hidden / s).clamp(0, 15).round() * s - hidden).square().mean().item()

        assert error(step) <= min(error(step * 0.85), error(step * 1.15))


def test_pairs_of_inputs_and_labels_work_and_max_batches_stops():
    data = batches()
    taken = []

    def stream():
        for x in data:
            taken.append(x)
            yield x, torch.zeros(32)

    one, other = net(), net()
    calibrate(one, stream(), max_batches=1)
    calibrate(other, data[:1])
    assert torch.equal(one(data[0]), other(data[0]))
    assert len(taken) <= 2


def test_modes_statistics_and_switches_are_left_as_they_were():
    model = net()
    model.train()
    model.drop.eval()
    model.first.input_quantizer.enabled = False
    mean = model.norm.running_mean.clone()
    calibrate(model, batches())
    assert model.training
    assert not model.drop.training
    assert not model.first.input_quantizer.enabled
    assert model.second.input_quantizer.enabled
    assert torch.equal(model.norm.running_mean, mean)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_out_of_reach_is_named_and_nothing_is_set():
    model = net()
    model.detour = True
    with pytest.raises(InputError, match="calibration: got no input at second"):
        calibrate(model, batches())
    assert not any(layer.input_quantizer.initialised for _, layer in quant_layers(model))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "batches: got no batch"),
        ([torch.tensor([[float("nan")] * 4])], "batch 0: got NaN or infinite values"),
        ([torch.zeros(2, 4), torch.full((2, 4), float("inf"))], "batch 1: got NaN or infinite values"),
        (["text"], "batch 0: got str"),
        ([{"x": 1}], "batch 0: got dict"),
    ],
)
def test_bad_data_is_refused(data, message):
    model = net()
    with pytest.raises(InputError, match=message):
        calibrate(model, data)
    assert not any(layer.input_quantizer.initialised for _, layer in quant_layers(model))


def test_a_broken_model_is_told_from_broken_data():
    model = net()
    nn.init.constant_(model.first.bias, float("nan"))
    with pytest.raises(InputError, match="calibration: got NaN or infinity at second, last"):
        calibrate(model, batches())


def test_a_float_model_and_an_unknown_method_are_refused():
    with pytest.raises(InputError, match="model: got no quantized layer"):
        calibrate(Net(), batches())
    with pytest.raises(ConfigError, match=r"method: got mes; .*did you mean mse"):
        calibrate(net(), batches(), method="mes")


def test_weight_only_needs_no_step_for_inputs():
    model = net("w4")
    calibrate(model, batches())
    assert model(batches()[0]).shape == (32, 2)


def test_uncalibrated_use_is_refused():
    with pytest.raises(InputError, match="got no step size; expected a calibrated model; call calibrate"):
        net()(batches()[0])


def test_zero_inputs_give_a_usable_step():
    model = net()
    calibrate(model, [torch.zeros(8, 4)])
    assert torch.isfinite(model(torch.randn(8, 4))).all()


def test_everything_is_restored_by_a_plain_load_state_dict(tmp_path):
    trained = net()
    calibrate(trained, batches())
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    fresh = net()
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = batches()[0]
    assert torch.equal(fresh.eval()(x), trained.eval()(x))


def test_layers_that_are_reached_in_training_alone_are_calibrated_without_moving_a_statistic():
    class WithAuxiliaryHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
            self.head, self.auxiliary = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x):
            x = self.drop(self.norm(self.stem(x)))
            return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)

    torch.manual_seed(0)
    model, x = WithAuxiliaryHead().train(), torch.randn(32, 4)
    before = copy.deepcopy(model.norm.state_dict())
    prepare(model, QuantSpec.preset("w4a4"))
    calibrate(model, [x])
    assert all(torch.equal(model.norm.state_dict()[key], value) for key, value in before.items())
    assert all(module.training for module in model.modules())
    assert model.auxiliary.input_quantizer.initialised
    first, second = model(x)
    assert first.isfinite().all()
    assert second.isfinite().all()
