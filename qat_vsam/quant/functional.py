"""The maths of fake quantization: codes, grids, and the gradient of a learned step size.

    v     = x / s
    q     = round_half_to_even(clip(v, Qn, Qp))
    x_hat = s q

    d x_hat / dx = 1            where Qn <= v <= Qp, else 0
    d x_hat / ds = q - v        where Qn <= v <= Qp, else Qn or Qp        (times the gradient factor g)

The mask is taken on v, before rounding. The levels q may also be all halves of odd numbers, Qn = -3/2 and Qp = 3/2
for {-3, -1, 1, 3} s/2 (arXiv 2502.02631): then v is shifted by 1/2 for the rounding. `lsq_quantize` is the fast form,
one `torch.autograd.Function`; `lsq_quantize_reference` says the same in plain autograd, and the tests hold one
against the other.

A scale is a tensor of shape () for a whole tensor, or (C,) for one value for each slice of axis 0.
Everything is computed in float32 at least: under autocast a bfloat16 input is widened, quantized, and the
result rounded back to bfloat16, the precision in which the next convolution reads it anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qat_vsam.quant.compiled import kernels_for
from qat_vsam.quant.kernels import STRAIGHT_THROUGH, Surrogate, along_axis_0, origin
from qat_vsam.quant.saved_codes import remember

# A power of two, so that a step size rounded to one is not below it; so small that no sound weight is lost (a layer in
# front of a norm may have any magnitude), and so large that x / s^2 is finite in float32.
SMALLEST_STEP = 2.0**-60


def positive_scale(step_size: Tensor) -> Tensor:
    """max(|s|, 2^-60): a scale that no optimizer step can make negative or zero.

    The gradient is that of |s|, also below the floor, so that a step size pushed there can come back.

    Example:
        >>> positive_scale(torch.tensor([-0.5, 0.0]))
        tensor([5.0000e-01, 8.6736e-19])
    """
    step = wide(step_size)
    magnitude = torch.where(step < 0, -step, step)
    return _with_gradient_of(magnitude, magnitude.clamp_min(SMALLEST_STEP))


def quantize(x: Tensor, scale: Tensor, q_min: float, q_max: float, zero_point: Tensor | int = 0) -> Tensor:
    """The integer codes clip(round(x / s) + z, Qn, Qp), ties to even, as ONNX's QuantizeLinear has them.

    Where the levels are halves of odd numbers the codes are twice the levels, and odd.

    Args:
        x: tensor of any shape.
        scale: positive, shape () or (x.shape[0],).
        q_min, q_max: smallest and largest level, the codes within 8 bits.
        zero_point: z, the code of 0.

    Returns:
        Tensor of x's shape; int8 where q_min is negative, uint8 otherwise.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.25, 0.75, 9.0]), torch.tensor(0.5), 0, 15)
        tensor([ 0,  0,  2, 15], dtype=torch.uint8)
        >>> quantize(torch.tensor([-1.0, -0.2, 0.2, 9.0]), torch.tensor(0.5), -1.5, 1.5)
        tensor([-3, -1,  1,  3], dtype=torch.int8)
    """
    v, shift = wide(x) / along_axis_0(scale, x), q_min % 1
    if shift:
        codes = v.clamp_(q_min, q_max).sub_(shift).round_().add_(shift).mul_(2)
    else:
        codes = v.round_().add_(zero_point).clamp_(q_min, q_max)
    return codes.to(torch.int8 if q_min < 0 else torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """s (q - z), in the dtype of the scale.

    Example:
        >>> dequantize(torch.tensor([-2, 3], dtype=torch.int8), torch.tensor(0.5))
        tensor([-1.0000,  1.5000])
    """
    return (codes.to(scale.dtype) - zero_point) * along_axis_0(scale, codes)


def sign_codes(x: Tensor) -> Tensor:
    """The 1-bit signed codes: 1 where x >= 0, else -1, as int8.

    Example:
        >>> sign_codes(torch.tensor([-0.3, 0.0, 2.0]))
        tensor([-1,  1,  1], dtype=torch.int8)
    """
    return (x >= 0).to(torch.int8).mul_(2).sub_(1)


def sign_quantize(x: Tensor, step_size: Tensor, gradient_factor: float = 1.0) -> Tensor:
    """s sign(x), the 1-bit signed grid.

    The gradient passes straight through to x; to s goes sum(gradient * sign(x)), times the gradient factor.

    Args:
        x: tensor of any shape.
        step_size: shape () or (x.shape[0],).
        gradient_factor: scales the gradient of the step size.

    Reference: arXiv 1603.05279 (the grid), 2205.13016 (its size learned).
    """
    scale = positive_scale(_with_gradient_of(step_size * gradient_factor, step_size))
    x_hat = along_axis_0(scale, x) * sign_codes(x).to(scale.dtype)
    straight_through = x - x.detach()
    return (x_hat + straight_through).to(x.dtype)


def power_of_two(scale: Tensor) -> Tensor:
    """2^round(log2 s), the power of two nearest to a positive scale in the logarithm; the gradient is that of s.

    Example:
        >>> power_of_two(torch.tensor([0.3, 0.7, 1.0]))
        tensor([0.2500, 0.5000, 1.0000])

    Reference: arXiv 1903.08066, there rounded up.
    """
    return _with_gradient_of(scale, torch.exp2(torch.log2(scale.detach()).round()))


def lsq_quantize_reference(
    x: Tensor, step_size: Tensor, q_min: float, q_max: float, gradient_factor: float = 1.0
) -> Tensor:
    """`lsq_quantize` in plain autograd, for tests and readers: slow, and it keeps several copies of x.

    Reference: arXiv 1902.08153, sections 2.1 and 2.2.
    """
    scale = along_axis_0(positive_scale(_with_gradient_of(step_size * gradient_factor, step_size)), x)
    v = wide(x) / scale
    # `clamp` itself has no gradient at the two ends, which belong to the range.
    clipped = torch.where((v >= q_min) & (v <= q_max), v, v.detach().clamp(q_min, q_max))
    shift = q_min % 1
    q = _with_gradient_of(clipped, (clipped - shift).round() + shift)
    return (q * scale).to(x.dtype)


def lsq_quantize(
    x: Tensor,
    step_size: Tensor,
    q_min: float,
    q_max: float,
    gradient_factor: float = 1.0,
    *,
    compiled: bool | None = None,
    surrogate: Surrogate = STRAIGHT_THROUGH,
    rounding_moves_step: bool = True,
) -> Tensor:
    """x_hat = s clip(round(x / s), Qn, Qp) with the gradients of learned step size quantization.

    s stands for max(|step_size|, 2^-60), see `positive_scale`. The memory format of x is kept. There is no
    double backward.

    Args:
        x: tensor of any shape, float16 to float64.
        step_size: shape () or (x.shape[0],).
        q_min, q_max: smallest and largest level, integers or both halves of odd numbers.
        gradient_factor: scales the gradient of the step size; LSQ takes 1 / sqrt(N Qp), N the number of
            elements that share it (for activations, of one sample).
        compiled: fused kernels of `torch.compile`, True or False; None for where they pay, see `compiled.kernels_for`.
        surrogate: gradient of the rounding and its strength: ("ste", 0), ("ewgs", delta) or ("stable", A); see
            `kernels.surrogate_factor`. The gradient of the step size is the same under all of them.
        rounding_moves_step: whether values within the range contribute q - v to the gradient of the step size, as in
            LSQ, or nothing, as in PACT.

    Returns:
        Tensor of x's shape, dtype and memory format.

    Example:
        >>> x = torch.tensor([-0.2, 0.3, 0.9], requires_grad=True)
        >>> s = torch.tensor(0.25, requires_grad=True)
        >>> x_hat = lsq_quantize(x, s, 0, 3)
        >>> x_hat.sum().backward()
        >>> x_hat.detach(), x.grad, s.grad
        (tensor([0.0000, 0.2500, 0.7500]), tensor([0., 1., 0.]), tensor(2.8000))

    Reference: arXiv 1902.08153.
    """
    x_hat: Tensor
    x_hat, *codes = _LearnedStepSize.apply(
        x, step_size, q_min, q_max, gradient_factor, compiled, surrogate, rounding_moves_step
    )
    if codes:
        places, scale = codes
        remember(x_hat, places, origin(q_min, q_max), scale)
    return x_hat


class _LearnedStepSize(torch.autograd.Function):
    """Keeps x for the backward pass, which is there already: it is what the operation before keeps (a ReLU its result).

    The places of the levels are for the operation behind, see `saved_codes`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step_size: Tensor,
        q_min: float,
        q_max: float,
        gradient_factor: float,
        compiled: bool | None,
        surrogate: Surrogate,
        rounding_moves_step: bool,
    ) -> tuple[Tensor, ...]:
        scale, x_wide = positive_scale(step_size), wide(x)
        kernels = kernels_for(x_wide, compiled)
        x_hat, places = kernels.forward(x_wide, scale, q_min, q_max)
        ctx.constants = (kernels, q_min, q_max, gradient_factor, surrogate, rounding_moves_step)
        ctx.save_for_backward(x, step_size)
        if places is None:
            return (x_hat.to(x.dtype),)
        ctx.mark_non_differentiable(places, scale)
        ctx.set_materialize_grads(False)
        return x_hat.to(x.dtype), places, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *of_codes: None) -> tuple[Tensor | None, Tensor | None, *tuple[None, ...]]:
        kernels, q_min, q_max, gradient_factor, *rest = ctx.constants
        x, step_size = ctx.saved_tensors
        scale = positive_scale(step_size)
        x_wide, wide_gradient = wide(x), wide(gradient)
        if not torch.compiler.is_compiling() and wide_gradient.stride() != x_wide.stride():
            wide_gradient = torch.empty_like(x_wide).copy_(wide_gradient)
        gx, gs = kernels.backward(wide_gradient, x_wide, scale, q_min, q_max, *rest)
        gs = gs * gradient_factor
        gs = torch.where(step_size < 0, -gs, gs).to(step_size.dtype)
        return gx.to(x.dtype), gs, None, None, None, None, None, None


def _with_gradient_of(source: Tensor, value: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `source`."""
    return value.detach() + (source - source.detach())


def wide(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
