"""The LSQ Function computes the paper's formulas, exactly and in every layout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_vsam.quant import (
    dequantize,
    integer_range,
    lsq_quantize,
    lsq_quantize_reference,
    positive_scale,
    power_of_two,
    quantize,
    sign_quantize,
)

SHAPES = [(1,), (7,), (5, 3), (1, 9), (4, 3, 5), (2, 3, 4, 5), (3, 1, 1, 1), (2, 2, 3, 1, 2)]


@st.composite
def cases(draw):
    """A float64 tensor with zero and constant channels in it, a scale, a grid and a gradient."""
    bits = draw(st.integers(1, 8))
    signed = draw(st.booleans()) and bits > 1
    if signed and bits < 8 and draw(st.booleans()):
        q_min, q_max = (code / 2 for code in integer_range(bits, signed, balanced=True))
    else:
        q_min, q_max = integer_range(bits, signed, draw(st.booleans()))
    shape = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    per_channel = draw(st.booleans())
    step = torch.rand((shape[0],) if per_channel else (), generator=generator, dtype=torch.float64) + 0.05
    reach = draw(st.sampled_from([0.3, 1.0, 3.0])) * q_max
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * reach * step.mean()
    if draw(st.booleans()):
        x[0] = draw(st.sampled_from([0.0, 1.0, -2.5]))
    if draw(st.booleans()):
        x = ((x / step.mean()).round() + q_min % 1) * step.mean()
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, step, q_min, q_max, gradient, draw(st.sampled_from([1.0, 0.03]))


def level(v, q_min):
    """The level nearest to v: an integer, or half of an odd number."""
    return np.round(v - q_min % 1) + q_min % 1


@settings(max_examples=2000, deadline=None)
@given(cases())
def test_gradients_equal_the_formula_and_plain_autograd(case):
    x, step, q_min, q_max, gradient, factor = case
    results = []
    for function in (lsq_quantize, lsq_quantize_reference):
        x_leaf, step_leaf = x.clone().requires_grad_(), step.clone().requires_grad_()
        x_hat = function(x_leaf, step_leaf, q_min, q_max, factor)
        x_hat.backward(gradient)
        results.append((x_hat.detach(), x_leaf.grad, step_leaf.grad))

    s = (step if step.dim() == 0 else step.reshape(-1, *[1] * (x.dim() - 1))).numpy()
    v = x.numpy() / s
    inside = (v >= q_min) & (v <= q_max)
    d_step = np.where(inside, level(v, q_min) - v, np.where(v > q_max, q_max, q_min)) * gradient.numpy() * factor
    kept_axes = tuple(range(1, x.dim())) if step.dim() else None
    formula = (
        torch.from_numpy(np.asarray(level(np.clip(v, q_min, q_max), q_min) * s)),
        torch.from_numpy(np.where(inside, gradient.numpy(), 0.0)),
        torch.from_numpy(np.asarray(d_step.sum(axis=kept_axes))),
    )
    for result in results:
        for got, wanted in zip(result, formula, strict=True):
            wanted = wanted.reshape(got.shape)
            assert torch.all((got - wanted).abs() <= 1e-10 * (1 + wanted.abs()))


@settings(max_examples=2000, deadline=None)
@given(cases())
def test_values_lie_on_the_grid_near_their_origin_in_order_and_stay_when_quantized_again(case):
    x, step, q_min, q_max, _, _ = case
    x_hat = lsq_quantize(x, step, q_min, q_max)
    s = step if step.dim() == 0 else step.reshape(-1, *[1] * (x.dim() - 1))
    codes = quantize(x, step, q_min, q_max)

    assert codes.dtype == (torch.int8 if q_min < 0 else torch.uint8)
    stride = 2 if q_min % 1 else 1
    assert codes.min() >= stride * q_min
    assert codes.max() <= stride * q_max
    assert torch.equal(dequantize(codes, step / stride), x_hat)
    assert torch.equal(lsq_quantize(x_hat, step, q_min, q_max), x_hat)
    clipped = torch.clamp(x, q_min * s, q_max * s)
    assert torch.all((clipped - x_hat).abs() <= s / 2 * (1 + 1e-12))
    rows = x_hat.reshape(x.shape[0], -1) if step.dim() else x_hat.reshape(1, -1)
    order = x.reshape(rows.shape).argsort(1)
    assert torch.all(rows.gather(1, order).diff(dim=1) >= 0)
    if stride == 1:
        assert torch.all(lsq_quantize(torch.zeros_like(x), step, q_min, q_max) == 0)
    else:
        assert torch.all(codes % 2 == 1)
        assert torch.equal(x_hat, -lsq_quantize(-x, step, q_min, q_max)) or bool(((x / s) % 1 == 0).any())


def test_ties_go_to_even_codes():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert quantize(x, torch.tensor(1.0), -8, 7).tolist() == [0, 2, 2, 0, -2, -2]
    assert lsq_quantize(x, torch.tensor(1.0), -8, 7).tolist() == [0, 2, 2, 0, -2, -2]


def test_mask_is_taken_before_rounding():
    # 15.3 rounds to the largest code 15 but lies outside the range: no gradient goes to x, Qp goes to s.
    x, step = torch.tensor([15.3], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    lsq_quantize(x, step, 0, 15).sum().backward()
    assert x.grad.item() == 0
    assert step.grad.item() == 15


def test_gradient_passes_at_both_ends_of_the_range():
    x = torch.tensor([-2.0, 1.75], requires_grad=True)
    lsq_quantize(x, torch.tensor(0.25), -8, 7).sum().backward()
    assert x.grad.tolist() == [1, 1]


@pytest.mark.parametrize("step", [-0.5, 0.0, -1e-35, 1e-35, 1e-12])
def test_no_step_size_gives_a_negative_or_zero_scale(step):
    leaf = torch.tensor(step, requires_grad=True)
    scale = positive_scale(leaf)
    assert scale.item() == max(abs(np.float32(step)), 2.0**-60)
    scale.backward()
    assert leaf.grad.item() == (-1.0 if step < 0 else 1.0)
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    gradients = []
    for function in (lsq_quantize, lsq_quantize_reference):
        again = torch.tensor(step, requires_grad=True)
        x_hat = function(x, again, -8, 7)
        assert torch.all(x_hat * x >= 0)
        x_hat.sum().backward()
        gradients.append(again.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided", "expanded"])
def test_every_memory_layout_gives_the_same_values_and_gradients(layout):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(4, 6, 8, 8, generator=generator, dtype=torch.float64)
    gradient = torch.randn(4, 6, 8, 8, generator=generator, dtype=torch.float64)
    if layout == "strided":
        base = base.repeat_interleave(2, dim=3)
    if layout == "expanded":
        base = base[:1].expand(4, 6, 8, 8).contiguous()
    view = {
        "contiguous": lambda x: x,
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": lambda x: x[..., ::2],
        "expanded": lambda x: x[:1].expand(4, 6, 8, 8),
    }[layout]
    for step in (torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.2, 0.5, 4, dtype=torch.float64)):
        results = []
        for function in (lsq_quantize, lsq_quantize_reference):
            leaf, step_leaf = base.clone().requires_grad_(), step.clone().requires_grad_()
            x = view(leaf)
            x_hat = function(x, step_leaf, -8, 7)
            if function is lsq_quantize and layout in ("contiguous", "channels_last", "transposed"):
                assert x_hat.stride() == x.stride()
            x_hat.backward(gradient)
            results.append((x_hat.detach(), leaf.grad, step_leaf.grad))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_keeps_no_tensor_beyond_its_input():
    x = torch.randn(64, 64, requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        lsq_quantize(x, step, -8, 7)
    assert set(kept) <= {x.data_ptr(), step.data_ptr()}


def test_bfloat16_input_is_quantized_in_float32():
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(512, generator=generator) * 20).to(torch.bfloat16)
    step = torch.tensor(0.173)
    gradient = torch.randn(512, generator=generator).to(torch.bfloat16)
    narrow, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    narrow_step, wide_step = step.clone().requires_grad_(), step.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        x_hat = lsq_quantize(narrow, narrow_step, -128, 127)
    x_hat.backward(gradient)
    wide_x_hat = lsq_quantize(wide, wide_step, -128, 127)
    wide_x_hat.backward(gradient.float())

    assert x_hat.dtype == narrow.grad.dtype == torch.bfloat16
    assert torch.equal(x_hat, wide_x_hat.to(torch.bfloat16))
    assert torch.equal(narrow.grad.float(), wide.grad)
    assert narrow_step.grad.dtype == torch.float32
    assert narrow_step.grad.item() == wide_step.grad.item()


def test_step_gradient_keeps_its_digits_in_float32_at_8_bits():
    generator = torch.Generator().manual_seed(3)
    x, gradient = torch.rand(200_000, generator=generator) * 200, torch.randn(200_000, generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        step = torch.tensor(0.75, dtype=dtype, requires_grad=True)
        lsq_quantize(x.to(dtype), step, 0, 255).backward(gradient.to(dtype))
        gradients.append(step.grad.item())
    noise = 0.3 * 200_000**0.5
    assert abs(gradients[0] - gradients[1]) < 1e-3 * noise


def test_double_backward_is_refused():
    x = torch.randn(5, requires_grad=True)
    (first,) = torch.autograd.grad((lsq_quantize(x, torch.tensor(0.3), -8, 7) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_sign_grid_passes_the_gradient_straight_through():
    x = torch.tensor([-3.0, -0.1, 0.0, 2.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    x_hat = sign_quantize(x, step, 0.25)
    x_hat.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x_hat.tolist() == [-0.5, -0.5, 0.5, 0.5]
    assert x.grad.tolist() == [1, 2, 3, 4]
    assert step.grad.item() == 0.25 * (-1 - 2 + 3 + 4)


@pytest.mark.parametrize("examples", [300, pytest.param(2000, marks=pytest.mark.nightly)])
def test_a_surrogate_scales_the_gradient_of_x_by_its_formula_and_leaves_that_of_the_step(examples):
    @settings(max_examples=examples, deadline=None)
    @given(cases(), st.sampled_from([("ewgs", 0.2), ("ewgs", 1.5), ("stable", 0.2), ("stable", 0.1)]))
    def check(case, surrogate):
        x, step, q_min, q_max, gradient, factor = case
        leaf, step_leaf, plain = (t.clone().requires_grad_() for t in (x, step, step))
        x_hat = lsq_quantize(leaf, step_leaf, q_min, q_max, factor, surrogate=surrogate)
        x_hat.backward(gradient)
        straight = lsq_quantize(x, plain, q_min, q_max, factor)
        straight.backward(gradient)
        assert torch.equal(x_hat, straight)
        assert torch.equal(step_leaf.grad, plain.grad)

        v = (x / (step if step.dim() == 0 else step.reshape(-1, *[1] * (x.dim() - 1)))).numpy()
        d, g, (name, strength) = v - level(v, q_min), gradient.numpy(), surrogate
        wave = np.sqrt(2) * np.pi * strength * np.cos(np.pi * d)
        scaled = g * (1 + strength * np.sign(g) * d if name == "ewgs" else (1 - wave) / (1 + wave))
        wanted = np.where((v >= q_min) & (v <= q_max), scaled, 0.0)
        np.testing.assert_allclose(leaf.grad.numpy(), wanted, rtol=1e-10, atol=1e-10)

    check()


def test_a_power_of_two_is_the_nearest_in_the_logarithm_and_passes_the_gradient():
    scale = torch.tensor([0.3, 0.36, 0.7, 1.0, 1e-8], requires_grad=True)
    rounded = power_of_two(scale)
    assert rounded.tolist() == [0.25, 0.5, 0.5, 1.0, 2.0**-27]
    rounded.backward(torch.arange(5.0))
    assert scale.grad.tolist() == [0, 1, 2, 3, 4]
