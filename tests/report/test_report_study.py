"""A study tells its answer in a few rows and one sentence, and what it cannot say before and after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from qat_vsam.report import answer_lines, load_study
from qat_vsam.report.formats import TIMES
from qat_vsam.report.page.sheets import arms_frame, runs_frame

Points = Mapping[str, float]


@pytest.fixture
def study_of(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """Writes runs whose mean accuracies are exact: `study_of({"w4a4-sgd": 95.0, ...}, seeds=8)`."""

    def write(points: Points, seeds: int = 8, spread: float = 0.05, **changes: object) -> Path:
        shared = np.random.default_rng(1).normal(0, 0.3, seeds)
        for number, (arm, mean) in enumerate(points.items()):
            own = shared - shared.mean() + spread * _centred(number, seeds)
            precision, method = arm.split("-", 1)
            for seed in range(seeds):
                accuracy = {"test": (mean + own[seed]) / 100}
                folder = make_run(precision, method, seed, accuracy=accuracy, **changes)
        return folder.parent.parent

    return write


def _centred(number: int, seeds: int) -> np.ndarray:
    values = np.random.default_rng(number).normal(0, 1, seeds)
    return values - values.mean()


FULL = {
    "float32-sgd": 95.5,
    "float32-sam": 96.5,
    "w2a2-sgd": 90.0,
    "w2a2-sam": 92.0,
    "w2a2-vsam": 91.9,
    "w4a4-sgd": 95.1,
    "w4a4-sam": 96.2,
    "w4a4-vsam": 96.24,
    "w4a4-vsam-variance": 97.0,
}


def test_the_answer_is_five_rows_about_the_most_bits_that_have_all_three(study_of: Callable[..., Path]) -> None:
    study = load_study(study_of(FULL))
    assert [row.arm.name for row in study.answer] == ["float32-sgd", "float32-sam", "w4a4-sgd", "w4a4-sam", "w4a4-vsam"]
    assert [row.label for row in study.answer] == [row.arm.label for row in study.answer]
    vsam = study.answer[-1]
    assert vsam.cost == f"1.25 {TIMES} SGD's gradients"
    assert vsam.verdict == "equivalent to SAM"
    assert vsam.details[0].startswith("+0.04 [")
    assert vsam.details[0].endswith("; counts as equal within ±0.22")
    assert vsam.details[1].startswith("better than SGD: +1.14 [")
    # never the best one, which would be chosen on the test set
    accuracies = "W4A4: VSAM 96.24 %, SAM 96.20 %, SGD 95.10 %. VSAM is equivalent to SAM: a loss of up to 0."
    assert study.sentence.startswith(accuracies)
    assert "; within 0.22 points it counts as equal. It is better than SGD: a gain of 1." in study.sentence
    assert "It costs 1.25 times float32 SGD's gradients. " in study.sentence


def test_other_vsams_of_the_bits_and_the_vsam_of_other_bits_follow_in_short(study_of: Callable[..., Path]) -> None:
    sentence = load_study(study_of(FULL)).sentence
    assert " gradients. VSAM variance: better than SAM (+0.80 [" in sentence
    assert sentence.endswith("]). W2A2 VSAM: equivalent to SAM.")


def test_time_stands_beside_the_gradients_where_it_was_measured(study_of: Callable[..., Path]) -> None:
    root = study_of(FULL)
    rows = '[{"arm": "w4a4-vsam", "ratio": 1.31, "ratio_low": 1.3, "ratio_high": 1.33, "n": 30}]'
    (root / "bench.json").write_text('{"unit": "float32 SGD step", "rows": ' + rows + "}")
    study = load_study(root)
    assert " It costs 1.25 times float32 SGD's gradients and 1.31 times its time. " in study.sentence
    assert study.answer[-1].cost == f"1.25 {TIMES} SGD's gradients, 1.31 {TIMES} its time"
    assert study.answer[0].cost == f"1.00 {TIMES} SGD's gradients, time not measured"


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({"w4a4-sgd": 95.0, "w4a4-sam": 96.0, "w4a4-vsam": 97.0}, ". VSAM is better than SAM: a gain of 0."),
        ({"w4a4-sgd": 95.0, "w4a4-sam": 96.0, "w4a4-vsam": 95.2}, ". VSAM is worse than SAM: a loss of 0."),
        (
            {"w4a4-sgd": 95.0, "w4a4-sam": 95.0, "w4a4-vsam": 95.0},
            ". VSAM is undecided against SAM: a loss of up to 0.",
        ),
        (
            {"w4a4-sgd": 95.0, "w4a4-sam": 95.0, "w4a4-vsam": 95.0},
            " SAM is undecided against SGD: a loss of up to 0.",
        ),
        (
            {"w4a4-sgd": 95.0, "w4a4-vsam": 96.0},
            "W4A4: VSAM 96.00 %, SGD 95.00 %. VSAM is better than SGD: a gain of 0.",
        ),
        ({"w4a4-sgd": 95.0, "w4a4-sam": 96.0}, "W4A4: SAM 96.00 %, SGD 95.00 %. SAM is better than SGD: a gain of 0."),
        ({"w4a4-sgd": 95.0}, "W4A4: SGD 95.00 %. It costs 1.00 times float32 SGD's gradients."),
        ({"w4a4-vsam": 95.0}, "W4A4: VSAM 95.00 %."),
    ],
)
def test_the_sentence_says_no_more_than_the_tests_allow(
    points: Points, said: str, study_of: Callable[..., Path]
) -> None:
    assert said in load_study(study_of(points)).sentence


def test_float32_answers_where_nothing_is_quantized(study_of: Callable[..., Path]) -> None:
    study = load_study(study_of({"float32-sgd": 95.0, "float32-sam": 96.0, "float32-vsam": 96.0}))
    assert [row.arm.name for row in study.answer] == ["float32-sgd", "float32-sam", "float32-vsam"]
    assert study.sentence.startswith("Float32: VSAM 96.00 %")


def test_two_seeds_are_warned_of_before_anything_else(study_of: Callable[..., Path]) -> None:
    root = study_of({"w4a4-sgd": 95.0, "w4a4-sam": 96.0, "w4a4-vsam": 96.0}, seeds=2)
    study = load_study(root)
    assert study.warnings[0] == "2 seeds: no difference can be established."
    assert answer_lines(study)[0] == study.warnings[0]
    assert {arm.verdict.word for arm in study.arms if arm.verdict} == {"undecided"}
    assert "undecided against SAM: 2 seeds, by which no difference can be established." in study.sentence
    assert study.sentence.count("2 seeds") == 1
    assert load_study(root / "w4a4-sgd" / "seed-0").warnings[0] == "1 seed: no difference can be established."


def test_eight_seeds_are_no_reason_for_a_warning(study_of: Callable[..., Path]) -> None:
    assert load_study(study_of(FULL)).warnings == ()


def test_the_terminal_gets_the_question_the_rows_and_the_sentence(study_of: Callable[..., Path]) -> None:
    root = study_of(FULL)
    lines = answer_lines(load_study(root, question="Is VSAM as good as SAM?"))
    assert lines[0] == "Is VSAM as good as SAM?"
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "Float32 SGD",
        "Float32 SAM",
        "W4A4 SGD",
        "W4A4 SAM",
        "W4A4 VSAM",
    ]
    assert len({line.index("%") for line in lines[1:6]}) == 1
    assert lines[6:] == [load_study(root).terms, load_study(root).sentence]


def test_what_the_comparison_says_of_itself_is_taken_over(study_of: Callable[..., Path]) -> None:
    root = study_of({"w4a4-sgd": 95.0, "w4a4-sam": 96.0, "w4a4-vsam": 95.7})
    (root / "comparison.yaml").write_text(
        "name: mine\ntitle: My title\ndescription: Why.\nquestion: Is it so?\nmargin: 0.5\nfitted: true\n"
        "notes: [A note.]\narms: {w4a4-sgd: {}, w4a4-sam: {}, w4a4-vsam: {}}\n"
    )
    study = load_study(root)
    assert (study.title, study.description, study.question) == ("My title", "Why.", "Is it so?")
    assert (study.fitted, study.notes, study.caveats[0]) == (True, ("A note.",), "A note.")
    assert study.answer[-1].arm.verdict.word == "equivalent"
    assert study.answer[-1].arm.verdict.margin == 0.5
    assert load_study(root, margin=0.1, title="Other").answer[-1].arm.verdict.word == "worse"
    assert load_study(root, title="Other").title == "Other"
    assert study.command == "qat-vsam compare comparison.yaml"


@pytest.mark.parametrize(
    ("drawn", "said"),
    [(False, "They cover the choice of seed alone"), (True, "the choice of seed and the draw of the training data")],
)
def test_the_page_says_what_its_intervals_cover(drawn: bool, said: str, make_run: Callable[..., Path]) -> None:
    for seed in range(3):
        for method in ("sgd", "sam"):
            root = make_run("w4a4", method, seed, data={"seed": seed if drawn else 0}).parent.parent
    assert any(said in line for line in load_study(root).caveats)


def test_the_options_that_ran_and_what_they_made_are_told(study_of: Callable[..., Path]) -> None:
    options = dict(load_study(study_of({"w4a4-vsam": 95.0})).options)
    assert options == {"W4A4 VSAM": "base sgd, lr 0.1, rho 0.05; which made class VSAM, method Part"}


def test_provenance_stands_in_the_protocol(comparison: Path) -> None:
    study = load_study(comparison)
    lines = dict(study.protocol)
    assert lines["Code"] == "commit abcdef123456"
    assert lines["Versions"] == "qat-vsam 0.1.0, python 3.11.2, torch 2.14.1"
    assert lines["Machine"] == "A processor, 1 thread"
    assert lines["Finished"] == study.provenance.date == "2026-12-01"
    assert "units of a float32 SGD step, which takes 3.9 ms" in lines["Step times"]


def test_the_frames_hold_a_row_per_run_and_per_arm(comparison: Path) -> None:
    study = load_study(comparison)
    runs, arms = runs_frame(study.results), arms_frame(study.arms).set_index("arm")
    assert len(runs) == 72
    assert set(runs[runs["export_onnx_latency_ms"].notna()]["seed"]) == {0}
    assert {"commit", "version_torch", "optimizer_options", "training_loss", "data_seed"} <= set(runs.columns)
    for arm, rows in runs.groupby("arm"):
        assert 100 * rows["test_accuracy"].mean() == pytest.approx(arms.loc[arm, "test_accuracy_percent"])
    vsam = next(arm for arm in study.arms if arm.name == "w4a4-vsam")
    row = arms.loc["w4a4-vsam"]
    assert row["verdict"] == vsam.verdict.word
    assert row["to_sam_points_low"] == vsam.to_sam.low
    assert row["run_time_high"] == vsam.run_time.high
    assert row["gradients_to_sam_accuracy"] == pytest.approx(vsam.reach.gradients, nan_ok=True)
    assert row["file_bytes_onnx"] == 61_240
