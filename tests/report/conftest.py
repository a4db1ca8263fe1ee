"""Synthetic comparison folders: numbers made up from a seed, in the layout that the recipes write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# gain over SGD in points, gradient evaluations a step, time in steps of SGD
METHODS: dict[str, tuple[str, str, float, float, float]] = {
    "sgd": ("SGD", "sgd", 0.0, 1.0, 1.0),
    "split_sgd": ("SGD, split batch", "split_sgd", 0.24, 1.0, 1.18),
    "vsam": ("VSAM", "vsam", 0.97, 1.25, 1.36),
    "vsam-variance": ("VSAM variance", "vsam", -0.2, 1.07, 1.12),
    "sam": ("SAM", "sam", 1.0, 2.0, 2.05),
}
ARMS = (
    *(("float32", method) for method in ("sgd", "vsam", "sam")),
    *(("w4a4", method) for method in METHODS),
    ("w4a4", "post_training"),
)
EPOCHS, STEPS_PER_EPOCH = 60, 9
BENCH = {"unit": "float32 SGD step", "unit_ms": 3.9, "threads": 1, "repeats": 30, "steps": 10}


def result(
    precision: str, method: str, seed: int, *, gain: float = 1.0, export: bool = False, **changes: Any
) -> dict[str, Any]:
    """One result.json; `gain` scales what SAM is worth in points."""
    draw = np.random.default_rng([seed, 7])
    base = 96.0 + draw.normal(0, 0.35) - (0.12 if precision == "w4a4" else 0.0)
    own = np.random.default_rng([seed, sum(map(ord, precision + method))])
    title = "Float32" if precision == "float32" else precision.upper()
    trained = method != "post_training"
    label, optimizer, points, cost, pace = METHODS.get(method, ("after-training quantization", None, -14.0, 0.0, 0.0))
    accuracy = round((base + points * gain + own.normal(0, 0.12)) / 100 * 1197) / 1197
    steps = EPOCHS * STEPS_PER_EPOCH if trained else 0
    content: dict[str, Any] = {
        "schema": 2,
        "name": f"digits/{precision}-{method}/seed-{seed}",
        "arm": f"{precision}-{method}",
        "label": f"{title} {label}",
        "seed": seed,
        "precision": precision,
        "target": "simulated",
        "kind": "trained" if trained else "post_training",
        "optimizer": optimizer,
        "optimizer_options": {"base": "sgd", "lr": 0.1} | ({"rho": 0.05} if optimizer in ("vsam", "sam") else {}),
        "optimizer_derived": {"class": "VSAM", "method": "Part"} if optimizer == "vsam" else None,
        "model": {"name": "digits_cnn", "parameters": 14410},
        "data": {
            "name": "digits",
            "seed": 0,
            "augment": None,
            "label_noise": 0.0,
            "options": {},
            "train": 300,
            "validation": 300,
            "test": 1197,
        },
        # what is only quantized has been trained before
        "accuracy": {
            "test": accuracy,
            "validation": accuracy,
            "float_before": None if trained else base / 100,
            "calibrated": None if trained else accuracy,
        },
        "training_loss": round(0.02 + 0.001 * own.normal(), 6) if trained else None,
        "cost": {
            "gradient_evaluations": cost * steps,
            "steps": steps,
            "gradient_evaluations_per_step": cost if trained else None,
            "forwards": int(steps * (1 if cost == 1 else 3)),
            "train_seconds": round(2.1 * pace * (1 + own.normal(0, 0.03)), 3),
            "images_per_second": 2800.0,
            "peak_memory_bytes": 31_000_000,
        },
        "size": {
            "float_bytes": 58_312,
            "packed_bytes": 58_312 if precision == "float32" else 10_912,
            "bit_operations": 1_000_000,
        },
        "exports": [],
        "epochs": EPOCHS if trained else 0,
        "command": f"qat-vsam train {precision}-{method}.yaml",
        "recipe_sha256": "0" * 64,
        "provenance": {
            "package": "0.1.0",
            "commit": "abcdef123456",
            "versions": {"torch": "2.14.1", "python": "3.11.2"},
            "processor": "A processor",
            "platform": "Linux",
            "threads": 1,
            "device": "cpu",
            "amp": None,
            "finished": "2026-12-01",
        },
    }
    if export:
        proof = {
            "argmax_agreement": 1.0,
            "passed": True,
            "worst_layer": None,
            "runtime": "onnxruntime",
            "inputs": 1197,
        }
        content["exports"] = [
            {
                "format": "onnx",
                "path": "exports/model.onnx",
                "bytes": 61_240,
                "proof": proof,
                "test_accuracy": accuracy,
                "latency_ms": 0.31 if precision == "float32" else 0.44,
            }
        ]
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    return content


def metrics(content: dict[str, Any]) -> str:
    """The metrics.jsonl that belongs to a result: curves that end at its accuracy."""
    lines: list[dict[str, Any]] = []
    draw = np.random.default_rng([content["seed"], sum(map(ord, content["arm"]))])
    cost, final = content["cost"]["gradient_evaluations_per_step"] or 0.0, content["accuracy"]["test"]
    pays = content["optimizer"] in ("sam", "vsam")
    for epoch in range(EPOCHS):
        for step in (epoch * STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH + 5):
            psf = 0.05 * np.exp(0.035 * epoch + draw.normal(0, 0.2)) if pays and step else float("nan")
            lines.append(
                {
                    "kind": "step",
                    "step": step,
                    "epoch": epoch + 1,
                    "loss": float(2.3 * np.exp(-0.08 * epoch)),
                    "lr": 0.1,
                    "gradient_evaluations": cost * (step + 1),
                    "psf_norm": float(psf),
                    "gradient_norm": 1.0,
                }
            )
        accuracy = final - 0.8 * np.exp(-0.16 * epoch) + draw.normal(0, 0.004) * (1 - epoch / EPOCHS)
        lines.append(
            {
                "kind": "epoch",
                "epoch": epoch + 1,
                "step": (epoch + 1) * STEPS_PER_EPOCH,
                "train_loss": float(2.3 * np.exp(-0.08 * epoch)),
                "validation_accuracy": float(np.clip(accuracy, 0, 1)),
                "gradient_evaluations": cost * (epoch + 1) * STEPS_PER_EPOCH,
            }
        )
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_run(root: Path, content: dict[str, Any], *, curves: bool = True) -> Path:
    """Writes one run folder below a comparison folder."""
    folder = root / content["arm"] / f"seed-{content['seed']}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    if curves and content["kind"] == "trained":
        (folder / "metrics.jsonl").write_text(metrics(content), encoding="utf-8")
    return folder


def write_comparison(root: Path, *, seeds: int = 8, arms: Any = ARMS, bench: bool = True, **options: Any) -> Path:
    """Writes a whole comparison folder."""
    for precision, method in arms:
        for seed in range(seeds):
            write_run(root, result(precision, method, seed, export=seed == 0, **options))
    if bench:
        rows = [
            {
                "arm": f"{precision}-{method}",
                "median_ms": 3.9 * METHODS[method][4],
                "ratio": METHODS[method][4],
                "ratio_low": 0.98 * METHODS[method][4],
                "ratio_high": 1.03 * METHODS[method][4],
                "n": 30,
            }
            for precision, method in arms
            if method in METHODS
        ]
        (root / "bench.json").write_text(json.dumps(BENCH | {"rows": rows}), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine arms, eight seeds, one export per arm, and a bench."""
    return write_comparison(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture
def make_comparison(tmp_path: Path) -> Callable[..., Path]:
    """Writes another comparison: `make_comparison(seeds=2, arms=[("w4a4", "sgd")], gain=0.0)`."""
    return lambda **options: write_comparison(tmp_path / "runs" / "digits", **options)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes one run: `make_run("w4a4", "vsam", 0, label="mine")`."""

    def make(precision: str, method: str, seed: int, **changes: Any) -> Path:
        return write_run(tmp_path / "single", result(precision, method, seed, **changes))

    return make
