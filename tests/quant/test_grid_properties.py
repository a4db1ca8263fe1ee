"""What every method promises of its grid and its gradients, whatever it is built with and whatever it has seen."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qat_vsam.quant import Quantizer, TensorSpec, list_methods, make_quantizer

SHAPES = [(1, 1), (5,), (3, 7), (1, 9), (2, 1, 6), (4, 2, 3, 3)]
EXAMPLES = pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.nightly)])


class Case(NamedTuple):
    """A quantizer that has seen some values, and others to quantize."""

    quantizer: Quantizer
    x: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """One row for each step size."""
        shared = self.quantizer.sharing(tensor)
        return shared.reshape(self.quantizer.step().numel(), -1)

    def step(self) -> Tensor:
        """One step size for each row."""
        return self.quantizer.step().detach().reshape(-1, 1)


@st.composite
def cases(
    draw: st.DrawFn, dtype: torch.dtype = torch.float32, methods: tuple[str, ...] = tuple(list_methods())
) -> Case:
    method = draw(st.sampled_from(methods))
    role = "weight" if method == "dorefa" else draw(st.sampled_from(["weight", "activation"]))
    grids = ["usual", "narrow", "balanced"] if role == "weight" else ["usual", "narrow"]
    grid = "usual" if method == "dorefa" else draw(st.sampled_from(grids))
    bits = draw(st.integers(1, 8))
    if method == "dorefa" or grid == "balanced":
        bits = min(max(bits, 2 if grid == "balanced" else 1), 7)
    signed = True if method == "dorefa" or grid == "balanced" else draw(st.sampled_from([None, True, False]))
    granularities = ["per_tensor", "per_channel", "per_group"] if role == "weight" else ["per_tensor"]
    shape = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    seen = torch.randn(shape, generator=generator, dtype=dtype)
    if draw(st.booleans()):
        seen[0] = draw(st.sampled_from([0.0, -1.5, 2.0, 1e-6, 1e-10]))
    if draw(st.booleans()):
        seen = seen.abs()
    size = 1 if len(shape) == 1 else seen[0].numel()
    group_size = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    spec = TensorSpec(
        bits,
        signed,
        draw(st.sampled_from(granularities)),
        method,
        narrow=grid == "narrow",
        balanced=grid == "balanced",
        power_of_two=draw(st.booleans()),
        group_size=group_size,
    )
    step_sizes = len(seen) if spec.granularity == "per_channel" else seen.numel() // group_size
    quantizer = make_quantizer(spec, role, step_sizes, dtype=dtype)
    quantizer.initialise(quantizer.statistics(seen), draw(st.sampled_from(["mse", "lsq"])))
    # held still, or weights that are measured at each use would not have the grid of what is compared with them
    quantizer.updates_state = False
    return Case(quantizer.eval(), seen * draw(st.sampled_from([0.3, 1.0, 3.0])))


def examine(check, strategy, examples: int) -> None:
    settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])(
        given(strategy)(check)
    )()


@EXAMPLES
def test_values_are_codes_times_a_positive_scale_in_the_order_of_their_origin(examples: int) -> None:
    def check(case: Case) -> None:
        quantizer, x = case
        codes, x_hat, scale = quantizer.codes(x), quantizer(x), quantizer.scale()
        assert torch.all(scale > 0)
        if quantizer.spec.power_of_two:
            assert torch.equal(scale.log2(), scale.log2().round())
        assert codes.dtype == (torch.int8 if quantizer.q_min < 0 else torch.uint8)
        assert quantizer.q_min <= codes.min()
        assert codes.max() <= quantizer.q_max
        assert torch.all((codes.short() - quantizer.q_min) % quantizer.code_stride == 0)
        assert torch.equal(x_hat, quantizer.dequantize(codes))
        order = case.rows(x).argsort(1)
        assert torch.all(case.rows(x_hat).gather(1, order).diff(dim=1) >= 0)
        if quantizer.code_stride == 1:
            assert torch.all(quantizer(torch.zeros_like(x)) == 0)

    examine(check, cases(), examples)


@EXAMPLES
def test_values_stay_when_quantized_again_and_lie_within_half_a_step_of_what_is_not_clipped(examples: int) -> None:
    def check(case: Case) -> None:
        quantizer, x = case
        x_hat = quantizer(x)
        assert torch.equal(quantizer(x_hat), x_hat)
        if not quantizer.is_sign:
            low, high = (level - int(quantizer.zero_point) for level in quantizer.levels)
            rows, step = case.rows(x), case.step()
            clipped = torch.maximum(torch.minimum(rows, high * step), low * step)
            assert torch.all((clipped - case.rows(x_hat)).abs() <= step / 2 * (1 + 1e-4))

    # what a tanh has squeezed it squeezes again
    examine(check, cases(methods=tuple(method for method in list_methods() if method != "dorefa")), examples)


@EXAMPLES
def test_gradients_are_those_of_the_formulas(examples: int) -> None:
    def check(case: Case) -> None:
        quantizer, x = case
        gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        leaf = x.clone().requires_grad_()
        quantizer(leaf).backward(gradient)

        g, (low, high) = case.rows(gradient), quantizer.levels
        v = case.rows(x) / case.step()
        inside = torch.ones_like(v, dtype=torch.bool) if quantizer.is_sign else (v >= low) & (v <= high)
        assert torch.equal(case.rows(leaf.grad), torch.where(inside, g, 0.0))

        learned = dict(quantizer.named_parameters())
        if quantizer.is_sign:
            towards_s = torch.where(v >= 0, 1.0, -1.0).to(v.dtype)
        else:
            q = (v - low % 1).round() + low % 1
            within = torch.zeros_like(v) if "clip_value" in learned else q - v
            towards_s = torch.where(inside, within, v.clamp(low, high))
        wanted = (towards_s * g).sum(1)
        for name, parameter in learned.items():
            sharing = x[0].numel() if quantizer.role == "activation" else case.rows(x).shape[1]
            factor = 1 / high if name == "clip_value" else (sharing * high) ** -0.5
            torch.testing.assert_close(parameter.grad, wanted * factor, rtol=1e-10, atol=1e-10)

    # the gradients of the others, which are longer, have tests of their own
    methods = tuple(method for method in list_methods() if method not in ("dorefa", "lsq_plus"))
    examine(check, cases(torch.float64, methods), examples)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_ends_of_the_range_that_a_step_spans_are_not_clipped(bits: int, method: str) -> None:
    """In one row of twenty the largest weight, divided by a rounded step, would come out above the largest code."""
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    quantizer = make_quantizer(TensorSpec(bits, True, "per_channel", method, percentile=100), "weight", len(x))
    quantizer.initialise(quantizer.statistics(x))
    leaf = x.clone().requires_grad_()
    quantizer(leaf).sum().backward()
    assert torch.all(leaf.grad == 1)
