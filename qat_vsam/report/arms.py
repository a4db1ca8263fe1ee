"""What one arm of a comparison achieved and cost, next to the arms that it must be measured against.

An arm is compared only within what it shares: by seed, with SGD, SAM and the split control of the same bit
width and target, and with full-precision SAM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from qat_vsam.errors import InputError, explain
from qat_vsam.report.arm import Arm
from qat_vsam.report.costs import Cost, Unit, cost_of, final_accuracy, reach_of, unit_of
from qat_vsam.report.exports import known_mean, summarise_exports
from qat_vsam.report.names import FLOAT, precision_label, without_precision
from qat_vsam.report.results import Results
from qat_vsam.report.roles import method_of, with_roles
from qat_vsam.report.statistics import (
    NOT_ESTABLISHED,
    Estimate,
    accuracy_interval,
    mean_interval,
    paired_difference,
    ratio_of_gains,
)
from qat_vsam.report.verdicts import REFERENCES, Judgement, Scores, judge

# the order of the rows inside a precision: what costs nothing first, SAM last
_RANK = ("float_reference", "post_training", "sgd", "split_sgd", "vsam", "other", "sam")
PACKED = "packed"


@dataclass(frozen=True)
class _Study:
    """What every row is worked out from."""

    results: Results
    unit: Unit | None
    judgement: Judgement
    accuracy: Mapping[str, dict[int, float]]
    epochs: Mapping[str, pd.DataFrame]
    exports: Mapping[str, pd.DataFrame]
    # (group, role) -> the first arm of that role in the group
    peers: Mapping[tuple[str, str], str]
    # group -> what SAM's mean validation accuracy ended at
    targets: Mapping[str, float | None]


def summarise(results: Results, margin: float | None = None) -> list[Arm]:
    """One Arm per row of the table: float first, then the quantized groups; untrained rows first in each.

    Rows for the float net before training and for after-training quantization alone are added from what the
    trained runs noted of them, where the comparison has no arm of its own for it. What a quantized net of random
    weights answers after calibration is no such row, for nobody would quantize it.

    Args:
        results: see `load_results`.
        margin: within which an arm is equivalent to SAM, in points; None: a fifth of SAM's gain.

    Raises:
        InputError: no run was trained, or began from a trained net.
    """
    frame = with_roles(results.runs, results.comparison.roles)
    frame = frame[~frame["arm"].isin(random_nets(results.runs))]
    if frame.empty:
        raise InputError(
            explain("runs", "nets of random weights only", "a trained net", "train, or give the model a checkpoint")
        )
    rows_of = by_arm(frame)
    accuracy = {arm: accuracy_by_seed(rows) for arm, rows in rows_of.items()}
    scores = [
        Scores(name, str(rows["group"].iloc[0]), str(rows["role"].iloc[0]), accuracy[name])
        for name, rows in rows_of.items()
        if rows["kind"].iloc[0] == "trained"
    ]
    peers = {(arm.group, arm.role): arm.name for arm in reversed(scores)}
    epochs = by_arm(results.epochs)
    sams = {group: name for (group, role), name in peers.items() if role == "sam"}
    study = _Study(
        results=results,
        unit=unit_of(frame),
        judgement=judge(scores, margin),
        accuracy=accuracy,
        epochs=epochs,
        exports=by_arm(results.exports),
        peers=peers,
        targets={group: final_accuracy(epochs[name]) for group, name in sams.items() if name in epochs},
    )
    arms = [_summarise_arm(study, name, rows) for name, rows in rows_of.items()]
    arms += _untrained_rows(frame, {(arm.group, arm.role) for arm in arms})
    best = {arm.name for group in dict.fromkeys(arm.group for arm in arms) if (arm := _best(arms, group)) is not None}
    return [replace(arm, best=arm.name in best) for arm in sorted(arms, key=_order)]


def by_arm(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each arm, in the order of the frame."""
    return {str(arm): own for arm, own in rows.groupby("arm", sort=False)}


def random_nets(runs: pd.DataFrame) -> list[str]:
    """Arms that quantize a net which nobody trained: they had no checkpoint and trained nothing themselves."""
    untrained = runs[(runs["kind"] == "post_training") & runs["float_before"].isna()]
    return [str(arm) for arm in dict.fromkeys(untrained["arm"])]


def accuracy_by_seed(rows: pd.DataFrame) -> dict[int, float]:
    """Test accuracy in % of each seed."""
    pairs = zip(rows["seed"], rows["test_accuracy"], strict=True)
    return {int(seed): 100 * float(value) for seed, value in pairs}


def _order(arm: Arm) -> tuple[object, ...]:
    return (
        arm.precision != FLOAT,
        by_bits(arm.precision),
        arm.group,
        _RANK.index(arm.role),
        arm.gradients or 0.0,
        arm.name,
    )


def by_bits(precision: str) -> list[int]:
    """A key that sorts bit widths from many bits to few.

    Example:
        >>> sorted(["w2a2", "w4a4", "w8a8", "w4a8"], key=by_bits)
        ['w8a8', 'w4a8', 'w4a4', 'w2a2']
    """
    return [-int(number) for number in re.findall(r"\d+", precision)]


def _best(arms: Sequence[Arm], group: str) -> Arm | None:
    own = [arm for arm in arms if arm.group == group and arm.trained and arm.accuracy.value is not None]
    # of equals, up to the rounding of a mean, the one that costs less
    return max(own, key=lambda arm: (round(arm.accuracy.value or 0.0, 9), -(arm.gradients or 0.0)), default=None)


def _summarise_arm(study: _Study, name: str, rows: pd.DataFrame) -> Arm:
    first = rows.iloc[0]
    group, precision = str(first["group"]), str(first["precision"])
    own = study.accuracy[name]
    trained = first["kind"] == "trained"
    peers = {role: study.peers.get((group, role)) for role in REFERENCES}
    float_sam = study.peers.get((precision_label(FLOAT), "sam"))

    def difference(peer: str | None) -> Estimate | None:
        return None if peer in (None, name) else paired_difference(own, study.accuracy[str(peer)])

    cost = cost_of(rows, study.unit, study.results.bench) if trained else Cost()
    judgement = study.judgement
    exports = summarise_exports(study.exports.get(name, study.results.exports.head(0)))
    file_bytes = {export.format: export.bytes for export in exports if export.bytes is not None}
    floats = known_mean(rows["float_bytes"])
    loss = [float(value) for value in pd.to_numeric(rows["training_loss"]).dropna()]
    arm = Arm(
        name=name,
        label=str(first["label"]),
        method=method_of(name, precision),
        method_label=without_precision(str(first["label"]), precision),
        precision=precision,
        group=group,
        role=str(first["role"]),
        seeds=tuple(sorted(own)),
        draws=max(1, int(rows["data_seed"].nunique())),
        accuracy=accuracy_interval([own[seed] for seed in sorted(own)]),
        training_loss=mean_interval(loss) if loss else None,
        to_float_sam=difference(float_sam),
        to_sam=difference(peers["sam"]),
        to_sgd=difference(peers["sgd"]) if trained else None,
        to_split=difference(peers["split_sgd"]) if trained else None,
        verdict=judgement.verdicts.get(name),
        sgd_word=judgement.sgd_words.get(name),
        p_sgd=judgement.p_sgd.get(name),
        claims=judgement.claims,
        gradients=cost.gradients,
        run_gradients=cost.run_gradients,
        step_time=cost.step_time,
        run_time=cost.run_time,
        file_bytes=file_bytes,
        size_ratio=file_bytes[PACKED] / floats if PACKED in file_bytes and floats else None,
        exports=exports,
    )
    if not trained or peers["sam"] is None:
        return arm
    epochs = study.epochs.get(name, study.results.epochs.head(0))
    arm = replace(arm, reach=reach_of(epochs, study.targets.get(group), study.unit, cost.step_time))
    return _with_shares(arm, study, peers["sgd"], peers["sam"], peers["split_sgd"])


def _with_shares(arm: Arm, study: _Study, sgd: str | None, sam: str, split: str | None) -> Arm:
    """The arm with the shares of SAM's gain that it keeps; for a reference they are a matter of words."""
    accuracy, judgement = study.accuracy, study.judgement
    own, gained, beyond = accuracy[arm.name], arm.group in judgement.gains, arm.group in judgement.split_gains

    def share(over: str | None, base: str | None, established: bool) -> Estimate | None:
        """Of the gain of SAM over `base`, what the arm gains over `over`."""
        if over is None or base is None or arm.name in (over, base, sam):
            return None
        if not established:
            return Estimate(None, n=len(own), note=NOT_ESTABLISHED)
        return ratio_of_gains(own, accuracy[over], accuracy[sam], accuracy[base])

    return replace(
        arm,
        share=share(sgd, sgd, gained),
        share_over_split=share(split, split, beyond),
        share_over_own_controls=share(split, sgd, gained),
    )


def _untrained_rows(frame: pd.DataFrame, present: set[tuple[str, str]]) -> list[Arm]:
    rows: list[Arm] = []
    # a float accuracy from before is known just where the run began from a trained net
    began_trained = frame[frame["float_before"].notna()]
    known = began_trained
    if ((frame["kind"] == "trained") & (frame["precision"] == FLOAT)).any():
        # a net that is quantized after this comparison's own float training stands there already
        known = known[known["kind"] == "trained"]
    if not known.empty and not any(role == "float_reference" for _, role in present):
        rows.append(_untrained(known, "float_before", FLOAT, precision_label(FLOAT), "float_reference"))
    known = began_trained[
        began_trained["calibrated"].notna()
        & (began_trained["kind"] == "trained")
        & (began_trained["precision"] != FLOAT)
    ]
    for group, members in known.groupby("group", sort=True):
        if (group, "post_training") not in present:
            precision = str(members["precision"].iloc[0])
            rows.append(_untrained(members, "calibrated", precision, str(group), "post_training"))
    return rows


_UNTRAINED = {
    "float_reference": ("float-before", "before training"),
    "post_training": ("post-training", "after-training quantization"),
}


def _untrained(rows: pd.DataFrame, column: str, precision: str, group: str, role: str) -> Arm:
    # arms of one seed start from the same net, so their notes agree up to the order of sums
    by_seed = rows.groupby("seed")[column].mean()
    method, label = _UNTRAINED[role]
    return Arm(
        name=f"{precision}-{method}",
        label=f"{group} {label}",
        method=method,
        method_label=label,
        precision=precision,
        group=group,
        role=role,
        seeds=tuple(int(seed) for seed in by_seed.index),
        accuracy=accuracy_interval([100 * float(value) for value in by_seed]),
    )
