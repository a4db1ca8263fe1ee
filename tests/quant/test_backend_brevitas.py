"""Promises of the brevitas backend: its layers start as ours, train by our optimizers, and export to QONNX."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam import SAM, VSAM, ConfigError, InputError, LayerRule, QuantSpec, TensorSpec
from qat_vsam.models import build_model
from qat_vsam.optim.stillness import standing_still
from qat_vsam.quant import calibrate, param_groups, prepare, quant_layers
from qat_vsam.quant.backends.brevitas import check_brevitas, to_brevitas

pytest.importorskip("brevitas", reason="brevitas is not installed")


def convnet() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def pair(
    spec: QuantSpec, model: nn.Module | None = None, x: Tensor | None = None
) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our model, the same with brevitas' layers, and inputs."""
    ours = convnet() if model is None else model.eval()
    x = torch.randn(32, 3, 8, 8) if x is None else x
    prepare(ours, spec)
    calibrate(ours, [x])
    return ours, to_brevitas(copy.deepcopy(ours)), x


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w2a2", "w4"])
@pytest.mark.parametrize("narrow", [False, True])
def test_each_layer_computes_what_ours_does(bits: str, narrow: bool) -> None:
    ours, theirs, x = pair(QuantSpec.preset(bits, narrow=narrow, first_last_bits=None))
    assert not list(quant_layers(theirs))
    for name, layer in quant_layers(ours):
        weight = theirs.get_submodule(name).quant_weight()
        step = weight.scale * torch.ones_like(layer.weight)
        torch.testing.assert_close(weight.value, layer.quantized_weight(), rtol=1e-6, atol=1e-7)
        assert torch.equal((weight.value / step).round(), layer.weight_codes().float())
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (8, 4, 9)),
        (nn.Conv3d(2, 4, 2, bias=False), (4, 2, 4, 4, 4)),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 4, 6, 6)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (8, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (4, 4, 5, 5)),
        (nn.ConvTranspose3d(2, 4, 2), (4, 2, 4, 4, 4)),
        (nn.Linear(5, 3), (8, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_every_kind_of_layer_is_replaced(layer: nn.Module, shape: tuple[int, ...], granularity: Any) -> None:
    spec = QuantSpec(TensorSpec(4, True, granularity), TensorSpec(4), first_last_bits=4)
    ours, theirs, x = pair(spec, nn.Sequential(copy.deepcopy(layer)), torch.randn(shape))
    assert type(theirs[0]).__module__.startswith("brevitas.nn")
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def test_embeddings_are_replaced_where_the_table_has_one_scale() -> None:
    x = torch.tensor([[1, 2, 9]])
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"0\.weight: got a scale for each entry"):
        pair(QuantSpec.preset("w4a8"), copy.deepcopy(model), x)
    spec = QuantSpec(TensorSpec(4, True, "per_tensor"), TensorSpec(8))
    ours, theirs, _ = pair(spec, model, x)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def test_layers_that_read_one_tensor_share_one_scale() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.relu()
            return self.c(self.a(x) + self.b(x))

    _, theirs, _ = pair(QuantSpec.preset("w4a4", first_last_bits=4), Two(), torch.randn(16, 4))
    assert theirs.a.input_quant is theirs.b.input_quant  # type: ignore[union-attr]


def test_its_scales_are_step_sizes_and_do_not_decay() -> None:
    ours, theirs, _ = pair(QuantSpec.preset("w4a4"))
    groups = {group["role"]: group for group in param_groups(theirs, weight_decay=1e-4)}
    expected = {group["role"]: len(group["params"]) for group in param_groups(ours)}
    assert {role: len(group["params"]) for role, group in groups.items()} == expected
    assert len(groups["step_size"]["params"]) == 6
    assert groups["step_size"]["weight_decay"] == 0


@pytest.mark.parametrize("member", [SAM, VSAM])
def test_our_optimizers_train_it(member: Any) -> None:
    _, model, x = pair(QuantSpec.preset("w4a4"))
    y = x.mean((2, 3)).argmax(1)
    groups = param_groups(model.train(), weight_decay=1e-4)
    for group in groups:
        if group["role"] == "step_size":
            group["lr"] = 1e-3
    optimizer = member(groups, torch.optim.SGD, model=model, lr=0.1, momentum=0.9, rho=0.05)

    def closure(rows: slice = slice(None)) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure, batch_size=len(x))) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_statistics_of_brevitas_own_layers_stand_still_in_a_second_pass() -> None:
    import brevitas.nn as brevitas_nn

    model = brevitas_nn.QuantReLU().train()  # collects the range of its inputs for 300 steps
    model(torch.rand(8, 4))
    before = {name: value.clone() for name, value in model.named_buffers()}
    counts = [module.counter for module in model.modules() if hasattr(module, "counter")]
    with standing_still(model):
        model(10 * torch.rand(8, 4))
    assert counts == [1]
    assert [module.counter for module in model.modules() if hasattr(module, "counter")] == counts
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_a_state_dict_restores_it() -> None:
    _, trained, x = pair(QuantSpec.preset("w4a4"))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    _, again, _ = pair(QuantSpec.preset("w4a4"))
    before = dict(again.named_parameters())
    for model in (copy.deepcopy(again), again):
        model.load_state_dict(trained.state_dict())
        assert torch.equal(model(x), trained(x))
    # an optimizer that was made before goes on training them
    assert all(parameter is before[name] for name, parameter in again.named_parameters())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"method": "pact"}, "weight.method"),
        ({"method": "mse"}, "weight.method"),
        ({"balanced": True}, "weight.balanced"),
        ({"power_of_two": True}, "weight.power_of_two"),
        ({"surrogate": "ewgs"}, "weight.surrogate"),
        ({"overrides": [LayerRule.preset("3", "w1")]}, "weight.bits"),
        ({"first_last_bits": 1}, "first_last_bits"),
        ({"group_size": 1}, "weight.granularity"),
        ({"method": "lsq_plus"}, "activation.method"),
    ],
)
def test_what_its_layers_lack_is_refused_before_and_after_prepare(options: dict[str, Any], key: str) -> None:
    spec = QuantSpec.preset("w3a3", **options)
    with pytest.raises(ConfigError, match=key):
        check_brevitas(spec)
    model = convnet()
    prepare(model, spec)
    calibrate(model, [torch.randn(8, 3, 8, 8)])
    with pytest.raises(ConfigError):
        to_brevitas(model)
    assert len(list(quant_layers(model))) == 3


def test_quantizers_between_layers_are_refused_before_and_after_prepare() -> None:
    spec = QuantSpec.preset("w4a4", residual_adds="quantized")
    with pytest.raises(ConfigError, match="residual_adds: got quantized; expected float with brevitas"):
        check_brevitas(spec)
    model, x = build_model("cifar_resnet20", seed=0), torch.randn(2, 3, 32, 32)
    prepare(model, spec, sample=x)
    calibrate(model, [x])
    with pytest.raises(InputError, match="got a quantizer between layers; expected none with brevitas"):
        to_brevitas(model)


def test_models_that_are_not_calibrated_or_not_quantized_are_refused() -> None:
    model = convnet()
    with pytest.raises(InputError, match="no quantized layer"):
        to_brevitas(model)
    prepare(model, QuantSpec.preset("w4a4"))
    with pytest.raises(InputError, match="no step size"):
        to_brevitas(model)


def test_transposed_convolutions_of_several_groups_are_refused() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2))
    prepare(model, QuantSpec.preset("w4"))
    with pytest.raises(InputError, match="2 groups"):
        to_brevitas(model)


@pytest.fixture
def qonnx() -> None:
    for name in ("qonnx", "onnxoptimizer"):
        pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.usefixtures("qonnx")
@pytest.mark.parametrize("backend", ["own", "brevitas"])
def test_qonnx_files_are_proven_equal_and_verified(tmp_path: Path, backend: str) -> None:
    ours, theirs, x = pair(QuantSpec.preset("w4a4"))
    model, path = ours if backend == "own" else theirs, tmp_path / "model.qonnx"
    proof = qv.export(model, path, format="qonnx", sample=x, minimum_inputs=120)
    assert (proof.passed, proof.runtime, proof.inputs) == (True, "qonnx", 120)
    assert proof.mean_logit_difference < 1e-4 * proof.logit_spread
    assert qv.verify(path).passed
    assert model(x).shape == (32, 4)


@pytest.mark.usefixtures("qonnx")
def test_a_qonnx_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qat_vsam.export import exporter

    ours, theirs, x = pair(QuantSpec.preset("w4a4"))
    with torch.no_grad():
        theirs[3].weight.mul_(1.2)  # type: ignore[operator, index, union-attr]
    build = exporter.build_qonnx
    monkeypatch.setattr(exporter, "build_qonnx", lambda model, sample: build(theirs, sample))
    with pytest.raises(qv.ExportMismatch):
        qv.export(ours, tmp_path / "model.qonnx", format="qonnx", sample=x, minimum_inputs=50)
    assert not list(tmp_path.iterdir())


def test_other_formats_are_refused_for_its_layers(tmp_path: Path) -> None:
    _, theirs, x = pair(QuantSpec.preset("w4a4"))
    with pytest.raises(InputError, match="qonnx"):
        qv.export(theirs, tmp_path / "model.onnx", sample=x)
