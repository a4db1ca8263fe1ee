"""The figures: honest about what they show, named without overlap, whole in files of their own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from report.studies import EPOCHS, MARGIN, make_study

from qat_vsam.report.arm import Verdict
from qat_vsam.report.page import write_report
from qat_vsam.report.page.curves import learning_curves
from qat_vsam.report.page.figure import NARROW, WIDE, Figure
from qat_vsam.report.page.forest import forest
from qat_vsam.report.page.labels import Box, place, spread, text_width
from qat_vsam.report.page.scales import Scale, frame
from qat_vsam.report.page.trade_off import trade_off
from qat_vsam.report.page.trials import trials
from qat_vsam.report.statistics import Estimate

SVG = "{http://www.w3.org/2000/svg}"


def elements(figure: Figure | None, tag: str, width: float = WIDE) -> list[ElementTree.Element]:
    assert figure is not None
    return list(ElementTree.fromstring(figure.draw(width).standalone()).iter(SVG + tag))


def texts(figure: Figure | None, width: float = WIDE) -> list[str]:
    return [
        "".join([element.text or "", *(c.tail or "" for c in element)]) for element in elements(figure, "text", width)
    ]


def all_figures() -> list[Figure]:
    study = make_study()
    drawn = (
        forest(study.arms),
        trade_off(study.arms),
        learning_curves(study.arms, study.epochs),
        trials(study.arms, study.trials),
    )
    return [figure for figure in drawn if figure is not None]


@pytest.mark.parametrize("figure", all_figures(), ids=lambda figure: figure.name)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_figure_of_its_own_has_its_colours_a_white_ground_and_no_text_outside(figure: Figure, width: float) -> None:
    drawn = figure.draw(width).standalone()
    assert "var(" not in drawn
    root = ElementTree.fromstring(drawn)
    ground = next(root.iter(SVG + "rect"))
    assert (ground.get("fill"), ground.get("width")) == ("#ffffff", root.get("width"))
    for element in root.iter(SVG + "text"):
        at, wide = float(element.get("x", 0)), text_width(element.text or "")
        left = {"middle": at - wide / 2, "end": at - wide}.get(element.get("text-anchor", ""), at)
        assert left >= -6, element.text
        # widths are guessed on the wide side
        assert left + 0.9 * wide <= width + 1, element.text
        assert 0 < float(element.get("y", 0)) <= float(root.get("height", 0))


def test_every_mark_tells_its_numbers_to_the_pointer() -> None:
    study = make_study(precisions=("w4a4",))
    for figure in (forest(study.arms), trade_off(study.arms)):
        told = [element.text or "" for element in elements(figure, "title")]
        assert any(re.fullmatch(r"W4A4 VSAM: .*\[.*\].*", title) for title in told)


def test_the_forest_is_sorted_within_each_precision_and_ends_with_the_word() -> None:
    study = make_study()
    words = texts(forest(study.arms))
    for group in ("float32 ", "W4A4 ", "W2A2 "):
        arms = {arm.label: arm for arm in study.arms if arm.label.startswith(group) and arm.to_sam}
        shown = [word for word in words if word in arms]
        values = [arms[label].to_sam.value for label in shown]
        assert len(shown) == len(arms)
        assert values == sorted(values, reverse=True)
        for label in shown:
            assert arms[label].verdict.word in words[words.index(label) : words.index(label) + 3]


def test_the_margin_is_shaded_as_wide_as_it_is() -> None:
    study = make_study(precisions=("w4a4",))
    figure = forest(study.arms)
    band = next(e for e in elements(figure, "rect") if e.get("class") == "band")
    ticks = {e.text: float(e.get("x", 0)) for e in elements(figure, "text") if e.get("text-anchor") == "middle"}
    point = (ticks["0.0"] - ticks["\N{MINUS SIGN}1.0"]) if "\N{MINUS SIGN}1.0" in ticks else None
    assert point is not None
    assert float(band.get("width", 0)) == pytest.approx(2 * MARGIN * point, abs=0.3)


def test_without_a_margin_the_forest_says_why_there_is_no_band() -> None:
    study = make_study(precisions=("w4a4",))
    arms = [replace(arm, verdict=Verdict("undecided", None, None)) for arm in study.arms]
    figure = forest(arms)
    assert figure is not None
    assert "No margin is shown" in figure.caption
    assert not [e for e in elements(figure, "rect") if e.get("class") == "band"]


def test_an_arm_far_off_does_not_flatten_the_forest_and_is_named() -> None:
    study = make_study(precisions=("w4a4",))
    arms = [replace(a, to_sam=Estimate(-80.0, -81.0, -79.0, 8)) if a.role == "split_sgd" else a for a in study.arms]
    figure = forest(arms)
    assert figure is not None
    assert figure.caption.endswith("marked at its edge: “W4A4 SGD, split batch”.")


def test_a_precision_without_sam_has_no_rows_in_the_forest_and_is_named() -> None:
    study = make_study()
    arms = [replace(a, to_sam=None, verdict=None) if a.group == "W2A2" else a for a in study.arms]
    figure = forest([arm for arm in arms if not (arm.group == "W2A2" and arm.role == "sam")])
    assert figure is not None
    assert "not shown: “W2A2”" in figure.caption


def test_no_sam_no_forest() -> None:
    assert forest(make_study(methods=("sgd",)).arms) is None


def test_cost_is_time_where_a_bench_timed_it_and_gradients_elsewhere() -> None:
    timed, counted = trade_off(make_study().arms), trade_off(make_study(bench=False).arms)
    assert "time of a run, in float32 SGD runs" in texts(timed)
    assert "gradient evaluations of a run, in float32 SGD runs" in texts(counted)
    # whiskers of accuracy and of time, of accuracy alone
    assert len([e for e in elements(timed, "line") if e.get("class") == "whisker"]) == 2 * 18
    assert len([e for e in elements(counted, "line") if e.get("class") == "whisker"]) == 18


def test_the_caption_names_whose_intervals_overlap_with_the_highest_so_that_names_can_be_told_apart() -> None:
    study = make_study(precisions=("w4a4",), methods=("sgd", "split", "vsam", "sam"))
    wide = [replace(a, accuracy=Estimate(a.accuracy.value, 90.0, 99.0, 8)) for a in study.arms]
    figure = trade_off(wide)
    assert figure is not None
    assert "“SAM”: “SGD”; “SGD, split batch”; “VSAM”." in figure.caption
    narrow = [replace(a, accuracy=Estimate(a.accuracy.value, a.accuracy.value, a.accuracy.value, 8)) for a in wide]
    sure = trade_off(narrow)
    assert sure is not None
    assert "overlap with that" not in sure.caption


def test_no_cost_lies_outside_the_frame() -> None:
    study = make_study(precisions=("w4a4",))
    dear = Estimate(40.0, 39.0, 41.0, 30)
    figure = trade_off([replace(arm, run_time=dear) if arm.role == "sam" else arm for arm in study.arms])
    assert figure is not None
    assert "Outside" not in figure.caption
    assert any(title.startswith("W4A4 SAM: ") for title in (e.text or "" for e in elements(figure, "title")))


def test_a_single_point_is_no_trade_off() -> None:
    assert trade_off(make_study(precisions=("w4a4",), methods=("sam",)).arms) is None


def test_epochs_run_from_one_to_the_last() -> None:
    study = make_study(precisions=("w4a4",))
    drawn = elements(learning_curves(study.arms, study.epochs), "text")
    below = next(float(element.get("y", 0)) for element in drawn if element.text == "epoch")
    ticks = {int(e.text or "") for e in drawn if 0 < below - float(e.get("y", 0)) < 20 and (e.text or "").isdigit()}
    assert (min(ticks), max(ticks)) == (1, EPOCHS)


def test_two_epochs_are_no_curve_and_three_are() -> None:
    two, three = make_study(epochs=2), make_study(epochs=3)
    assert learning_curves(two.arms, two.epochs) is None
    assert "Float32: validation accuracy, %" in texts(learning_curves(three.arms, three.epochs))


def test_training_loss_stands_beside_accuracy() -> None:
    study = make_study(precisions=("w4a4",))
    assert "W4A4: training loss, log scale" in texts(learning_curves(study.arms, study.epochs))
    without = study.epochs.assign(train_loss=np.nan)
    assert not any("training loss" in text for text in texts(learning_curves(study.arms, without)))


def test_the_chosen_trial_is_ringed_and_the_edge_of_its_grid_marked() -> None:
    study = make_study(precisions=("w4a4",))
    figure = trials(study.arms, study.trials, "Fair enough.")
    tuned = study.trials["arm"].nunique()
    classes = [element.get("class") for element in elements(figure, "circle")]
    assert classes.count("ring") == tuned
    assert classes.count("trial") == len(study.trials)
    edges = study.trials.loc[study.trials["chosen"], "at_edge"]
    assert sum("(edge: rho)" in text for text in texts(figure)) == (edges != "").sum() > 0
    assert figure is not None
    assert figure.caption.endswith("Fair enough.")


def test_the_seeds_of_a_trial_are_one_dot() -> None:
    study = make_study(precisions=("w4a4",), methods=("sam",))
    table = study.trials
    other = table.assign(seed=1001, validation_accuracy=table["validation_accuracy"] - 0.002)
    figure = trials(study.arms, pd.concat([table, other], ignore_index=True))
    assert len([e for e in elements(figure, "circle") if e.get("class") == "trial"]) == len(table)
    best = 100 * (table["validation_accuracy"].max() - 0.001)
    assert any(f"{best:.2f} %" in (e.text or "") for e in elements(figure, "title"))


def test_labels_keep_clear_of_marks_of_each_other_and_of_the_frame() -> None:
    draw = np.random.default_rng(0)
    wanted = [(f"method {number}", *draw.uniform((20, 20), (380, 280))) for number in range(30)]
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for _, x, y in wanted]
    inside = Box(0, 0, 400, 300)
    placed = [label for label in place(wanted, marks, inside) if label is not None]
    boxes = [Box(p.x, p.y - 9, p.x + text_width(p.text), p.y + 3) for p in placed]
    assert len(boxes) >= 20
    for number, box in enumerate(boxes):
        assert box.within(inside)
        assert not any(box.meets(other) for other in [*marks, *boxes[:number]])


def test_a_label_without_a_free_place_is_left_out() -> None:
    everywhere = Box(0, 0, 400, 300)
    assert place([("SAM", 200, 150)], [everywhere], everywhere) == [None]


def test_labels_in_a_column_keep_their_order_and_distance() -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        wanted = draw.uniform(0, 200, 8).tolist()
        found = spread(wanted, 14, 0, 200)
        assert np.argsort(found, kind="stable").tolist() == np.argsort(wanted, kind="stable").tolist()
        assert np.diff(sorted(found)).min() >= 14 - 1e-9
        assert min(found) >= 0
        assert max(found) <= 200


def test_ticks_are_round_and_inside() -> None:
    draw = np.random.default_rng(2)
    for _ in range(100):
        low = draw.uniform(-50, 100)
        scale = Scale(low, low + 10 ** draw.uniform(-2, 2), 0, 100)
        ticks = scale.ticks(6)
        assert 2 <= len(ticks) <= 7
        assert all(scale.holds(value + 1e-12) or scale.holds(value - 1e-12) for value, _ in ticks)
        assert len({text for _, text in ticks}) == len(ticks)


def test_the_frame_holds_equal_values_too() -> None:
    low, high = frame([(95.0, 95.0, 95.0)] * 3)
    assert low < 95 < high


def test_figures_in_files_are_what_the_page_shows(tmp_path: Path) -> None:
    page = write_report(make_study(precisions=("w4a4",)), tmp_path).read_text(encoding="utf-8")
    drawn = (tmp_path / "figures" / "differences.svg").read_text(encoding="utf-8")
    for line in re.findall(r"<line [^>]*>|<circle [^>]*>", drawn):
        assert line in page
