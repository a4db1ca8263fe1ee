"""QONNX: the graph that brevitas writes for FPGA compilers (FINN, hls4ml), run by the qonnx package.

Each quantizer is one node `Quant` with scale, zero point and bits; weights stay in float before theirs. Our own layers
are exported through brevitas' too, which compute the same.

Reference: arXiv 2206.07527.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import warnings
from types import ModuleType
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, InputError, MissingDependencyError, explain
from qat_vsam.export.runtime_base import Runtime
from qat_vsam.quant import quant_layers
from qat_vsam.quant.backends.brevitas import is_brevitas, to_brevitas

DOMAIN = "qonnx.custom_op.general"


def build_qonnx(model: nn.Module, sample: Tensor) -> bytes:
    """The graph, serialized; the model itself is not touched.

    Args:
        model: with brevitas' layers, or with ours, in evaluation mode on the CPU.
        sample: a batch of inputs, whose size is that of the graph.

    Raises:
        InputError: a float model, or layers that brevitas' cannot express.
        MissingDependencyError: brevitas, onnxoptimizer or qonnx is not installed.
    """
    model = copy.deepcopy(model)
    if any(True for _ in quant_layers(model)):
        to_brevitas(model)
    elif not is_brevitas(model):
        raise InputError(explain("model", "a float model", "a quantized one for qonnx", "use format='onnx'"))
    for name in ("onnxoptimizer", "qonnx"):
        _need(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # brevitas imports what it has deprecated itself
        from brevitas.export import export_qonnx

        # with dynamo the weights' quantizers are not written
        graph: onnx.ModelProto = export_qonnx(model, args=sample, dynamo=False)
    serialized: bytes = graph.SerializeToString()
    return serialized


def is_qonnx(data: bytes) -> bool:
    """Whether a serialized graph names QONNX's operators."""
    return DOMAIN.encode() in data


class QonnxRuntime(Runtime):
    """A QONNX graph in the executor of the qonnx package, node by node; slow, and meant for proofs.

    The graph has the batch size of its export; other batches are cut, and the last part is filled up.

    Raises:
        CheckpointError: the executor cannot read the graph.
        MissingDependencyError: qonnx is not installed.
    """

    format = "qonnx"
    name = "qonnx"

    def __init__(self, data: bytes, source: str = "graph") -> None:
        _need("qonnx")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_shapes import InferShapes

        self.version = importlib.metadata.version("qonnx")
        try:
            self._graph: Any = ModelWrapper(onnx.load_model_from_string(data)).transform(InferShapes())
            given = self._graph.graph.input[0]
        except Exception as error:  # protobuf's and qonnx' exceptions share no public base
            raise CheckpointError(explain(source, str(error), "a QONNX graph", "export it again")) from error
        self._input, self._shape = given.name, tuple(self._graph.get_tensor_shape(given.name))
        self._output = self._graph.graph.output[0].name

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self._shape[1:]:
            raise InputError(explain("x", tuple(x.shape), f"(N, {self._shape[1:]})", "give inputs as at the export"))
        return torch.cat([self._run(part.detach().cpu()) for part in x.split(self._shape[0])])

    def _run(self, x: Tensor) -> Tensor:
        from qonnx.core.onnx_exec import execute_onnx

        missing = self._shape[0] - len(x)
        full = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that inference left open
            outputs = execute_onnx(self._graph, {self._input: full.contiguous().numpy()})
        return torch.from_numpy(outputs[self._output])[: len(x)]


def _need(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            explain(name, "no such package", f"an installed {name}", "pip install 'qat-vsam[qonnx]'")
        ) from error
