"""The same checkpoint, bits, policy, epochs and order of images in three libraries: ours, brevitas and AIMET.

    pip install -e . onnxoptimizer aimet-torch
    python reports/libraries/compare.py --data FOLDER                # accuracy and exports, into results.csv
    python reports/libraries/compare.py --data FOLDER --speed        # step times, into speed.csv

FOLDER holds `cifar10/*.parquet` and `pretrained/resnet20-12fca82f.th`. Finished rows are skipped, so the command may be
killed and given again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import arms
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam.errors import QatVsamError
from qat_vsam.evaluate.bench import Timing, interleave
from qat_vsam.evaluate.step_workloads import StepWorkload
from qat_vsam.export.runtime import OnnxRuntime
from qat_vsam.models import model_info
from qat_vsam.quant import set_compiled
from qat_vsam.report.statistics import Estimate, mean_interval, paired_difference

MODEL, CHECKPOINT = "cifar_resnet20", "pretrained/resnet20-12fca82f.th"
BATCH, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 128, 0.01, 0.9, 1e-4
CALIBRATION_BATCHES, TEST_BATCH, EXPORT_INPUTS = 10, 500, 1000
RESULTS, SPEED = (Path(__file__).with_name(name) for name in ("results.csv", "speed.csv"))
SETTING = ("bits", "images", "epochs", "arm")
FIGURES = ("float", "calibrated", "trained", "agreement", "difference", "agreement_default", "difference_default")


class Protocol:
    """The data, and the float network, that all arms share."""

    def __init__(self, root: Path, images: int, epochs: int) -> None:
        self.data = qv.load_dataset("cifar10", root, train_size=images)
        self.epochs = epochs
        info = model_info(MODEL)
        self.norm: dict[str, Any] = {"mean": info.mean, "std": info.std, "channels_last": True}
        self.test = qv.Batches(self.data.test, TEST_BATCH, **self.norm)
        self.checkpoint = root / CHECKPOINT

    def float_model(self) -> nn.Module:
        return qv.build_model(MODEL, checkpoint=self.checkpoint).to(memory_format=torch.channels_last).eval()

    def calibration(self) -> list[Tensor]:
        """Training images as they are, the same for every arm."""
        return [x for x, _ in islice(qv.Batches(self.data.train, BATCH, **self.norm), CALIBRATION_BATCHES)]

    def training(self, seed: int) -> qv.Batches:
        options = {"augment": "crop_flip", "shuffle": True, "drop_last": True, "seed": seed}
        return qv.Batches(self.data.train, BATCH, **options, **self.norm)

    def accuracy(self, model: nn.Module) -> float:
        """In percent, on all test images."""
        return 100 * qv.evaluate(model, self.test).value

    def export_inputs(self) -> Tensor:
        return torch.cat([x for x, _ in islice(self.test, EXPORT_INPUTS // TEST_BATCH)]).contiguous()


def train(model: nn.Module, batches: qv.Batches, epochs: int) -> None:
    """SGD to the last epoch, the learning rate on a cosine to 0, batch norms in training mode."""
    optimizer = optimizer_of(model)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    qv.fit(model, optimizer, batches, epochs=epochs, lr_scheduler=cosine)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(arms.param_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, momentum=MOMENTUM)


def compare_export(model: nn.Module, inputs: Tensor) -> dict[str, object]:
    """The exported file in onnxruntime against the model: share of equal answers, mean difference by the spread.

    Twice: in a session as our own proofs set it (no rounding of biases, no 16-bit sums), and in the default one.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = torch.cat([model(part) for part in inputs.split(arms.EXPORT_BATCH)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        arms.export(model, path, inputs)
        data = onnx.load(path).SerializeToString()  # AIMET keeps weights in a second file
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    default = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = default.get_inputs()[0].name
    found: dict[str, object] = {"onnx_bytes": len(data)}
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "": OnnxRuntime(data, threads=1),
        "_default": lambda x: torch.from_numpy(default.run(None, {name: x.numpy()})[0]),
    }
    for suffix, run in runs.items():
        logits = torch.cat([run(part) for part in inputs.split(arms.EXPORT_BATCH)])
        equal = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
        difference = ((logits - expected).abs().mean() / expected.std()).item()
        found |= {f"agreement{suffix}": f"{equal:.4f}", f"difference{suffix}": f"{difference:.2e}"}
    return found


def accuracy_rows(protocol: Protocol, bits: str, todo: list[tuple[int, str]]) -> Iterator[dict[str, object]]:
    """The figures of each seed and arm."""
    float_accuracy = protocol.accuracy(protocol.float_model())
    calibrated: dict[str, tuple[nn.Module, float]] = {}
    for seed, arm in todo:
        if arm not in calibrated:
            model = arms.ARMS[arm](protocol.float_model(), bits, protocol.calibration())
            calibrated[arm] = model, protocol.accuracy(model)
        model = copy.deepcopy(calibrated[arm][0])
        train(model, protocol.training(seed), protocol.epochs)
        accuracies = {"float": float_accuracy, "calibrated": calibrated[arm][1], "trained": protocol.accuracy(model)}
        figures = {key: f"{value:.2f}" for key, value in accuracies.items()}
        yield {"arm": arm, "seed": seed} | figures | compare_export(model, protocol.export_inputs())


def speed_rows(protocol: Protocol, bits: str, chosen: list[str], rounds: int) -> list[dict[str, object]]:
    """Median step times, one step of each workload in turn; ratios are taken within a round."""
    x, y = next(protocol.training(0).epoch(0))
    models = {"float32": protocol.float_model()}
    for arm in chosen:
        models[arm] = arms.ARMS[arm](protocol.float_model(), bits, [x])
    if "ours" in models:
        models["ours, not compiled"] = copy.deepcopy(models["ours"])
        set_compiled(models["ours, not compiled"], False)
    workloads = {name: StepWorkload(model.train(), optimizer_of(model), x, y) for name, model in models.items()}
    timings = interleave(workloads, rounds, warmup=3, progress=lambda done, total: show(f"round {done} of {total}"))
    rows = []
    for name, timing in timings.items():
        ratio = Timing(tuple(a / b for a, b in zip(timing.times, timings["float32"].times, strict=True)))
        low, high = ratio.quartiles
        figures = {"ms": 1000 * timing.median, "ratio": ratio.median, "quartile_1": low, "quartile_3": high}
        row: dict[str, object] = {"bits": bits, "workload": name, "rounds": rounds}
        rows.append(row | {key: f"{value:.3f}" for key, value in figures.items()})
    return rows


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def show_table(rows: list[dict[str, str]]) -> None:
    """Means over seeds with 95 % intervals, and paired differences of the trained accuracy, as Markdown."""
    groups: dict[tuple[str, ...], dict[int, dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in SETTING), {})[int(row["seed"])] = row
    show("| " + " | ".join((*SETTING, "seeds", *FIGURES)) + " |")
    show("| " + "--- | " * len(SETTING) + "---: | " * (1 + len(FIGURES)))
    for setting, group in groups.items():
        cells = [written(mean_interval([float(row[key]) for row in group.values()])) for key in FIGURES]
        show("| " + " | ".join((*setting, str(len(group)), *cells)) + " |")
    trained = {
        setting: {seed: float(row["trained"]) for seed, row in group.items()} for setting, group in groups.items()
    }
    for (*common, arm), values in trained.items():
        reference = trained.get((*common, "ours"))
        if arm != "ours" and reference is not None:
            show(f"{' '.join(common)}: {arm} - ours = {written(paired_difference(values, reference))}")


def written(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.4g}, {estimate.high:.4g}]"
    return f"{estimate.value:.4g}{interval}"


def show(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours, brevitas and AIMET, compared.")
    parser.add_argument("--data", type=Path, default=os.environ.get("QAT_VSAM_DATA"), help="default: $QAT_VSAM_DATA")
    parser.add_argument("--bits", default="w4a4", choices=("w4a4", "w8a8"))
    parser.add_argument("--arms", nargs="+", default=["ours", "brevitas", "aimet"], choices=list(arms.ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--images", type=int, default=5000, help="to train on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--speed", action="store_true", help="time steps, and nothing else")
    parser.add_argument("--rounds", type=int, default=15, help="of --speed")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data: got nothing; expected a folder; name it, or set QAT_VSAM_DATA")
    torch.set_num_threads(1)
    protocol = Protocol(options.data, options.images, options.epochs)
    if options.speed:
        SPEED.unlink(missing_ok=True)
        for row in speed_rows(protocol, options.bits, options.arms, options.rounds):
            append(SPEED, row)
            show(str(row))
        return
    common = {"bits": options.bits, "images": options.images, "epochs": options.epochs}
    done = [[row[key] for key in (*SETTING, "seed")] for row in read(RESULTS)]
    todo = [(seed, arm) for seed in range(options.seeds) for arm in options.arms]
    todo = [(seed, arm) for seed, arm in todo if [str(value) for value in (*common.values(), arm, seed)] not in done]
    for row in accuracy_rows(protocol, options.bits, todo) if todo else ():
        append(RESULTS, common | row)
        show(str(row))
    show_table(read(RESULTS))


if __name__ == "__main__":
    try:
        main()
    except QatVsamError as error:
        raise SystemExit(str(error)) from None
