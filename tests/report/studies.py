"""Studies made by hand for tests of pages: numbers drawn from a seed, estimates by the package's own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from qat_vsam.report.answer import answer_rows, answer_sentence
from qat_vsam.report.arm import Arm, Reach, Verdict
from qat_vsam.report.comparison import ComparisonFile
from qat_vsam.report.provenance import Provenance
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import Estimate, mean_interval, paired_difference
from qat_vsam.report.study import Study

# label, role, points above SGD, gradient evaluations a step, time of a step
METHODS: dict[str, tuple[str, str, float, float, float]] = {
    "sgd": ("SGD", "sgd", 0.0, 1.0, 1.0),
    "split": ("SGD, split batch", "split_sgd", 0.2, 1.0, 1.12),
    "vsam": ("VSAM", "vsam", 0.95, 1.15, 1.31),
    "looksam": ("LookSAM, every 5th step", "other", 0.3, 1.2, 1.35),
    "esam": ("ESAM", "other", 0.7, 1.5, 1.62),
    "sam": ("SAM", "sam", 1.0, 2.0, 2.04),
}
PRECISIONS = {"float32": ("Float32", 0.0, 1.0), "w4a4": ("W4A4", -0.1, 0.71), "w2a2": ("W2A2", -1.6, 0.73)}
MARGIN = 0.2
IMAGES = {"train_images": 300, "test_images": 997}
CLAIMS = 40
EPOCHS = 40


def make_study(
    *,
    seeds: int = 8,
    precisions: Sequence[str] = ("float32", "w4a4", "w2a2"),
    methods: Sequence[str] = tuple(METHODS),
    copies: int = 1,
    bench: bool = True,
    epochs: int = EPOCHS,
    tuned: bool = True,
    **changes: Any,
) -> Study:
    """A study of every method at every precision.

    Args:
        seeds: of each arm; one seed has no intervals.
        precisions, methods: keys of `PRECISIONS` and `METHODS`.
        copies: how many arms each method has, told apart by a number.
        bench: whether times are known.
        epochs: of the curves; 0 for none.
        tuned: whether there are trials.
        changes: fields of the study to replace.
    """
    accuracy = {
        (precision, method, copy): _accuracies(precision, method, copy, seeds)
        for precision in precisions
        for copy in range(copies)
        for method in methods
    }
    arms = [_arm(key, accuracy, bench) for key in accuracy]
    best = {group: max((a for a in arms if a.group == group), key=_value) for group in {a.group for a in arms}}
    arms = [replace(arm, best=arm is best[arm.group]) for arm in arms]
    provenance = Provenance(
        "2026-12-01", ("1e570b6aaaaa",), ("0.1.0",), {"torch": ("2.14.1",)}, ("Intel Xeon, 1 thread",)
    )
    results = Results(
        runs=_runs(arms, accuracy),
        exports=pd.DataFrame(columns=["arm", "seed", "format"]),
        steps=pd.DataFrame(columns=["arm", "seed", "step"]),
        epochs=_epochs(arms, seeds, epochs),
        trials=pd.DataFrame(),
        options={arm.name: {"lr": 0.4, **({} if arm.role == "sgd" else {"rho": 0.05})} for arm in arms},
        provenance=provenance,
        marks=(),
        bench=None,
        unfinished=(),
        comparison=ComparisonFile(),
        choices=(),
    )
    study = Study(
        title="Digits, 300 images",
        question="Does VSAM give at 4 bits what SAM gives, for less?",
        description="Nets of 14,458 parameters on 300 images of digits, from random weights.",
        fitted=False,
        command="qat-vsam compare digits --study reports/digits",
        notes=(),
        arms=tuple(arms),
        answer=answer_rows(arms),
        sentence=answer_sentence(arms),
        protocol=(
            ("Model", "digits_cnn, 14 458 parameters"),
            ("Data", "digits, 300 training images"),
            ("Repeat with", "qat-vsam compare digits --study reports/digits"),
        ),
        options=(),
        caveats=("One test image is 0.1 points of accuracy.",),
        warnings=(),
        choices=(),
        fairness="Each arm had 4 settings to choose from." if tuned else "",
        trials=_trials(arms if tuned else []),
        provenance=provenance,
        results=results,
    )
    return replace(study, **changes)


def _value(arm: Arm) -> float:
    return arm.accuracy.value or 0.0


def _accuracies(precision: str, method: str, copy: int, seeds: int) -> dict[int, float]:
    own = np.random.default_rng([len(precision) + ord(precision[1]), sum(map(ord, method)), copy])
    level = 95.1 + PRECISIONS[precision][1] + METHODS[method][2] * (1.6 if precision == "w2a2" else 1.0)
    shift = own.normal(0, 0.15) if copy else 0.0
    common = [np.random.default_rng([seed, 7]).normal(0, 0.3) for seed in range(seeds)]
    return {seed: level + shift + common[seed] + own.normal(0, 0.12) for seed in range(seeds)}


def _arm(key: tuple[str, str, int], accuracy: dict[tuple[str, str, int], dict[int, float]], bench: bool) -> Arm:
    precision, method, copy = key
    group, _, pace = PRECISIONS[precision]
    words, role, _, gradients, time = METHODS[method]
    role = role if copy == 0 else "other"
    suffix = f" {copy}" if copy else ""
    own = accuracy[key]

    def to(peer: str, bits: str = precision) -> Estimate | None:
        values = accuracy.get((bits, peer, 0))
        return None if values is None or values is own else paired_difference(own, values)

    def timed(value: float) -> Estimate | None:
        return Estimate(value, value * 0.96, value * 1.05, 30) if bench else None

    to_sam, to_sgd = to("sam"), to("sgd")
    value = 0.0 if to_sam is None or to_sam.value is None else to_sam.value
    return Arm(
        name=f"{precision}-{method}{suffix}".replace(" ", "-"),
        label=f"{group if group != 'Float32' else 'float32'} {words}{suffix}",
        method=method + suffix,
        method_label=words + suffix,
        precision=precision,
        group=group,
        role=role,
        seeds=tuple(own),
        draws=len(own),
        accuracy=mean_interval(list(own.values())),
        training_loss=mean_interval([0.004 * (1 + 0.1 * seed) for seed in own]),
        to_float_sam=to("sam", "float32"),
        to_sam=to_sam,
        to_sgd=to_sgd,
        to_split=to("split"),
        verdict=None if to_sam is None else _verdict(to_sam),
        sgd_word=None if to_sgd is None else "better" if to_sgd.above_zero else "not established",
        claims=CLAIMS,
        p_sgd=None if to_sgd is None or to_sgd.p_value is None else min(1.0, 5 * to_sgd.p_value),
        gradients=gradients,
        run_gradients=gradients,
        step_time=timed(time * pace),
        run_time=timed(time * pace),
        reach=Reach(0.8 * gradients, 0.8 * time * pace) if value > -0.2 else Reach(None, None, "not reached"),
        file_bytes={"packed": 34_600, "onnx": 61_240} if precision != "float32" else {"packed": 58_496},
        size_ratio=0.59 if precision != "float32" else 1.0,
    )


def _verdict(difference: Estimate) -> Verdict:
    low, high = difference.low, difference.high
    if low is None or high is None:
        return Verdict("undecided", None, None, "1 seed: no difference can be established")
    inside = low > -MARGIN and high < MARGIN
    word = "equivalent" if inside else "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Verdict(word, MARGIN, 0.0004 if inside else 0.02)


def _runs(arms: Sequence[Arm], accuracy: dict[tuple[str, str, int], dict[int, float]]) -> pd.DataFrame:
    rows = [
        {"arm": arm.name, "label": arm.label, "seed": seed, "test_accuracy": value / 100, **IMAGES}
        for arm, values in zip(arms, accuracy.values(), strict=True)
        for seed, value in values.items()
    ]
    return pd.DataFrame(rows)


def _trials(arms: Sequence[Arm]) -> pd.DataFrame:
    radii = (0.05, 0.1, 0.2, 0.4)
    rows = []
    for number, arm in enumerate(arm for arm in arms if arm.role in ("sam", "other")):
        picked = number % len(radii)
        for place, radius in enumerate(radii):
            rows.append(
                {
                    "arm": arm.name,
                    "optimizer.rho": radius,
                    "seed": 1000,
                    "validation_accuracy": 0.95 - 0.004 * abs(place - picked),
                    "diverged": False,
                    "chosen": place == picked,
                    "at_edge": "optimizer.rho" if place == picked and picked in (0, 3) else "",
                }
            )
    columns = ["arm", "optimizer.rho", "seed", "validation_accuracy", "diverged", "chosen", "at_edge"]
    return pd.DataFrame(rows, columns=columns)


def _epochs(arms: Sequence[Arm], seeds: int, epochs: int) -> pd.DataFrame:
    numbers = np.arange(1, epochs + 1)
    frames = []
    for arm in arms if epochs else ():
        for seed in range(seeds):
            draw = np.random.default_rng([seed, sum(map(ord, arm.name))])
            noise = draw.normal(0, 0.003, epochs)
            values = _value(arm) / 100 - 0.6 * np.exp(-0.2 * numbers) + noise
            frames.append(
                pd.DataFrame(
                    {
                        "arm": arm.name,
                        "seed": seed,
                        "epoch": numbers,
                        "validation_accuracy": values.clip(0, 1),
                        "train_loss": 2.3 * np.exp(-0.15 * numbers * (0.8 if arm.role == "sam" else 1.0)),
                    }
                )
            )
    columns = ["arm", "seed", "epoch", "validation_accuracy", "train_loss"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
