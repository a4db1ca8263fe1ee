"""An artifact, loaded once, as a function from inputs to logits: how accuracy and speed are measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, InputError, explain
from qat_vsam.export.files import read_bytes
from qat_vsam.export.packed import load_packed
from qat_vsam.export.qonnx import QonnxRuntime, is_qonnx
from qat_vsam.export.runtime_base import Runtime

# This optimizer rounds a float bias to the grid s_x s_w of the accumulator, which training has not seen.
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
# the entry of an ONNX file's metadata that lists them
DISABLED_OPTIMIZERS_KEY = "qat_vsam.disabled_optimizers"
# Without this entry the 8-bit kernels of x86 processors that lack VNNI add pairs of products in 16 bits,
# which overflow for large weights. Elsewhere it changes nothing.
SESSION_CONFIG = {"session.x64quantprecision": "1"}
_BATCH = 64


class OnnxRuntime(Runtime):
    """An ONNX graph in onnxruntime's CPU provider.

    Args:
        data: the graph, serialized.
        threads: of one operator; None takes onnxruntime's default.
        disabled_optimizers: names of graph optimizers to leave out; the default is what the proof of equality
            stands on, and costs speed: convolutions with a bias are then computed in float.
        source: the artifact's name in messages.

    Raises:
        CheckpointError: onnxruntime cannot read the graph.
    """

    format = "onnx"
    name = "onnxruntime"

    def __init__(
        self,
        data: bytes,
        threads: int | None = None,
        disabled_optimizers: Sequence[str] = DISABLED_OPTIMIZERS,
        source: str = "graph",
    ) -> None:
        self.version = onnxruntime.__version__
        self.disabled_optimizers = tuple(disabled_optimizers)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        for key, value in SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(self.disabled_optimizers),
            )
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise CheckpointError(
                explain(source, str(error).splitlines()[0], "a graph that onnxruntime can run", "export it again")
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output of the graph by name, for every input by name."""
        feeds = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
        try:
            arrays = self._session.run(self._outputs, feeds)
        except Exception as error:  # see above
            shapes = ", ".join(f"{tuple(value.shape)} {value.dtype}" for value in inputs.values())
            raise InputError(explain("x", shapes, "the shape and type that was exported", str(error))) from error
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}

    def __call__(self, x: Tensor) -> Tensor:
        return self.run({self._input: x})[self._outputs[0]]


class PackedRuntime(Runtime):
    """The integer model of a packed file, in PyTorch.

    Args:
        model: from `load_packed`.
        threads: of one operator, for the time of a call; None leaves PyTorch's setting.
    """

    format = "packed"
    name = "torch"

    def __init__(self, model: nn.Module, threads: int | None = None) -> None:
        self.version = str(torch.__version__)
        self.model = model
        self._threads = threads

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode(), _torch_threads(self._threads):
            logits: Tensor = self.model(x.detach().cpu())
        return logits.clone()


def load_runtime(
    path: str | Path,
    *,
    threads: int | None = None,
    model: nn.Module | None = None,
    trust_builder: bool = False,
) -> Runtime:
    """Load an artifact of any format; which one, its content tells.

    Args:
        path: an ONNX, QONNX or packed file.
        threads: of one operator; None takes the library's default.
        model, trust_builder: for packed files, see `load_packed`.

    Raises:
        CheckpointError: the file is missing or broken.
        InputError: a packed file does not say how to build its model, or `threads` is below 1.

    Example:
        >>> import tempfile, qat_vsam as qv
        >>> model, x = qv.build_model("digits_cnn", seed=0), torch.rand(8, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     proof = qv.export(model, f"{folder}/model.onnx", sample=x)
        ...     runtime = load_runtime(f"{folder}/model.onnx", threads=1)
        >>> runtime.name, tuple(runtime(x).shape)
        ('onnxruntime', (8, 10))
    """
    if threads is not None and threads < 1:
        raise InputError(explain("threads", threads, "a number >= 1, or None", "leave it out for the default"))
    path = Path(path)
    data = read_bytes(path)
    # a safetensors file is the length of its header, 8 bytes, and the header, a JSON object
    if path.suffix == ".safetensors" or data[8:9] == b"{":
        return PackedRuntime(load_packed(path, model, trust_builder=trust_builder), threads)
    if is_qonnx(data):
        return QonnxRuntime(data, str(path))
    return OnnxRuntime(data, threads, disabled_optimizers_of(data, str(path)), str(path))


def predict(
    path: str | Path,
    x: Tensor,
    *,
    batch_size: int = _BATCH,
    threads: int | None = None,
    model: nn.Module | None = None,
    trust_builder: bool = False,
) -> Tensor:
    """Logits of an artifact, computed by its own runtime.

    Args:
        path: an ONNX or packed file.
        x: inputs, shape (N, ...).
        batch_size: inputs at a time.
        threads, model, trust_builder: see `load_runtime`.

    Raises:
        CheckpointError: the file is missing or broken.
        InputError: the inputs do not fit the model.
    """
    runtime = load_runtime(path, threads=threads, model=model, trust_builder=trust_builder)
    return torch.cat([runtime(part) for part in x.split(batch_size)])


def disabled_optimizers_of(data: bytes, source: str) -> tuple[str, ...]:
    """The optimizers that an ONNX file was proven without, from its metadata; the usual ones by default."""
    try:
        properties = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    except Exception as error:  # protobuf's exceptions share no public base
        raise CheckpointError(explain(source, "an unreadable file", "an ONNX graph", "export it again")) from error
    names = properties.get(DISABLED_OPTIMIZERS_KEY)
    return DISABLED_OPTIMIZERS if names is None else tuple(filter(None, names.split(",")))


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
