"""Bias correction gives each channel back the mean, and behind a batch norm the spread, that it had in float."""

import copy

import pytest
import torch
from torch import nn

from qat_vsam.errors import InputError
from qat_vsam.quant import QuantSpec, calibrate, correct_bias, prepare, set_quantizers_enabled


def depthwise_net():
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12, affine=False), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 16, 5)),
    )
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def quantized(build=depthwise_net, rows=32):
    """A float net, its quantized twin, and data."""
    torch.manual_seed(0)
    net, x = build(), torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.3
    model = copy.deepcopy(net)
    prepare(model, QuantSpec.preset("w2a8", first_last_bits=2))
    calibrate(model, [x])
    return net, model, x


def seen_at(model, name, x):
    """What a module reads and what it makes, in evaluation mode."""
    seen = {}
    hook = model.get_submodule(name).register_forward_hook(lambda _, a, y: seen.update(reads=a[0], makes=y))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return seen


def rows(values):
    return values.double().transpose(0, 1).reshape(values.shape[1], -1)


def corrected_one_by_one(net, model, x):
    """The twin: a whole forward of both nets for each module, in the order in which they run."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            f, q = (rows(seen_at(each, name, x)["reads"]) for each in (net, model))
            gain = ((f.var(1) + module.eps) / (q.var(1) + module.eps)).sqrt()
            mean, variance = module.running_mean.double(), module.running_var.double()
            module.running_mean.copy_(q.mean(1) - (f.mean(1) - mean) / gain)
            module.running_var.copy_((variance + module.eps) / gain.square() - module.eps)
        elif getattr(module, "bias", None) is not None:
            f, q = (rows(seen_at(each, name, x)["makes"]).mean(1) for each in (net, model))
            module.bias.data += (f - q).float()


def test_it_does_what_a_correction_of_one_module_after_the_other_does():
    net, model, x = quantized()
    twin = copy.deepcopy(model)
    corrected_one_by_one(net, twin, x)
    before = copy.deepcopy(model.state_dict())
    correct_bias(model, [(x, None)])
    expected = twin.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    places = {f"{i}.{what}" for i in (1, 4, 7) for what in ("running_mean", "running_var")} | {"6.bias", "10.bias"}
    assert changed == places
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_every_batch_norm_hands_on_the_mean_and_the_spread_of_the_float_net():
    net, model, x = quantized()
    apart = {name: (seen_at(net, name, x)["makes"], seen_at(model, name, x)["makes"]) for name in ("1", "4", "7")}
    assert all((rows(f).mean(1) - rows(q).mean(1)).abs().max() > 0.02 for f, q in apart.values())
    correct_bias(model, [x])
    for name in ("1", "4", "7"):
        f, q = (rows(seen_at(each, name, x)["makes"]) for each in (net, model))
        torch.testing.assert_close(q.mean(1), f.mean(1), rtol=0, atol=1e-3)
        torch.testing.assert_close(q.std(1), f.std(1), rtol=5e-3, atol=1e-3)


def test_batches_of_different_size_count_by_their_rows():
    _, model, x = quantized()
    other = copy.deepcopy(model)
    correct_bias(model, [x])
    correct_bias(other, [x[:5], x[5:30], x[30:]])
    # nothing is corrected before the first batch norm, so that its pooled statistics are exact
    for buffer in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(other[1], buffer), getattr(model[1], buffer))
    _, first, _ = quantized()
    correct_bias(first, iter([x, x + 100]), max_batches=1)
    torch.testing.assert_close(first[4].running_mean, model[4].running_mean)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (9, 6)),
        (nn.Linear(6, 4), (9, 5, 6)),
        (nn.Conv1d(6, 4, 3), (9, 6, 7)),
        (nn.Conv2d(6, 4, 3), (9, 6, 7, 7)),
        (nn.ConvTranspose2d(6, 4, 3), (9, 6, 5, 5)),
        (nn.Conv3d(6, 4, 2), (9, 6, 3, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_mean_of_each_output_channel_is_that_of_the_float_layer(layer, shape):
    layer.reset_parameters()
    model, x = nn.Sequential(copy.deepcopy(layer)), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    axis = x.dim() - 1 if isinstance(layer, nn.Linear) else x.dim() - 1 - len(layer.kernel_size)

    def mean():
        return model(x).movedim(axis, 0).reshape(4, -1).mean(1).detach()

    expected = mean()
    prepare(model, QuantSpec.preset("w2a8", first_last_bits=2))
    calibrate(model, [x])
    assert (mean() - expected).abs().max() > 0.005
    correct_bias(model, [x])
    torch.testing.assert_close(mean(), expected, rtol=0, atol=1e-5)


def test_a_norm_that_is_called_twice_gets_the_correction_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.second(self.norm(self.first(x)))).flatten(1)

    def moments(*calls):
        values = torch.cat([rows(call) for call in calls], dim=1)
        return values.mean(1), values.var(1) + net.norm.eps

    net, model, x = quantized(Twice)
    with torch.no_grad():
        net.eval()
        in_float = [net.first(x), net.second(net.norm(net.first(x)))]
        call = model.eval().first(x)
        (mean_f, variance_f), (mean_q, variance_q) = moments(in_float[0]), moments(call)
        # what the second call reads comes from a first one that is put right
        right = (rows(call) - mean_q[:, None]) * (variance_f / variance_q).sqrt()[:, None] + mean_f[:, None]
        right = right.reshape(call.transpose(0, 1).shape).transpose(0, 1).float()
        (mean_f, variance_f), (mean_q, variance_q) = moments(*in_float), moments(call, model.second(model.norm(right)))

    correct_bias(model, [x])
    torch.testing.assert_close(model.norm.running_mean.double(), mean_q - mean_f * (variance_q / variance_f).sqrt())
    expected = (1 + model.norm.eps) * variance_q / variance_f - model.norm.eps
    torch.testing.assert_close(model.norm.running_var.double(), expected)


def test_flags_and_quantizers_stay_and_nothing_is_corrected_without_quantizers():
    _, model, x = quantized()
    model.train()
    model[4].eval()
    set_quantizers_enabled(model, False)
    before = copy.deepcopy(model.state_dict())
    correct_bias(model, [x])
    assert [module.training for module in model][3:6] == [True, False, True]
    assert not model[0].weight_quantizer.enabled
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5)


def test_bad_batches_and_float_nets_are_refused_and_nothing_changes():
    net, model, x = quantized()
    before = copy.deepcopy(model.state_dict())
    for data in ([], [x, torch.full_like(x, float("nan"))]):
        with pytest.raises(InputError, match="batch"):
            correct_bias(model, data)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="prepare"):
        correct_bias(net, [x])
    uncalibrated = depthwise_net()
    prepare(uncalibrated, QuantSpec.preset("w4a4"))
    with pytest.raises(InputError, match="calibrate"):
        correct_bias(uncalibrated, [x])
