"""What the exported files of an arm are: how large, how fast, and whether they compute what was trained."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Export:
    """The exports of one arm in one format.

    Attributes:
        format: "onnx", "packed", ...
        n: how many runs of the arm wrote it.
        agreement: the least argmax agreement of any of them with the trained model, in [0, 1].
        passed: True where every proof passed, None where there is none.
        equal: True where every answer and every known code of every file is the trained model's; a proof may pass
            without it, for it allows the rounding of a float sum to change one code or answer in a thousand.
        worst_layer: the layer that a failed proof named.
        bytes: size of the first file.
        accuracy, trained_accuracy: mean test accuracy in % of the files, and of the models behind them.
        latency_ms: median over the files.
    """

    format: str
    n: int
    agreement: float | None
    passed: bool | None
    equal: bool | None
    worst_layer: str | None
    bytes: int | None
    accuracy: float | None
    trained_accuracy: float | None
    latency_ms: float | None

    @property
    def word(self) -> str:
        """ "equal", "within the allowance", "DIFFERS" or "not proven"."""
        if self.passed is None:
            return "not proven"
        return "DIFFERS" if not self.passed else "equal" if self.equal else "within the allowance"


def summarise_exports(rows: pd.DataFrame) -> tuple[Export, ...]:
    """One Export per format, from the rows of `Results.exports` that belong to one arm."""
    summaries = []
    for name, exports in rows.groupby("format", sort=True):
        passed = exports["passed"].dropna()
        failed = exports[exports["passed"].eq(False)]["worst_layer"].dropna()
        agreement = pd.to_numeric(exports["argmax_agreement"]).dropna()
        latency = pd.to_numeric(exports["latency_ms"]).dropna()
        sizes = exports["bytes"].dropna()
        measured = exports[exports["test_accuracy"].notna()]
        accuracy, trained = known_mean(measured["test_accuracy"]), known_mean(measured["trained_accuracy"])
        summaries.append(
            Export(
                format=str(name),
                n=len(exports),
                agreement=None if agreement.empty else float(agreement.min()),
                passed=None if passed.empty else bool(passed.all()),
                equal=None if passed.empty else bool(agreement.min() == 1 and exports["codes_equal"].all()),
                worst_layer=None if failed.empty else str(failed.iloc[0]),
                bytes=None if sizes.empty else int(sizes.iloc[0]),
                accuracy=None if accuracy is None else 100 * accuracy,
                trained_accuracy=None if accuracy is None or trained is None else 100 * trained,
                latency_ms=None if latency.empty else float(latency.median()),
            )
        )
    return tuple(summaries)


def known_mean(values: pd.Series) -> float | None:
    """The mean of the values that are there, None where none is."""
    known = pd.to_numeric(values).dropna()
    return None if known.empty else float(known.mean())
