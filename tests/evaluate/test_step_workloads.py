from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from qat_vsam.evaluate import (
    NativeQuantizer,
    StepWorkload,
    step_workloads,
    use_native_operator,
)
from qat_vsam.models import build_model
from qat_vsam.optim import SAM
from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers
from qat_vsam.quant.backends.brevitas import to_brevitas

needs_brevitas = pytest.mark.skipif(importlib.util.find_spec("brevitas") is None, reason="brevitas is not installed")


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def _sam(model: nn.Module) -> torch.optim.Optimizer:
    return SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.01)


def _prepared() -> tuple[nn.Module, torch.Tensor]:
    model = build_model("digits_cnn", width=4, seed=0).train()
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3
    prepare(model, QuantSpec.preset("w4a4"), sample=x)
    calibrate(model, [x])
    return model.to(memory_format=torch.channels_last).train(), x


def test_workloads_share_weights_and_batch_and_train_their_own_copy() -> None:
    source = build_model("digits_cnn", width=4, seed=0)
    workloads = step_workloads(
        source, (6, 1, 8, 8), {"sgd": _sgd, "sam": _sam}, implementations=("default", "native"), steps=3
    )
    assert list(workloads) == ["float32 sgd", "float32 sam", "w4a4 sgd", "w4a4 sam", "w4a4 sgd native"]
    first = source.conv1.weight.detach().clone()
    for workload in workloads.values():
        assert torch.equal(workload.model.conv1.weight, first)
        assert torch.equal(workload.x, workloads["float32 sgd"].x)
        assert workload.model.training
        workload()
        assert not torch.equal(workload.model.conv1.weight, first)
        assert int(workload.model.bn1.num_batches_tracked) == 3 + int(source.bn1.num_batches_tracked)
    assert torch.equal(source.conv1.weight, first)


def test_each_call_runs_that_many_steps_at_the_declared_cost() -> None:
    model = build_model("digits_cnn", width=2, seed=0)
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    plain = StepWorkload(copy.deepcopy(model), _sgd(model), x, y)
    sam = StepWorkload(model, _sam(model), x, y, steps=3)
    sam()
    assert sam.optimizer.steps == 3
    assert sam.gradient_evaluations_per_step == 2.0
    assert plain.gradient_evaluations_per_step == 1.0


def test_the_native_operator_computes_our_outputs() -> None:
    ours, x = _prepared()
    native = use_native_operator(copy.deepcopy(ours))
    torch.testing.assert_close(native(x), ours(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["weight_quantizer", "input_quantizer"])
def test_the_native_operator_has_our_gradients_away_from_the_borders(kind: str) -> None:
    ours = getattr(_prepared()[0].conv2, kind)
    native = NativeQuantizer(ours)
    unit = torch.rand(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    # between the smallest and the largest code, where the two masks agree
    scale = ours.scale().detach().reshape(-1, 1, 1, 1)
    x = scale * (ours.q_min + 0.6 + unit * (ours.q_max - ours.q_min - 1.2))
    gradients = []
    for quantizer in (ours, native):
        leaf = x.clone().requires_grad_()
        (quantizer(leaf) * unit).sum().backward()
        gradients.append((leaf.grad, quantizer.step_size.grad.reshape(-1)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@needs_brevitas
def test_brevitas_layers_have_our_policy_weights_layout_and_learned_scales() -> None:
    ours, x = _prepared()
    policy = dict(quant_layers(copy.deepcopy(ours)))
    model = to_brevitas(ours)
    assert not list(quant_layers(model))
    model.to(memory_format=torch.channels_last)
    model(x).square().sum().backward()
    for name, layer in policy.items():
        rival = model.get_submodule(name)
        assert torch.equal(rival.weight, layer.weight)
        assert int(rival.weight_quant.bit_width()) == layer.weight_quantizer.bits
        assert int(rival.input_quant.bit_width()) == layer.input_quantizer.bits
        assert rival.input_quant.is_signed == layer.input_quantizer.signed
        assert rival.weight_quant.scale().numel() == layer.weight.shape[0]
        learned = [p for key, p in rival.named_parameters() if "scaling_impl" in key]
        assert len(learned) == 2
        assert all(p.grad is not None and p.grad.any() for p in learned)


def test_importing_the_room_imports_no_rival() -> None:
    code = "import sys, qat_vsam.evaluate; sys.exit('brevitas' in sys.modules or 'torchao' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
