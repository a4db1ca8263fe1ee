"""From a float model to a quantized one, in place, with a row for every layer that says what became of it."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain
from qat_vsam.quant.attention import CalledAttention, call_projections, cannot_be_called
from qat_vsam.quant.between import KINDS, Plan, add_quantizers, operations_between
from qat_vsam.quant.groups import is_norm
from qat_vsam.quant.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    QuantLayer,
    QuantLinear,
    quant_layers,
)
from qat_vsam.quant.modes import inputs_of
from qat_vsam.quant.quantizers import Quantizer
from qat_vsam.quant.readers import call_children
from qat_vsam.quant.replace import replace_modules, unchanged_on_failure
from qat_vsam.quant.sharing import layers_that_read_the_same_tensor, share_as_loaded, share_input_quantizers
from qat_vsam.quant.spec import LayerRule, QuantSpec
from qat_vsam.quant.subclass import cannot_be_met, is_subclass, quantized_subclass
from qat_vsam.quant.summary import OperationRow, Summary, SummaryRow
from qat_vsam.quant.targets import fit_layers
from qat_vsam.quant.tensor_spec import TensorSpec
from qat_vsam.quant.trace import trace

QUANTIZED_TWIN: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.ConvTranspose3d: QuantConvTranspose3d,
    nn.Linear: QuantLinear,
    nn.Embedding: QuantEmbedding,
}
LAYERS = tuple(QUANTIZED_TWIN)

# These read the weights of their children without calling them, so a quantized child would go unused. By name, so that
# nobody's package is imported.
READS_CHILDREN = {
    "torch.nn.modules.activation.MultiheadAttention",
    "torch.nn.modules.transformer.TransformerEncoderLayer",
}


def prepare(model: nn.Module, spec: QuantSpec, sample: Tensor | None = None) -> Summary:
    """Replace convolutions, linear layers, attention projections and embeddings by their quantized twins, in place.

    Subclasses of convolutions and linear layers keep their own forward, see `subclass.py`; it is run once, on zeros.
    Every layer of `QUANTIZED_TWIN` is replaced or listed with the reason why not; other modules with
    parameters are listed. The first and the last of them in module order get `spec.first_last_bits`, unless one
    of `spec.overrides` names them. Weight step sizes are set at once, those of the inputs by `calibrate`. With
    quantizers off the model computes the same bits as before.

    Args:
        model: float model; its Parameter objects stay the same. An exception leaves it unchanged.
        spec: what to quantize and how.
        sample: one input batch. Layers that read the same tensor then share one input quantizer from the
            start; without it `calibrate` finds them, or a state_dict says so: make the optimizer after loading it.

    Returns:
        Summary, one row for each layer.

    Raises:
        ConfigError: an unknown name in `spec.keep` or `spec.overrides`, a model that is prepared already, one
            without a layer that could be quantized, or one with a layer that `spec.target` cannot run so.
        InputError: NaN or infinity in a weight or in the sample.

    Example:
        >>> from torch import nn
        >>> from qat_vsam.quant import QuantSpec, prepare
        >>> body = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
        >>> model = nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 2))
        >>> print(prepare(model, QuantSpec.preset("w4a4")))
        w4a4: 3 of 4 layers quantized
        layer  kind         weight  input  scheme
        0      Conv2d       8       8      weight int8 per channel, lsq; input int/uint8 per tensor, lsq
        1      BatchNorm2d  float   float  in float: normalisation
        3      Conv2d       4       4      weight int4 per channel, lsq; input int/uint4 per tensor, lsq
        5      Linear       8       8      weight int8 per channel, lsq; input int/uint8 per tensor, lsq
    """
    _check(model)
    with unchanged_on_failure(model):
        call_projections(model)
        call_children(model)
        return _prepare(model, spec, sample)


def _prepare(model: nn.Module, spec: QuantSpec, sample: Tensor | None) -> Summary:
    if spec.residual_adds == "quantized" and sample is None:
        got = "quantized without a sample"
        advice = "call prepare(model, spec, sample=x)"
        raise ConfigError(explain("residual_adds", got, "a sample, which shows where they are", advice))
    edges, rules = _first_and_last(model), _rules(model, spec.overrides)
    reasons = _reasons(model, spec, edges, rules)
    floats = {name: module for name, module in model.named_modules() if name in reasons}
    targets = {name: module for name, module in floats.items() if not reasons[name]}
    for name, module in targets.items():
        _check_weight(name, module)
    specs = fit_layers(
        spec.target, {n: (m, *_tensor_specs(spec, rules.get(n), n in edges)) for n, m in targets.items()}
    )
    seen = None
    if sample is not None and spec.activation is not None:
        x = next(inputs_of([sample], model))
        seen = trace(model, x)
    twins: dict[nn.Module, nn.Module] = {module: _twin(name, module, *specs[name]) for name, module in targets.items()}
    replace_modules(model, twins)
    if spec.batch_norm == "freeze":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.freeze_after = spec.freeze_after  # type: ignore[assignment]
    between: list[OperationRow] = []
    if seen is not None:
        if spec.residual_adds == "quantized" and spec.activation is not None:
            plan = Plan(seen, _kept(model, spec, rules))
            add_quantizers(model, plan.groups, spec.activation)
            between = [row for row in operations_between(model, x, plan.reasons) if row.kind in KINDS]
        share_input_quantizers(model, layers_that_read_the_same_tensor(seen))
    model.register_load_state_dict_post_hook(share_as_loaded)
    return Summary(spec.name, _rows(model, floats, reasons), between)


def _twin(name: str, module: nn.Module, weight: TensorSpec, activation: TensorSpec | None) -> QuantLayer:
    kind = type(module)
    twin = QUANTIZED_TWIN[kind] if kind in QUANTIZED_TWIN else quantized_subclass(kind)
    try:
        return twin.from_float(module, weight, activation)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _check(model: nn.Module) -> None:
    if any(isinstance(module, Quantizer) for module in model.modules()):
        advice = "prepare a freshly built model, or load a state_dict into this one"
        raise ConfigError(explain("model", "a model with quantizers", "a float model", advice))
    if isinstance(model, LAYERS):
        advice = "wrap it: nn.Sequential(layer)"
        raise ConfigError(explain("model", f"a single {type(model).__name__}", "a model with layers in it", advice))
    if not any(isinstance(module, LAYERS) for module in model.modules()):
        expected = "at least one of " + ", ".join(kind.__name__ for kind in LAYERS)
        raise ConfigError(explain("model", "no such layer", expected, "see the Quant layers for what can be quantized"))


def _check_weight(name: str, module: nn.Module) -> None:
    weight = module.get_parameter("weight")
    if not bool(torch.isfinite(weight).all()):
        advice = "load a sound checkpoint, or keep the layer in float"
        raise InputError(explain(f"{name}.weight", "NaN or infinity", "finite weights", advice))


def _tensor_specs(spec: QuantSpec, rule: LayerRule | None, at_edge: bool) -> tuple[TensorSpec, TensorSpec | None]:
    if rule is not None and rule.weight is not None:
        return rule.weight, rule.activation
    if not at_edge or spec.first_last_bits is None:
        return spec.weight, spec.activation
    activation = spec.activation
    return (
        spec.weight.with_bits(spec.first_last_bits),
        None if activation is None else activation.with_bits(spec.first_last_bits),
    )


def _reasons(model: nn.Module, spec: QuantSpec, edges: set[str], rules: dict[str, LayerRule]) -> dict[str, str]:
    """For each layer with parameters, in module order: why it stays in float, "" if it does not."""
    kept = {name: entry for entry, names in _named(model, "keep", spec.keep).items() for name in names}
    by_parent = _read_by_parent(model)
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        is_layer = isinstance(module, LAYERS)
        if not is_layer and not any(True for _ in module.parameters(recurse=False)):
            continue
        if is_norm(module):
            frozen = spec.batch_norm == "freeze" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            reasons[name] = "normalisation" + f", frozen after {spec.freeze_after} steps" * frozen
        elif name in by_parent:
            reasons[name] = by_parent[name]
        elif type(module) not in QUANTIZED_TWIN and not is_subclass(module):
            reasons[name] = _unsupported(module)
        elif "weight" not in module._parameters or isinstance(module.weight, nn.UninitializedParameter):
            reasons[name] = "its weight is no plain Parameter (weight_norm or a lazy module)"
        elif isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
            reasons[name] = "max_norm rewrites its table" if module.max_norm is not None else "its gradient is sparse"
        elif is_subclass(module) and (reason := cannot_be_met(module)):
            reasons[name] = reason
        elif name in rules:
            reasons[name] = "" if rules[name].weight is not None else f"override: {rules[name].layers}"
        elif name in kept:
            reasons[name] = f"keep: {kept[name]}"
        elif spec.first_last_bits is None and name in edges:
            reasons[name] = "first or last layer, first_last_bits is None"
        else:
            reasons[name] = ""
    return reasons


def _kept(model: nn.Module, spec: QuantSpec, rules: dict[str, LayerRule]) -> dict[str, str]:
    """Module name -> why what is computed in its forward stays in float."""
    kept = {name: f"override: {rule.layers}" for name, rule in rules.items() if rule.weight is None}
    for entry, names in _named(model, "keep", spec.keep).items():
        kept |= {name: f"keep: {entry}" for name in names if name not in rules}
    return kept


def _unsupported(module: nn.Module) -> str:
    for base in QUANTIZED_TWIN:
        if isinstance(module, base):
            return f"a subclass of {base.__name__} with a forward of its own"
    if isinstance(module, nn.MultiheadAttention):
        return cannot_be_called(module) or "TransformerEncoderLayer reads its weights without calling it"
    if any(True for _ in module.children()):
        return "parameters of its own: " + ", ".join(name for name, _ in module.named_parameters(recurse=False))
    return f"{type(module).__name__} has no quantized twin"


def _read_by_parent(model: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        readers = [kind.__name__ for kind in type(module).__mro__ if _path(kind) in READS_CHILDREN]
        if not readers or isinstance(module, CalledAttention):
            continue
        prefix = f"{name}." if name else ""
        for child, layer in module.named_children():
            if isinstance(layer, nn.Linear):
                found[prefix + child] = f"{readers[0]} reads its weights without calling it"
    return found


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _first_and_last(model: nn.Module) -> set[str]:
    by_parent = _read_by_parent(model)
    names = [name for name, module in model.named_modules() if isinstance(module, LAYERS) and name not in by_parent]
    return {*names[:1], *names[-1:]}


def _rules(model: nn.Module, overrides: tuple[LayerRule, ...]) -> dict[str, LayerRule]:
    """Module name -> the first rule that names it or a module around it."""
    rules: dict[str, LayerRule] = {}
    named = _named(model, "overrides", tuple(rule.layers for rule in overrides))
    for rule in overrides:
        for name in named[rule.layers]:
            rules.setdefault(name, rule)
    return rules


def _named(model: nn.Module, key: str, entries: tuple[str, ...]) -> dict[str, list[str]]:
    """Entry -> the names of the modules that it names, and of all below them.

    Raises:
        ConfigError: an entry names no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    named: dict[str, list[str]] = {}
    for entry in entries:
        chosen = [name for name in names if _matches(key, entry, name)]
        if not chosen:
            advice = "check the pattern" if entry.startswith("re:") else did_you_mean(entry, names)
            raise ConfigError(explain(key, entry, "a module of this model", advice))
        named[entry] = [name for name in names if any(name == root or name.startswith(f"{root}.") for root in chosen)]
    return named


def _matches(key: str, entry: str, name: str) -> bool:
    if not entry.startswith("re:"):
        return entry == name
    try:
        return re.fullmatch(entry.removeprefix("re:"), name) is not None
    except re.error as error:
        raise ConfigError(explain(key, entry, "a regular expression", f"mend it: {error}")) from error


def _rows(model: nn.Module, floats: dict[str, nn.Module], reasons: dict[str, str]) -> list[SummaryRow]:
    layers = dict(quant_layers(model))
    first_reader: dict[Quantizer, str] = {}
    rows = []
    for name, module in floats.items():
        kind = getattr(module, "_reader", type(module)).__name__
        if reasons[name]:
            rows.append(SummaryRow(name, kind, skipped=reasons[name]))
            continue
        layer = layers[name]
        scheme = f"weight {layer.weight_quantizer.spec.scheme}"
        activation_bits = None
        if layer.input_quantizer is not None:
            activation_bits = layer.input_quantizer.bits
            scheme += f"; input {layer.input_quantizer.spec.scheme}"
            leader = first_reader.setdefault(layer.input_quantizer, name)
            scheme += f", shared with {leader}" if leader != name else ""
        rows.append(SummaryRow(name, kind, layer.weight_quantizer.bits, activation_bits, scheme))
    return rows
