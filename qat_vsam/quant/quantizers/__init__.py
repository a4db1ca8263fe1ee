"""How a tensor is quantized: one module for each method, and what is done to all quantizers of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from qat_vsam.errors import ConfigError, explain
from qat_vsam.quant.compiled import compiled_kernels
from qat_vsam.quant.quantizers.base import Quantizer, Role
from qat_vsam.quant.quantizers.dorefa import DoReFaQuantizer
from qat_vsam.quant.quantizers.fixed import FixedQuantizer
from qat_vsam.quant.quantizers.lsq import LSQQuantizer
from qat_vsam.quant.quantizers.lsq_plus import LSQPlusQuantizer
from qat_vsam.quant.quantizers.minmax import MinMaxQuantizer
from qat_vsam.quant.quantizers.pact import PACTQuantizer
from qat_vsam.quant.tensor_spec import TensorSpec

__all__ = [
    "DoReFaQuantizer",
    "FixedQuantizer",
    "LSQPlusQuantizer",
    "LSQQuantizer",
    "MinMaxQuantizer",
    "PACTQuantizer",
    "Quantizer",
    "Role",
    "make_quantizer",
    "set_compiled",
    "set_quantizers_enabled",
]

_KINDS: dict[str, Callable[..., Quantizer]] = {
    "lsq": LSQQuantizer,
    "lsq_plus": LSQPlusQuantizer,
    "pact": PACTQuantizer,
    "dorefa": DoReFaQuantizer,
    "minmax": MinMaxQuantizer,
    "percentile": FixedQuantizer,
    "mse": FixedQuantizer,
}


def make_quantizer(
    spec: TensorSpec,
    role: Role,
    channels: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Quantizer:
    """The quantizer that a spec asks for; arguments as for `Quantizer`.

    A weight is signed unless the spec says otherwise, and at 1 bit then mean|w| sign(w) whatever the method. The
    weights of "lsq_plus" are those of "lsq", as in its paper; its activations have unsigned codes.
    """
    if spec.method == "lsq_plus":
        spec = dataclasses.replace(spec, method="lsq") if role == "weight" else dataclasses.replace(spec, signed=False)
    if role == "weight" and spec.signed is None:
        spec = dataclasses.replace(spec, signed=True)
    if role == "activation" and spec.method == "dorefa":
        advice = "use pact, which goes with it"
        raise ConfigError(explain("activation.method", "dorefa", "a method for activations", advice))
    kind = _KINDS[spec.method]
    if spec.bits == 1 and role == "weight" and spec.signed:
        kind = MinMaxQuantizer
    return kind(spec, role, channels, device, dtype)


def set_quantizers_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every quantizer of the model on, or off: the model is then the float one, bit for bit."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.enabled = enabled


def set_compiled(model: nn.Module, compiled: bool | None = True) -> None:
    """Let every quantizer of the model use the fused kernels of `torch.compile`, always, never, or where they pay.

    They pay for tensors of 2^18 elements and more, and None, which is where every model starts, means those: fused
    where a compiler is found that computes the same as eager operations do, eager otherwise (`qat-vsam info` says
    which). The kernels are compiled at first use, once a process, and kept on disk for the next.

    Args:
        model: with quantizers.
        compiled: True, False or None.

    Raises:
        MissingDependencyError: `compiled` is True and no working compiler is found; the quantizers stay as they were.
    """
    if compiled:
        compiled_kernels()
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.compiled = compiled
