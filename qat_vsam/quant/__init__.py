"""Fake quantization: what (`spec`), the maths (`functional`), how (`quantizers`), where (`layers`)."""

from qat_vsam.quant.between import operations_between
from qat_vsam.quant.calibrate import calibrate
from qat_vsam.quant.correction import correct_bias
from qat_vsam.quant.functional import (
    dequantize,
    lsq_quantize,
    lsq_quantize_reference,
    positive_scale,
    power_of_two,
    quantize,
    sign_codes,
    sign_quantize,
)
from qat_vsam.quant.graph import Structure, analyse
from qat_vsam.quant.groups import param_groups
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
    input_quantizers,
    quant_layers,
    swap_channels,
)
from qat_vsam.quant.prepare import prepare
from qat_vsam.quant.quantizers import (
    DoReFaQuantizer,
    FixedQuantizer,
    LSQPlusQuantizer,
    LSQQuantizer,
    MinMaxQuantizer,
    PACTQuantizer,
    Quantizer,
    make_quantizer,
    set_compiled,
    set_quantizers_enabled,
)
from qat_vsam.quant.spec import LayerRule, QuantSpec, list_methods, list_presets
from qat_vsam.quant.stability import freeze_batch_norm, reestimate_batch_norm
from qat_vsam.quant.statistics import TensorStatistics, initial_step_size
from qat_vsam.quant.summary import OperationRow, Summary, SummaryRow
from qat_vsam.quant.targets import describe_targets, list_targets
from qat_vsam.quant.tensor_spec import TensorSpec, integer_range

__all__ = [
    "DoReFaQuantizer",
    "FixedQuantizer",
    "LSQPlusQuantizer",
    "LSQQuantizer",
    "LayerRule",
    "MinMaxQuantizer",
    "OperationRow",
    "PACTQuantizer",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantEmbedding",
    "QuantLayer",
    "QuantLinear",
    "QuantSpec",
    "Quantizer",
    "Structure",
    "Summary",
    "SummaryRow",
    "TensorSpec",
    "TensorStatistics",
    "analyse",
    "calibrate",
    "correct_bias",
    "dequantize",
    "describe_targets",
    "freeze_batch_norm",
    "initial_step_size",
    "input_quantizers",
    "integer_range",
    "list_methods",
    "list_presets",
    "list_targets",
    "lsq_quantize",
    "lsq_quantize_reference",
    "make_quantizer",
    "operations_between",
    "param_groups",
    "positive_scale",
    "power_of_two",
    "prepare",
    "quant_layers",
    "quantize",
    "reestimate_batch_norm",
    "set_compiled",
    "set_quantizers_enabled",
    "sign_codes",
    "sign_quantize",
    "swap_channels",
]
