"""What lies between the layers: additions, concatenations and average pools, and the quantizers of what they read.

A tensor is quantized once, where it leaves or enters a module, as late as all that read it come after. Layers that
read it find it on its grid and do not quantize it again.

    y = x + f(x)              x and f(x) each have a quantizer
    y = concat(a, b)          a and b share one, and y lies on its grid
    y = average_pool(x)       x has one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qat_vsam.quant.borders import Border, put_at
from qat_vsam.quant.layers import quant_layers
from qat_vsam.quant.quantizers import Quantizer, make_quantizer
from qat_vsam.quant.summary import OperationRow
from qat_vsam.quant.tensor_spec import TensorSpec
from qat_vsam.quant.trace import ARRANGING, Operation, Trace, Value, is_layer, root, trace

KINDS = ("add", "concat", "average_pool")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_CLIPPING = ("relu", "relu6", "clamp", "clamp_min", "hardtanh")
# of these a runtime asks nothing: bookkeeping, and constants
_NOTHING = ("empty", "empty_like", "zeros", "ones", "full", "arange", "lift_fresh", "add_number")


@dataclass
class Group:
    """Tensors on one grid: where they are quantized, and the layers that read nothing else.

    `off_grid` are those of the readers that read a tensor behind a dropout, which moves it off the grid in training:
    they share the quantizer and run it themselves.
    """

    borders: list[Border] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    off_grid: set[str] = field(default_factory=set)
    example: Value | None = None


def joins_tensors(operation: Operation) -> bool:
    """Whether it is an addition or concatenation of tensors that follow from the model's input, or an average pool."""
    if operation.kind == "average_pool":
        return operation.inputs[0].depends
    return operation.kind in KINDS and sum(value.depends for value in operation.inputs) > 1


class Plan:
    """Which tensors can be quantized, and where.

    Args:
        seen: a forward pass of the float model in evaluation mode.
        kept: module name -> why what runs in it stays in float.

    Attributes:
        groups: tensors on one grid each.
    """

    def __init__(self, seen: Trace, kept: Mapping[str, str]) -> None:
        self._seen = seen
        self._kept = kept
        self._reasons: dict[Operation, str] = {}
        self._places: dict[Value, Border] = {}
        self._same: dict[Value, Value] = {}
        self._calls: dict[str, int] = {}
        for call in seen.calls:
            self._calls[call.name] = self._calls.get(call.name, 0) + 1
        done = [operation for operation in seen.operations if joins_tensors(operation) and not self._why_not(operation)]
        for operation in done:
            tensors = [root(value) for value in operation.inputs]
            for value in tensors:
                self._same.setdefault(value, value)
            if operation.kind == "concat":
                for value in (*tensors[1:], root(operation.outputs[0])):
                    self._same[self._leader(value)] = self._leader(tensors[0])
        self.groups = self._groups()

    @property
    def reasons(self) -> list[str]:
        """Of each operation that joins tensors, in their order: why it stays in float, "" if it does not."""
        return [self._why_not(operation) for operation in self._seen.operations if joins_tensors(operation)]

    def _leader(self, value: Value) -> Value:
        while self._same.setdefault(value, value) is not value:
            value = self._same[value]
        return value

    def _groups(self) -> list[Group]:
        groups: dict[Value, Group] = {}
        for value in self._same:
            group = groups.setdefault(self._leader(value), Group(example=value))
            if value in self._places:
                group.borders.append(self._places[value])
        inputs: dict[str, list[Value]] = {}
        moved: set[str] = set()
        for operation in self._seen.operations:
            if operation.kind == "layer" and operation.inputs:
                inputs.setdefault(operation.owner, []).append(root(operation.inputs[0]))
                if _changes_in_training(operation.inputs[0]):
                    moved.add(operation.owner)
        for name, values in inputs.items():
            leaders = {self._leader(value) if value in self._same else None for value in values}
            leader = leaders.pop()
            if leader is not None and not leaders:
                groups[leader].readers.append(name)
                groups[leader].off_grid |= moved & {name}
        return list(groups.values())

    def _why_not(self, operation: Operation) -> str:
        if operation not in self._reasons:
            self._reasons[operation] = next(filter(None, self._obstacles(operation)), "")
        return self._reasons[operation]

    def _obstacles(self, operation: Operation) -> Iterator[str]:
        yield next((self._kept[call.name] for call in operation.calls if call.name in self._kept), "")
        for value in map(root, operation.inputs):
            joined = value.maker is not None and joins_tensors(value.maker) and value.maker.kind == "concat"
            if joined and value.maker is not None and not self._why_not(value.maker):
                continue  # it lies on the grid of what was joined
            if not value.depends:
                yield "it reads a constant"
            elif value not in self._places:
                place = self._place(value)
                if isinstance(place, str):
                    yield place
                else:
                    self._places[value] = place

    def _place(self, value: Value) -> Border | str:
        """The last border behind which lies everything that reads the tensor; or why there is none."""
        chain, several = [value], ""
        while (following := _only_arranged(chain[-1])) is not None:
            chain.append(following)
        for tensor in reversed(chain):
            readers = _live_readers(tensor)
            copies = any(reader.writes for reader in readers)
            returned = [call for call in self._seen.calls if call.result is tensor]
            for call in sorted(returned, key=lambda call: -call.end):
                if _can_carry(call.name, call.module) and all(reader.time > call.end for reader in readers):
                    if self._calls[call.name] == 1:
                        return Border(call.name, "after", copies)
                    several = call.name
            for call in sorted(self._seen.calls, key=lambda call: -call.start):
                fits = call.first is tensor and all(call.start < reader.time < call.end for reader in readers)
                if fits and _can_carry(call.name, call.module) and not is_layer(call.module):
                    if self._calls[call.name] == 1:
                        return Border(call.name, "before", copies)
                    several = call.name
        if several:
            return f"it reads what passes {several}, which is called several times"
        if value.maker is None:
            return "it reads the model's input, or a tensor overwritten under another name"
        maker = value.maker.calls[-1]
        return f"it reads the result of {value.maker.kind} in the forward of {type(maker.module).__name__} {maker.name}"


def add_quantizers(model: nn.Module, groups: list[Group], activation: TensorSpec) -> None:
    """Put the quantizers of a plan at their borders; layers that read the tensors share them and stop quantizing.

    A group takes the quantizer of the layers that read it, those quantized as `activation` first; where none does,
    a new one. A layer quantized otherwise keeps its own behind it.
    """
    modules, layers = dict(model.named_modules()), dict(quant_layers(model))
    for group in groups:
        readers = [layers[name] for name in group.readers if name in layers]
        off_grid = {layers[name] for name in group.off_grid if name in layers}
        readers = [layer for layer in readers if layer.input_quantizer is not None]
        readers.sort(key=lambda layer: layer.input_quantizer is None or layer.input_quantizer.spec != activation)
        quantizer = readers[0].input_quantizer if readers else None
        if quantizer is None:
            assert group.example is not None
            quantizer = make_quantizer(activation, "activation", None, group.example.device, group.example.dtype)
        for layer in readers:
            if layer.input_quantizer is not None and layer.input_quantizer.spec == quantizer.spec:
                layer.input_quantizer, layer.input_is_quantized = quantizer, layer not in off_grid
        for border in group.borders:
            put_at(modules[border.module], border, quantizer)


def operations_between(model: nn.Module, sample: Tensor, reasons: Sequence[str] = ()) -> list[OperationRow]:
    """What a prepared or float model computes between its layers, and whether on quantized values.

    The model runs once. An addition, a concatenation or an average pool counts as quantized if every tensor that it
    reads has passed a quantizer which is on. Batch norms behind a layer and ReLUs cost a runtime nothing and are
    left out; everything else is in float.

    Args:
        model: in any mode, calibrated or not.
        sample: one batch of its input.
        reasons: of each operation that joins tensors, in their order: why it stays in float, where that is known.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Sigmoid())
        >>> for row in operations_between(model, torch.randn(2, 3, 8, 8)):
        ...     print(row.kind, "at", row.name, "in float:", row.skipped)
        average_pool at 2 in float: it reads a tensor without quantizer
        sigmoid at 3 in float: it has no quantized form
    """
    on = {module for module in model.modules() if isinstance(module, Quantizer) and module.enabled}
    rows, known = [], iter(reasons)
    for operation in trace(model, sample).operations:
        if operation.kind in ("layer", *ARRANGING, *_CLIPPING, *_NOTHING) or follows_layer(operation):
            continue
        if not any(value.depends for value in operation.inputs):
            continue
        why = "it reads a constant" if operation.kind in KINDS else "it has no quantized form"
        if joins_tensors(operation):
            reason = next(known, "") or "it reads a tensor without quantizer"
            why = "" if all(_on_grid(value, on) for value in operation.inputs) else reason
        rows.append(OperationRow(operation.owner, operation.kind, why))
    return rows


def _on_grid(value: Value, on: set[Quantizer]) -> bool:
    maker = value.maker
    if maker is None:
        return False
    if maker.kind == "layer":
        return maker.calls[-1].module in on
    return maker.kind in ("concat", *ARRANGING, *_CLIPPING) and all(_on_grid(each, on) for each in maker.inputs)


def _changes_in_training(value: Value) -> bool:
    """Whether a dropout lies between the tensor and the one whose values it holds."""
    while value.maker is not None and value.maker.kind in ARRANGING:
        if value.maker.kind == "training_only":
            return True
        value = value.maker.inputs[0]
    return False


def follows_layer(operation: Operation) -> bool:
    """Whether it is a batch norm that alone reads the result of a layer, and so can be folded into that."""
    if operation.kind != "batch_norm":
        return False
    maker = operation.inputs[0].maker
    return maker is not None and maker.kind == "layer" and len(_live_readers(operation.inputs[0])) == 1


def _live_readers(value: Value) -> list[Operation]:
    """What reads the tensor and does not only arrange it for nobody."""
    return [
        reader
        for reader in value.readers
        if reader.kind not in ARRANGING or any(_live_readers(output) for output in reader.outputs)
    ]


def _only_arranged(value: Value) -> Value | None:
    """What the tensor becomes before anything reads it."""
    readers = _live_readers(value)
    if len(readers) == 1 and readers[0].kind in ARRANGING and len(readers[0].outputs) == 1:
        return readers[0].outputs[0]
    return None


def _can_carry(name: str, module: nn.Module) -> bool:
    # a container would run its new child as another of its own
    return name != "" and not isinstance(module, (*_CONTAINERS, Quantizer))
