"""A study as the page shows it: the question, the answer in a few rows and one sentence, and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qat_vsam.report.answer import AnswerRow, answer_rows, answer_sentence
from qat_vsam.report.arm import Arm
from qat_vsam.report.arms import summarise
from qat_vsam.report.choices import Choice, fairness, trials_frame
from qat_vsam.report.formats import interval
from qat_vsam.report.protocol import caveats, option_lines, protocol, warnings
from qat_vsam.report.provenance import Provenance
from qat_vsam.report.results import Results, load_results
from qat_vsam.report.wording import terms

__all__ = ["AnswerRow", "Study", "answer_lines", "load_study"]


@dataclass(frozen=True)
class Study:
    """All that a report says; it draws and writes this and nothing else.

    Attributes:
        question: one sentence that the study answers; "" where it was not put.
        fitted: whether a default was fitted on this study's tasks; None where nobody says.
        command: what repeats it.
        notes: caveats of the author; they come first among `caveats`.
        arms: the rows of the table.
        answer: at most five of them, which tell the answer.
        sentence: the answer in words.
        protocol: pairs of a heading and a line: how the numbers were made.
        options: arm's label and all options of its optimizer.
        caveats: what the numbers cannot say.
        warnings: what must be read before anything else; too few seeds come first.
        choices: how settings were chosen.
        fairness: whether the arms had the same chances in that; "" without trials.
        trials: a row per trial.
        epochs, steps: the curves, with the columns arm and seed.
        provenance: commits, versions, machines and date of the runs.
        results: the runs themselves, and their exports.
    """

    title: str
    description: str
    question: str
    fitted: bool | None
    command: str
    notes: tuple[str, ...]
    arms: tuple[Arm, ...]
    answer: tuple[AnswerRow, ...]
    sentence: str
    protocol: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]
    warnings: tuple[str, ...]
    choices: tuple[Choice, ...]
    fairness: str
    trials: pd.DataFrame
    provenance: Provenance
    results: Results

    @property
    def terms(self) -> str:
        """The terms of the answer's rows, spelled out."""
        return terms([row.arm for row in self.answer])

    @property
    def epochs(self) -> pd.DataFrame:
        """The "epoch" lines of all runs."""
        return self.results.epochs

    @property
    def steps(self) -> pd.DataFrame:
        """The "step" lines of all runs."""
        return self.results.steps


def load_study(
    runs: Path | Sequence[Path],
    *,
    title: str | None = None,
    description: str | None = None,
    question: str | None = None,
    notes: Sequence[str] | None = None,
    margin: float | None = None,
    command: str = "",
    bench: Path | None = None,
) -> Study:
    """Read the runs, compute, and put the answer into words.

    Args:
        runs: a study folder, or single run folders; see `load_results`.
        title, description, question, notes, margin: in place of what the study's comparison.yaml says.
        command: what repeats the study; "" names the comparison in its folder, or the one run's own command.
        bench: a bench.json with step times; None: the one in the folder, if there is one.

    Raises:
        InputError: there is nothing to report, or a file is broken.
    """
    results = load_results(runs, bench)
    said = results.comparison
    arms = summarise(results, said.margin if margin is None else margin)
    notes = said.notes if notes is None else tuple(notes)
    if not command:
        commands = [text for text in dict.fromkeys(results.runs["command"].dropna()) if text]
        own = commands[0] if len(commands) == 1 else ""
        command = said.command or ("qat-vsam compare comparison.yaml" if said.arms else own)
    trained = [arm.name for arm in arms if arm.trained]
    return Study(
        title=(said.title or said.name or "Report") if title is None else title,
        description=said.description if description is None else description,
        question=said.question if question is None else question,
        fitted=said.fitted,
        command=command,
        notes=notes,
        arms=tuple(arms),
        answer=answer_rows(arms),
        sentence=answer_sentence(arms),
        protocol=tuple(protocol(results, arms, command)),
        options=tuple(option_lines(results, arms)),
        caveats=tuple(caveats(results, arms, notes)),
        warnings=tuple(warnings(results, arms)),
        choices=results.choices,
        fairness=fairness(results.choices, trained),
        trials=trials_frame(results.trials, results.choices),
        provenance=results.provenance,
        results=results,
    )


def answer_lines(study: Study) -> list[str]:
    """The answer for a terminal: warnings, the question, the rows in columns, their terms, and the sentence."""
    rows = []
    for row in study.answer:
        value, ends = row.accuracy.value, "" if row.accuracy.low is None else " " + interval(row.accuracy, plus=False)
        accuracy = "" if value is None else f"{value:.2f} %{ends}"
        rows.append((row.label, accuracy, row.cost, row.line))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    question = [study.question] if study.question else []
    return [*study.warnings, *question, *table, *([study.terms] if study.terms else []), study.sentence]
