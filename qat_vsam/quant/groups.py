"""Parameter groups with a role, the form in which the optimizers take a quantized model's parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from qat_vsam.quant.quantizers import Quantizer

ROLES = ("weight", "step_size", "norm", "bias")
# Where other libraries have the modules whose parameters are scales; by name, so that neither is imported.
_OTHERS = ("brevitas.core.", "torchao.quantization.qat.fake_quantizer")


def param_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """The model's parameters, each once, in up to four groups: weight, step_size, norm, bias.

    ==========  ====================================================  ============
    role        parameters                                            weight decay
    ==========  ====================================================  ============
    weight      everything below does not name                        as given
    step_size   those of quantizers, brevitas' and torchao's too      0
    norm        scales: any other of at most one axis                 0
    bias        of at most one axis and named "bias"                  0
    ==========  ====================================================  ============

    A norm layer's shift counts as norm, not as bias. Frozen parameters are included: an optimizer passes over
    what has no gradient, and a later unfreezing finds them.

    Args:
        model: quantized or float.
        weight_decay: for the role weight.

    Returns:
        Groups with the keys params, role and weight_decay; parameters in model order, empty groups left out.

    Example:
        >>> from torch import nn
        >>> groups = param_groups(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), weight_decay=1e-4)
        >>> [(group["role"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('weight', 1, 0.0001), ('norm', 2, 0.0), ('bias', 1, 0.0)]
    """
    by_role: dict[str, list[nn.Parameter]] = {role: [] for role in ROLES}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                by_role[_role(module, name, parameter)].append(parameter)
    return [
        {"params": parameters, "role": role, "weight_decay": float(weight_decay) if role == "weight" else 0.0}
        for role, parameters in by_role.items()
        if parameters
    ]


def _role(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, Quantizer) or any(kind.__module__.startswith(_OTHERS) for kind in type(module).__mro__):
        return "step_size"
    if parameter.dim() > 1 and not is_norm(module):
        return "weight"
    return "bias" if name.endswith("bias") and not is_norm(module) else "norm"


def tracks_statistics(module: nn.Module) -> bool:
    """Whether the module is a batch norm with a running mean and variance."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation layer of PyTorch, or a subclass of one."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return isinstance(module, kinds)
