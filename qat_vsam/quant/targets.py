"""What each runtime or format computes, as tables with their sources, and the check of layers against them.

A table holds what could be found in a specification, a documentation page or the runtime's own source, and nothing
else: what is not documented is not in it. Widths are those of the runtime's kernels; where narrower codes travel in
8-bit integers with the same result, they are named too. No table demands step sizes that are powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from qat_vsam.errors import ConfigError, explain
from qat_vsam.quant.target_rules import Fit, Kernel, Target, TensorRule
from qat_vsam.quant.tensor_spec import GRANULARITIES, MAX_BITS, MIN_BITS, TensorSpec

_ALL = tuple(range(MIN_BITS, MAX_BITS + 1))
_CONV = ("Conv1d", "Conv2d", "Conv3d")
_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_EVERY_LAYER = (*_CONV, *_TRANSPOSED, "Linear", "Embedding")
_SCALES = ("per_tensor", "per_channel")

_ORT = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_OPENVINO = (
    "https://docs.openvino.ai/2024/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/"
    "low-precision-transformations.html"
)
_LITERT = "https://ai.google.dev/edge/litert/models/quantization_spec"
_LITERT_POLICY = "litert_quantizer 0.11.0, default_policy.py, https://pypi.org/project/litert-quantizer"
_XNNPACK = "https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-quantization.html"
_XNNPACK_CONV = "https://github.com/pytorch/executorch, backends/xnnpack/partition/config/gemm_configs.py"
_TENSORRT = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
_TENSORRT_INT4 = "https://docs.nvidia.com/deeplearning/tensorrt/operators/docs/Quantize.html"
_QONNX = "https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/quant_op.md"
_BIPOLAR = "https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/bipolar_quant_op.md"

# int8 with a zero point of -128 is the unsigned grid of 8 bits, so a runtime with zero points takes both signs
_ASYMMETRIC_8 = TensorRule((8,), zero_point=True)
# QuantizeLinear gives int8 or uint8, a narrower grid being a Clip behind it. The signed grid of 1 bit has no code for
# zero and so no such form; balanced weights are odd int8 codes. Weights are read with a zero point of 0.
_QDQ_WEIGHT = TensorRule(_ALL[1:], signed=(True,), granularities=GRANULARITIES, balanced=True)
_QDQ_INPUT = TensorRule(_ALL[1:], zero_point=True)
# LiteRT: weights of 8 bits in [-127, 127]; for narrower ones its quantizer states no such demand
_LITERT_8 = TensorRule((8,), signed=(True,), granularities=_SCALES, narrow=(8,))
_LITERT_4 = TensorRule((4,), signed=(True,), granularities=_SCALES)
# XNNPACK's quantizer makes weights in [-127, 127]
_XNNPACK_CHANNEL = TensorRule((8,), signed=(True,), granularities=_SCALES, narrow=(8,))
_XNNPACK_TENSOR = TensorRule((8,), signed=(True,), granularities=("per_tensor",), narrow=(8,))
_TENSORRT_8 = TensorRule((8,), signed=(True,), granularities=_SCALES)

TARGETS: dict[str, Target] = {
    # The papers' convention: whatever the formulas define.
    "simulated": Target(
        runs="whatever the formulas define",
        kernels=(
            Kernel(
                _EVERY_LAYER,
                TensorRule(_ALL, granularities=GRANULARITIES, zero_point=True, balanced=True),
                (TensorRule(_ALL, zero_point=True), None),
                source="the papers of the methods",
            ),
        ),
        export="packed",
        proof="torch",
    ),
    "onnxruntime": Target(
        runs="int8 weights and (u)int8 inputs of 2 to 8 bits, or weights alone",
        kernels=(Kernel(_EVERY_LAYER, _QDQ_WEIGHT, (_QDQ_INPUT, None), source=_ORT),),
        export="onnx",
        proof="onnxruntime",
    ),
    # The same QDQ file. Its transformations know 8 bits: weights may have narrower codes, inputs may not, for version
    # 2026.4.1 computes something else from signed ones in front of convolutions. Weights of 8 bits saturate on x86
    # processors without VNNI, those of 7 bits do not: https://docs.openvino.ai/latest/pot_saturation_issue.html
    "openvino": Target(
        runs="int8 weights of 2 to 8 bits, and (u)int8 inputs or none",
        kernels=(Kernel(_EVERY_LAYER, _QDQ_WEIGHT, (_ASYMMETRIC_8, None), source=_OPENVINO),),
        export="onnx",
        proof="onnxruntime",
    ),
    # A convolution of one axis is one of two to LiteRT, which its converter has to make of it: not in the table.
    "litert": Target(
        runs="int8 inputs; int8 weights, or int4 in Conv2d and Linear; embeddings of 2, 4 and 8 bits",
        kernels=(
            Kernel(("Conv2d", "Linear", "ConvTranspose2d"), _LITERT_8, (_ASYMMETRIC_8, None), source=_LITERT),
            # int4 for depthwise: https://github.com/google-ai-edge/LiteRT, tflite/kernels/depthwise_conv.cc
            Kernel(("Conv2d", "Linear"), _LITERT_4, (_ASYMMETRIC_8, None), source=_LITERT_POLICY),
            Kernel(
                ("Embedding",),
                TensorRule((2, 4, 8), signed=(True,), granularities=_SCALES, narrow=(8,)),
                (None,),
                source=_LITERT_POLICY,
            ),
        ),
        bias="accumulator",
    ),
    "executorch-xnnpack": Target(
        runs="int8 weights and inputs; int4 weights in Linear alone, which get a scale for each input at run time",
        kernels=(
            Kernel(("Conv1d", "Conv2d", "Linear"), _XNNPACK_CHANNEL, (_ASYMMETRIC_8,), source=_XNNPACK),
            Kernel(("ConvTranspose2d",), _XNNPACK_TENSOR, (_ASYMMETRIC_8,), source=_XNNPACK_CONV),
            Kernel(("ConvTranspose2d",), _XNNPACK_CHANNEL, (_ASYMMETRIC_8,), source=_XNNPACK_CONV, grouped=False),
            Kernel(
                ("Linear",),
                TensorRule((4,), signed=(True,), granularities=("per_channel", "per_group")),
                (_ASYMMETRIC_8,),
                source=_XNNPACK,
            ),
            Kernel(
                ("Embedding",),
                TensorRule((2, 4, 8), signed=(True,), granularities=("per_channel", "per_group")),
                (None,),
                source=_XNNPACK,
            ),
        ),
        bias="accumulator",
    ),
    "tensorrt": Target(
        runs="signed int8 weights and inputs without zero points; int4 weights alone by groups in Linear",
        kernels=(
            Kernel(
                ("Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d", "Linear"),
                _TENSORRT_8,
                (TensorRule((8,), signed=(True,)),),
                source=_TENSORRT,
            ),
            Kernel(
                ("Linear",),
                TensorRule((4,), signed=(True,), granularities=("per_group",)),
                (None,),
                source=_TENSORRT_INT4,
            ),
        ),
        export="onnx",
        proof="onnxruntime",
    ),
    # Quant takes 2 bits and more, of either sign; BipolarQuant is the sign times a scale.
    "qonnx": Target(
        runs="any widths; 1 bit means the sign",
        kernels=tuple(
            Kernel(
                _EVERY_LAYER, weight, (TensorRule(_ALL[1:], zero_point=True), TensorRule((1,), (True,)), None), source
            )
            for weight, source in (
                (TensorRule(_ALL[1:], granularities=_SCALES, zero_point=True), _QONNX),
                (TensorRule((1,), (True,), granularities=_SCALES), _BIPOLAR),
            )
        ),
        export="qonnx",
        proof="qonnx",
    ),
}


def list_targets() -> list[str]:
    """Names for `QuantSpec.target`."""
    return list(TARGETS)


def describe_targets() -> dict[str, str]:
    """Name -> what it runs, which export of ours it reads, and where that was proven, in one line.

    Example:
        >>> describe_targets()["simulated"]
        'whatever the formulas define; export packed, proven in torch'
    """
    return {name: target.line for name, target in TARGETS.items()}


def fit_spec(name: str, key: str, weight: TensorSpec, activation: TensorSpec | None) -> Fit:
    """What a target makes of specs for layers that are not known yet.

    Raises:
        ConfigError: it has no kernel for them, whatever the layer; the message names the nearest.
    """
    fit = TARGETS[name].nearest(weight, activation)
    assert fit is not None  # every target has a kernel that some change leads to
    if fit.changes:
        changed, got, _ = fit.changes[0]
        raise ConfigError(
            explain(f"{key}{changed}", got, _expected(name), f"the nearest that it can run is {fit.advice()}")
        )
    return fit


def fit_layers(
    name: str, layers: Mapping[str, tuple[nn.Module, TensorSpec, TensorSpec | None]]
) -> dict[str, tuple[TensorSpec, TensorSpec | None]]:
    """The specs of layers as a target runs them: with the sign and the narrow range that it demands.

    Args:
        name: of the target.
        layers: name -> float layer, and what is asked for its weight and input. That of an embedding, indices, is
            not looked at.

    Raises:
        ConfigError: it cannot run one of them; the message names the first, and the nearest for it.
    """
    specs: dict[str, tuple[TensorSpec, TensorSpec | None]] = {}
    refused: list[str] = []
    for layer, (module, weight, activation) in layers.items():
        kind = next(base.__name__ for base in type(module).__mro__ if base.__name__ in _EVERY_LAYER)
        read = None if kind == "Embedding" else activation
        fit = TARGETS[name].nearest(weight, read, kind, getattr(module, "groups", 1) > 1)
        if fit is not None and not fit.changes:
            specs[layer] = fit.weight, fit.activation
            continue
        asked = f"w{weight.bits}" + ("" if read is None else f"a{read.bits}")
        got = f"{kind} at {asked}" + "".join(f", {key} {old}" for key, old, _ in _others(fit))
        advice = f"override it with {fit.advice()}, or keep it in float" if fit is not None else "keep it in float"
        refused.append(explain(layer, got, _expected(name), advice))
    if refused:
        more = f" (and {len(refused) - 1} more layers)" if len(refused) > 1 else ""
        raise ConfigError(refused[0] + more)
    return specs


def _others(fit: Fit | None) -> list[tuple[str, object, object]]:
    """The changes that the short name of the widths does not show."""
    changes = () if fit is None else fit.changes
    return [change for change in changes if not change[0].endswith("bits") and change[0] != "activation"]


def _expected(name: str) -> str:
    return f"what target {name} runs ({TARGETS[name].runs})"
