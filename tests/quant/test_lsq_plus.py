"""LSQ+: a learned offset for activations, from its gradients to the exported zero point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import ConfigError
from qat_vsam.export import integer_model, load_packed
from qat_vsam.quant import (
    LSQPlusQuantizer,
    LSQQuantizer,
    QuantSpec,
    TensorSpec,
    TensorStatistics,
    calibrate,
    make_quantizer,
    param_groups,
    prepare,
    quant_layers,
    set_quantizers_enabled,
)


def ready(x: torch.Tensor, bits: int, **options) -> LSQPlusQuantizer:
    spec = TensorSpec(bits=bits, method="lsq_plus", **options)
    quantizer = make_quantizer(spec, "activation", dtype=x.dtype)
    statistics = TensorStatistics()
    statistics.update(x)
    quantizer.initialise(statistics)
    assert isinstance(quantizer, LSQPlusQuantizer)
    return quantizer


def literal(x, s, beta, q_max, factor):
    """The paper's formula in plain autograd, its offset rounded to the grid."""
    s = (s * factor) + (s - s * factor).detach()
    beta = (beta * factor) + (beta - beta * factor).detach()
    on_grid = beta + (-s * (-beta / s).clamp(0, q_max).round() - beta).detach()
    v = (x - on_grid) / s
    clipped = torch.where((v >= 0) & (v <= q_max), v, v.detach().clamp(0, q_max))
    rounded = clipped + (clipped.round() - clipped).detach()
    return rounded * s + on_grid


@pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.nightly)])
def test_it_is_the_papers_formula_forward_and_backward(examples):
    @settings(max_examples=examples, deadline=None)
    @given(
        bits=st.integers(1, 8),
        seed=st.integers(0, 10_000),
        shift=st.floats(-1, 1),
        shape=st.sampled_from([(5,), (3, 4), (2, 3, 4, 5), (1, 7)]),
    )
    def check(bits, seed, shift, shape):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + shift
        quantizer = ready(x, bits)
        with torch.no_grad():
            quantizer.offset -= 0.3 * quantizer.step_size * torch.rand(1, generator=generator)
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        s, beta = (p.detach().reshape(()).requires_grad_() for p in (quantizer.step_size, quantizer.offset))
        x_hat = quantizer(leaf)
        x_hat.backward(gradient)
        q_max = 2**bits - 1
        expected = literal(twin, s, beta, q_max, 1 / (x[0].numel() * q_max) ** 0.5)
        expected.backward(gradient)
        away_from_ties = ((x / s.detach()).frac().abs() - 0.5).abs().min() > 1e-6
        if away_from_ties:
            torch.testing.assert_close(x_hat, expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-10, atol=1e-10)
            # s enters the literal form's offset through the grid, which is held still in the backward pass
            torch.testing.assert_close(quantizer.step_size.grad[0], s.grad, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(quantizer.offset.grad[0], beta.grad, rtol=1e-10, atol=1e-10)

    check()


@settings(max_examples=200, deadline=None)
@given(bits=st.integers(1, 8), seed=st.integers(0, 10_000), shift=st.floats(-3, 3))
def test_properties_of_the_grid(bits, seed, shift):
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) + shift
    quantizer = ready(x, bits)
    codes, x_hat = quantizer.codes(x), quantizer(x)
    assert codes.dtype == torch.uint8
    assert codes.max() <= 2**bits - 1
    assert torch.equal(x_hat, quantizer.dequantize(codes))
    assert torch.equal(quantizer(x_hat), x_hat)
    assert quantizer(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    order = x.argsort()
    assert torch.all(x_hat[order].diff() >= 0)
    inside = (codes > 0) & (codes < 2**bits - 1)
    assert torch.all((x - x_hat)[inside].abs() <= quantizer.step() * 0.5001)


def test_an_offset_halves_the_error_of_values_that_reach_far_to_one_side():
    x = nn.functional.silu(torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 2)
    symmetric = LSQQuantizer(TensorSpec(bits=4), "activation")
    statistics = TensorStatistics()
    statistics.update(x)
    symmetric.initialise(statistics)
    errors = [(q(x) - x).square().mean() for q in (ready(x, 4), symmetric)]
    assert errors[0] < 0.5 * errors[1]


def one_tail(values):
    return values.exp() - 1


def a_tail_of_cubes(values):
    return torch.where(values < 0, values**3, values)


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("shape", [one_tail, a_tail_of_cubes])
def test_the_first_range_has_the_least_squared_error_of_all_pairs_of_ends(shape, mirror):
    x = mirror * shape(torch.randn(2048, generator=torch.Generator().manual_seed(0)))
    fractions = torch.linspace(0.05, 1, 20)
    errors = []
    for low in fractions * x.min():
        for high in fractions * x.max():
            step = (high - low) / 15
            zero_point = (-low / step).round()
            errors.append(((x / step).round().clamp(-zero_point, 15 - zero_point) * step - x).square().mean())
    own = (ready(x, 4)(x) - x).square().mean()
    assert own <= 1.02 * min(errors)
    assert own < 0.9 * errors[-1]


@pytest.mark.parametrize("mirror", [1, -1])
def test_the_range_of_values_far_from_zero_begins_at_zero(mirror):
    x = mirror * (torch.rand(256, generator=torch.Generator().manual_seed(0)) + 5)
    quantizer = ready(x, 4)
    assert (quantizer(x) - x).abs().max() < 0.6 * 6 / 15
    assert int(quantizer.zero_point) == (0 if mirror == 1 else 15)


def test_weights_of_the_method_are_those_of_lsq():
    quantizer = make_quantizer(TensorSpec(4, method="lsq_plus"), "weight")
    assert isinstance(quantizer, LSQQuantizer)
    assert (quantizer.q_min, quantizer.q_max) == (-8, 7)


def test_an_offset_beyond_the_codes_leaves_zero_at_the_nearest_end():
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    quantizer = ready(x, 2)
    quantizer.set_step(torch.tensor(1.0), zero_point=1)
    for offset, zero_point, expected in [(5.0, 0, [0, 0, 1, 2]), (-9.0, 3, [-1, 0, 0, 0])]:
        with torch.no_grad():
            quantizer.offset.fill_(offset)
        assert int(quantizer.zero_point) == zero_point
        assert quantizer(x).tolist() == expected


def test_values_at_the_ends_of_the_range_are_inside_it():
    x = torch.tensor([-1.0, 2.0, -1.001, 2.001], requires_grad=True)
    quantizer = ready(x, 2)
    quantizer.set_step(torch.tensor(1.0), zero_point=1)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_the_step_size_stays_positive_and_is_a_power_of_two_where_asked():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    rounded = ready(x, 4, power_of_two=True)
    assert rounded.step().log2().frac() == 0
    assert rounded.step() != rounded.step_size.abs()
    assert torch.equal(rounded(x), rounded.dequantize(rounded.codes(x)))
    quantizer = ready(x, 4)
    before = quantizer(x)
    with torch.no_grad():
        quantizer.step_size.neg_()
    assert quantizer.step() > 0
    assert torch.equal(quantizer(x), before)
    zeros = ready(torch.zeros(8), 4)
    assert zeros.step() == 1
    assert zeros(torch.ones(2)).isfinite().all()


def test_half_precision_stays_half_precision():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    quantizer = ready(x, 4)
    leaf = x.bfloat16().requires_grad_()
    x_hat = quantizer(leaf)
    x_hat.sum().backward()
    assert x_hat.dtype == leaf.grad.dtype == torch.bfloat16
    assert torch.equal(x_hat, quantizer(leaf.float()).bfloat16())
    assert quantizer.step_size.grad.dtype == torch.float32


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return model, torch.randn(64, 3, 8, 8)


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_from_training_to_the_files(bits, tmp_path):
    model, x = network()
    y = torch.randint(4, (64,), generator=torch.Generator().manual_seed(0))
    floats = model.eval()(x)
    prepare(model, QuantSpec.preset(bits, method="lsq_plus"), sample=x)
    set_quantizers_enabled(model, False)
    assert torch.equal(model(x), floats)
    set_quantizers_enabled(model, True)
    calibrate(model, [x])
    kinds = {type(layer.weight_quantizer) for _, layer in quant_layers(model)}
    assert kinds == {LSQQuantizer}
    groups = {group["role"]: len(group["params"]) for group in param_groups(model)}
    assert groups["step_size"] == 3 * 3
    optimizer = torch.optim.SGD(param_groups(model), lr=0.05, momentum=0.9)
    losses = []
    before = model[3].input_quantizer.offset.item()
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model[3].input_quantizer.offset.item() != before
    model.eval()
    assert int(model[3].input_quantizer.zero_point) > 0
    torch.testing.assert_close(integer_model(model)(x), model(x), rtol=1e-3, atol=1e-4)
    for name in ("model.safetensors", "model.onnx"):
        assert qv.export(model, tmp_path / name, format=name.split(".")[1].replace("safetensors", "packed"), sample=x)
    loaded = load_packed(tmp_path / "model.safetensors", network()[0])
    assert torch.equal(loaded(x), integer_model(model)(x))


def test_what_it_cannot_be_combined_with():
    with pytest.raises(ConfigError, match=r"surrogate: got ewgs with lsq_plus; expected ste; leave it out"):
        TensorSpec(4, method="lsq_plus", surrogate="ewgs")
