"""One forward pass, written down: which operation made each tensor, which read it, and which modules it passed.

PyTorch's operations are seen below `torch.nn.functional` and the methods of tensors, so that every way to write an
addition is the same operation; modules are seen at their borders. Nothing has to be exportable, and a module that
only hands its input on, of which an exported graph knows nothing, is seen too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qat_vsam.quant.dropouts import AtDropouts
from qat_vsam.quant.modes import evaluating, quantizers_off
from qat_vsam.quant.quantizers import Quantizer

# What only arranges, repeats or selects values, or fills in zeros, which are on every grid; maxima commute with
# rounding. What holds for the values of such an operation's input holds for those of its output. "training_only" is
# what hands its input on here and changes it in training: dropouts, stochastic depth.
ARRANGING = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "permute", "transpose", "t", "squeeze"),
    *("unsqueeze", "slice", "select", "split", "split_with_sizes", "unbind", "expand", "repeat", "clone", "alias"),
    *("detach", "roll", "flip", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "zero_pad"),
    *("as_strided", "max_pool", "training_only"),
}
_NAMES = {
    "cat": "concat",
    "stack": "concat",
    "hardtanh": "relu6",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "miopen_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
}


@dataclass(eq=False)
class Value:
    """A tensor between two operations that write it.

    Attributes:
        maker: the operation that made it; None for inputs of the model, parameters and other constants.
        depends: whether it follows from the model's input.
        readers: the operations that read it, in their order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    maker: Operation | None
    depends: bool
    readers: list[Operation] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: of the module.
        module: itself.
        number: 1 for its first call, and so on.
        first: its first argument, where that is a tensor and no other argument holds the same one.
        result: what it returns, where that is a tensor.
        start, end: the time, on which no two events agree.
    """

    name: str
    module: nn.Module
    number: int
    first: Value | None
    start: int
    result: Value | None = None
    end: int = 0


@dataclass(eq=False)
class Operation:
    """One operation of PyTorch, or one call of a layer that is taken as a whole.

    Attributes:
        kind: "add", "concat", "average_pool", "relu" ...; "layer" for a layer taken as a whole.
        calls: of the modules that it runs in, from the outermost.
        writes: whether it overwrites what it reads.
    """

    kind: str
    calls: tuple[Call, ...]
    time: int
    inputs: list[Value]
    writes: bool
    outputs: list[Value] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """Name of the innermost module that it runs in."""
        return self.calls[-1].name


@dataclass
class Trace:
    """All operations and calls of one forward pass, in their order."""

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


@torch.no_grad()
def trace(model: nn.Module, x: Tensor) -> Trace:
    """Run the model once in evaluation mode with its quantizers off, and write the pass down.

    Layers and quantizers are taken as a whole, and what they return is a new tensor, also where a quantizer that is
    off hands its input on.

    Args:
        model: maps `x` to anything; float or prepared.
        x: one batch of its input.
    """
    recorder = _Recorder({module for module in model.modules() if is_layer(module) or isinstance(module, Quantizer)})
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: what runs in it counts as run by the module around it
            enter, leave = recorder.borders(name, module)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            # what else hooks onto a whole module, such as a quantizer of its result, is outside of it
            first = module in recorder.whole
            stack.callback(module.register_forward_hook(leave, prepend=first).remove)
        x = x.detach().clone()
        recorder.note(x, None, depends=True)
        stack.enter_context(evaluating(model))
        stack.enter_context(quantizers_off(model))
        stack.enter_context(AtDropouts(recorder.training_only))
        stack.enter_context(recorder)
        model(x)
    return recorder.trace


class _Recorder(TorchDispatchMode):
    def __init__(self, whole: set[nn.Module]) -> None:
        super().__init__()
        self.trace = Trace()
        self.whole = whole
        self._stack: list[Call] = []
        self._time = 0
        self._paused = False
        # Tensors are held, so that no later one takes over the identity of an earlier.
        self._held: list[Tensor] = []
        self._values: dict[int, Value] = {}
        self._of_memory: dict[int, set[int]] = {}
        self._changed: set[int] = set()

    def note(self, tensor: Tensor, maker: Operation | None, depends: bool) -> Value:
        value = Value(tuple(tensor.shape), tensor.dtype, tensor.device, maker, depends)
        self._held.append(tensor)
        self._values[id(tensor)] = value
        self._of_memory.setdefault(_memory(tensor), set()).add(id(tensor))
        return value

    def value(self, tensor: Tensor) -> Value:
        known = self._values.get(id(tensor))
        # a tensor that changed behind its name follows from the input, but nobody knows how
        return known if known is not None else self.note(tensor, None, depends=id(tensor) in self._changed)

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def _inside(self) -> bool:
        return any(call.module in self.whole for call in self._stack)

    def _operation(self, kind: str, inputs: Iterable[Tensor], written: Tensor | None) -> Operation:
        values = [self.value(tensor) for tensor in inputs]
        operation = Operation(kind, tuple(self._stack), self._tick(), values, written is not None)
        for value in values:
            value.readers.append(operation)
        self.trace.operations.append(operation)
        return operation

    def _made(self, operation: Operation, tensors: Iterable[Tensor]) -> None:
        depends = any(value.depends for value in operation.inputs)
        for tensor in tensors:
            value = self.note(tensor, operation, depends)
            if tensor.is_floating_point():  # not the places of maxima
                operation.outputs.append(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._inside() or self._paused or not self._stack:
            return func(*args, **(kwargs or {}))
        kind = _kind(func, args)
        written = None if kind in ARRANGING else _written(func, args)
        operation = self._operation(kind, _tensors((args, kwargs)), written)
        result = func(*args, **(kwargs or {}))
        if written is not None:
            for other in self._of_memory.get(_memory(written), set()) - {id(written)}:
                if self._values.pop(other, None) is not None:
                    self._changed.add(other)
        self._made(operation, _tensors(result))
        return result

    def _only_hands_on(self, call: Call, result: Tensor) -> bool:
        """Whether a module of unknown kind does nothing to its input, and so may do something in training."""
        known = (nn.Identity, nn.Sequential, nn.modules.dropout._DropoutNd, Quantizer)
        handed_on = call.first is not None and self._values.get(id(result)) is call.first
        return handed_on and not isinstance(call.module, known)

    def training_only(self, x: Tensor) -> Tensor:
        """What is x here and something else in training, under a name of its own."""
        if self._inside():
            return x
        operation = self._operation("training_only", [x], None)
        self._paused = True
        y = x.view_as(x)
        self._paused = False
        self._made(operation, [y])
        return y

    def borders(self, name: str, module: nn.Module) -> tuple[Callable[..., None], Callable[..., Any]]:
        """Hooks for what enters the module and what leaves it."""
        calls = 0

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal calls
            calls += 1
            first = args[0] if args and isinstance(args[0], Tensor) else None
            alone = first is not None and not any(first is other for other in _tensors((args[1:], kwargs)))
            call = Call(name, module, calls, self.value(first) if alone and first is not None else None, self._tick())
            self._stack.append(call)

        def leave(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
            whole = module in self.whole
            call = self._stack[-1]
            if whole and sum(each.module in self.whole for each in self._stack) == 1:
                result = result.clone() if isinstance(result, Tensor) else result
                operation = self._operation("layer", _tensors(args), None)
                self._made(operation, _tensors(result))
            elif isinstance(result, Tensor) and self._only_hands_on(call, result):
                result = self.training_only(result)
            call.result = self.value(result) if isinstance(result, Tensor) else None
            call.end = self._tick()
            self.trace.calls.append(call)
            self._stack.pop()
            return result

        return enter, leave


def root(value: Value) -> Value:
    """The tensor whose values these are, only arranged."""
    while value.maker is not None and value.maker.kind in ARRANGING:
        value = value.maker.inputs[0]
    return value


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a convolution, a linear layer or an embedding, quantized or not."""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
            return value
    return None


def _kind(func: Any, args: tuple[Any, ...]) -> str:
    name: str = func.overloadpacket.__name__
    name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if name == "add" and not (len(args) > 1 and isinstance(args[1], Tensor)):
        return "add_number"
    if name == "cat" and len(args[0]) == 1:
        return "clone"
    if name == "constant_pad_nd":
        return "pad" if len(args) > 2 and args[2] != 0 else "zero_pad"
    if name == "hardtanh":
        return "relu6" if len(args) > 1 and args[1] >= 0 else "hardtanh"
    if "avg_pool" in name or (name == "mean" and _over_the_image(args)):
        return "average_pool"
    return "max_pool" if "max_pool" in name else _NAMES.get(name, name)


def _over_the_image(args: tuple[Any, ...]) -> bool:
    """Whether a mean runs over all axes behind the channels of (N, C, H, W) or (N, C, D, H, W)."""
    axes = args[0].dim()
    reduced = {axis % axes for axis in args[1]} if len(args) > 1 and args[1] and axes else set()
    return axes >= 4 and reduced == set(range(2, axes))
