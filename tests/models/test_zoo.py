"""Image classifiers of torchvision and timm: each is prepared, or every layer listed with the reason.

`python tests/models/test_zoo.py FOLDER` runs all of them and writes what stays in float to summary.md and models.csv.
"""

from __future__ import annotations

import csv
import gc
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import qat_vsam as qv
from qat_vsam.quant import quant_layers, reestimate_batch_norm, set_quantizers_enabled

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)

# each the smallest of its family, with the options and the image size that make it quick
TIMM: dict[str, tuple[int, dict[str, object]]] = {
    "resnet10t": (64, {}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "tf_efficientnet_lite0": (64, {}),
    "efficientnet_b0": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "depths": (1, 1, 1, 1)}),
    "convnext_atto": (64, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "pit_ti_224": (224, {}),
    "levit_128s": (224, {}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "depth": 4}),
    "coat_tiny": (64, {"img_size": 64}),
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}),
    "nfnet_f0": (64, {}),
    "densenet121": (64, {}),
    "dla46_c": (64, {}),
    "hrnet_w18_small": (64, {}),
    "res2net50_26w_4s": (64, {}),
    "resnest14d": (64, {}),
    "repvgg_a0": (64, {}),
    "ghostnet_050": (64, {}),
    "fbnetc_100": (64, {}),
    "tinynet_e": (64, {}),
    "vgg11": (64, {}),
    "inception_v3": (96, {}),
    "visformer_tiny": (64, {"img_size": 64}),
    "twins_pcpvt_small": (64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    "poolformer_s12": (64, {}),
    "edgenext_xx_small": (64, {}),
    "mobilevit_xxs": (64, {}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 4}),
    "resnetv2_50x1_bit": (64, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 2}),
    "efficientformer_l1": (224, {}),
}
# what a torchvision model needs beside its name
TORCHVISION_SIZE = {"inception_v3": 299, "maxvit_t": 224}
QUICK = ["torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "timm:test_nfnet", "timm:test_efficientnet_ln"]


def torchvision_case(name: str) -> tuple[int, dict[str, object]]:
    if name.startswith("vit_"):
        size = 2 * int(name.rpartition("_")[2])
        return size, {"image_size": size}
    return TORCHVISION_SIZE.get(name, 64), {}


def cases() -> dict[str, tuple[int, dict[str, object]]]:
    names = torchvision.models.list_models(module=torchvision.models)
    found = {f"torchvision:{name}": torchvision_case(name) for name in names}
    return found | {f"timm:{name}": case for name, case in TIMM.items()}


def outputs(model: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """What a forward gives; the statistics of norms stay as they were."""
    model.train(training)
    torch.manual_seed(1)  # dropout and stochastic depth
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    leaves = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
    if not torch.is_grad_enabled():
        for buffer, value in statistics:
            buffer.copy_(value)
    return leaves


def check(name: str, size: int, options: dict[str, object]) -> qv.Summary:
    """Every promise for one model; returns what `prepare` said."""
    model = qv.build_model(name, seed=0, num_classes=10, **options)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    # random weights with the statistics of their own activations, as training would leave them
    reestimate_batch_norm(model, [x])
    with torch.no_grad():
        before = {training: outputs(model, x, training) for training in (False, True)}
    layers = {name for name, module in model.named_modules() if isinstance(module, LAYERS)}

    summary = qv.prepare(model, qv.QuantSpec.preset("w4a4"))
    rows = {row.name: row for row in summary}
    assert layers <= set(rows)
    assert {row.name for row in summary.quantized} == {name for name, _ in quant_layers(model)}

    set_quantizers_enabled(model, False)
    with torch.no_grad():
        for training in (False, True):
            now = outputs(model, x, training)
            assert len(now) == len(before[training])
            assert all(torch.equal(*pair) for pair in zip(now, before[training], strict=True)), f"train={training}"
    set_quantizers_enabled(model, True)
    qv.calibrate(model, [x], method="lsq")
    reached = outputs(model, x, training=True)
    sum(leaf.float().square().mean() for leaf in reached).backward()
    for name, layer in quant_layers(model):
        assert layer.weight.grad is not None, name
        assert torch.isfinite(layer.weight.grad).all(), name
    return summary


# parameters that no convolution, linear layer or embedding holds: scales, biases of attention, class tokens
OTHER = ("normalisation", "parameters of its own", "has no quantized twin")


def kept_in_float(summary: qv.Summary) -> Counter[str]:
    """Reasons of convolutions, linear layers, embeddings and attentions that stay in float, with their number."""
    return Counter(row.skipped for row in summary.skipped if not any(other in row.skipped for other in OTHER))


@pytest.mark.parametrize("name", QUICK)
def test_a_small_model_is_prepared_whole(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="the extra timm")
    assert not kept_in_float(check(name, 64, {}))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(cases()))
def test_every_model_is_prepared_whole(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="the extra timm")
    assert not kept_in_float(check(name, *cases()[name]))


def main(folder: Path, names: list[str]) -> None:
    rows = []
    for name in names or cases():
        size, options = cases()[name]
        if name.startswith("timm:") and importlib.util.find_spec("timm") is None:
            continue
        try:
            summary = check(name, size, options)
            kept = "; ".join(f"{count} x {reason}" for reason, count in kept_in_float(summary).items())
            parameters = sorted(
                {row.kind for row in summary.skipped if row.skipped.startswith("parameters of its own")}
            )
            rows.append([name, size, len(summary.quantized), kept, ", ".join(parameters)])
        except Exception as error:
            rows.append([name, size, 0, f"FAILED: {type(error).__name__}: {str(error)[:200]}", ""])
        print(*rows[-1], sep=" | ", flush=True)  # noqa: T201
        gc.collect()
    folder.mkdir(parents=True, exist_ok=True)
    header = ["model", "image size", "quantized layers", "layers in float", "modules with parameters of their own"]
    with (folder / "models.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
