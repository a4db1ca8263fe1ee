"""The page: the answer first, whole without script or network, safe, and the same every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report.studies import make_study

from qat_vsam.errors import InputError
from qat_vsam.report import build_report
from qat_vsam.report.arm import Reach
from qat_vsam.report.page import write_report

HOSTILE = '<script>alert("x")</script>|`a`'


class _Page(HTMLParser):
    """Collects tags, addresses and visible text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attributes if key in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path) -> _Page:
    return _Page((folder / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on a study of three precisions."""
    return write_report(make_study(), tmp_path_factory.mktemp("report")).parent


def test_a_report_is_a_page_a_summary_three_csvs_and_figures(report: Path) -> None:
    files = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.svg" for name in ("differences", "accuracy_vs_cost", "learning_curves", "trials")}
    assert files == {"index.html", "summary.md", "results.csv", "arms.csv", "trials.csv"} | figures


def test_the_page_needs_no_network_and_links_only_what_stands_beside_it(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert not {"img", "iframe", "object", "embed"} & set(page.tags)
    assert set(page.addresses) == {"data:,", "results.csv", "arms.csv", "trials.csv"}
    assert not re.search(r"https?:|//\w|@import|url\(", text)


def test_the_same_study_gives_the_same_bytes_in_place_of_an_earlier_report(report: Path, tmp_path: Path) -> None:
    write_report(make_study(precisions=("w4a4",), tuned=True), tmp_path)
    write_report(make_study(), tmp_path)
    for path in sorted(path for path in report.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(report)).read_bytes(), path.name


def test_figures_that_a_study_no_longer_has_are_removed(tmp_path: Path) -> None:
    write_report(make_study(), tmp_path)
    write_report(make_study(tuned=False, epochs=0), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"differences.svg", "accuracy_vs_cost.svg"}


def test_warnings_come_first_then_the_question_the_answer_and_its_sentence(tmp_path: Path) -> None:
    study = make_study(warnings=("2 seeds: no difference can be established.",))
    text = page_of(write_report(study, tmp_path).parent).text
    places = [text.index(part) for part in (study.warnings[0], study.question, study.answer[0].cost, study.sentence)]
    assert places == sorted(places)
    assert places[0] < text.index("All methods")
    lines = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith("> **Warning:** 2 seeds")
    assert lines[4].startswith("| Method | Test accuracy, % |")


@pytest.mark.parametrize(
    ("fitted", "words"),
    [
        (True, "Default VSAM's default was tuned on these very tasks Date"),
        (False, "Default VSAM's default never met these tasks Date"),
        (None, "seed and draw Date"),
    ],
    ids=str,
)
def test_the_head_names_date_commit_machine_sample_and_where_the_default_is_from(
    fitted: bool | None, words: str, tmp_path: Path
) -> None:
    text = page_of(write_report(make_study(fitted=fitted), tmp_path).parent).text
    head = text[: text.index("All methods")]
    for expected in (
        "2026-12-01",
        "1e570b6aaaaa",
        "Intel Xeon",
        "8 seeds; 300 training and 997 test images; 8 draws of the images, so intervals",
        words,
    ):
        assert expected in head


def test_the_page_says_whether_intervals_cover_the_draw_of_the_data(tmp_path: Path) -> None:
    study = make_study()
    study = replace(study, arms=tuple(replace(arm, draws=1) for arm in study.arms))
    assert (
        "997 test images; one draw of the images, so intervals cover the seed alone"
        in page_of(write_report(study, tmp_path).parent).text
    )
    some = replace(study, arms=(replace(study.arms[0], draws=8), *study.arms[1:]))
    text = page_of(write_report(some, tmp_path).parent).text
    assert "8 seeds; 300 training and 997 test images; 1 to 8 draws of the images Default" in text


def test_the_recipe_and_the_index_are_linked_where_there_are_some(tmp_path: Path) -> None:
    (tmp_path / "comparison.yaml").write_text("title: x")
    (tmp_path / "index.html").write_text("all")
    out = tmp_path / "report"
    write_report(make_study(), out, recipe=tmp_path / "comparison.yaml", index=tmp_path / "index.html")
    assert {"../comparison.yaml", "../index.html"} <= set(page_of(out).addresses)
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "[comparison.yaml](../comparison.yaml)" in summary
    assert "[Page](index.html)" in summary


def test_each_arm_has_one_row_and_the_best_of_each_precision_is_marked(report: Path) -> None:
    study = make_study()
    table = (report / "index.html").read_text(encoding="utf-8").split('<table id="arms">')[1].split("</table>")[0]
    assert table.count('<th scope="row"') == len(study.arms)
    best = re.findall(r'class="best"><th scope="row"[^>]*>([^<]*?) <span', table)
    assert sorted(best) == sorted(arm.label for arm in study.arms if arm.best)


def test_a_line_for_float32_sam_stands_only_where_there_is_one(tmp_path: Path) -> None:
    page = write_report(make_study(precisions=("w4a4",)), tmp_path).read_text(encoding="utf-8")
    assert 'class="reference"' not in page
    assert "float32 SAM." not in page
    assert "dotted: float32 SAM" not in page
    page = write_report(make_study(), tmp_path).read_text(encoding="utf-8")
    assert 'class="reference"' in page
    assert "The dotted line is float32 SAM." in page
    assert page.count("<small>dotted: float32 SAM</small>") == 2


def test_a_column_in_which_no_arm_has_a_value_is_left_out(tmp_path: Path) -> None:
    study = make_study(precisions=("w4a4",))
    assert "Cost until SAM's accuracy" in page_of(write_report(study, tmp_path).parent).text
    arms = tuple(replace(arm, reach=Reach(None, None, "no curve")) for arm in study.arms)
    assert "Cost until" not in page_of(write_report(replace(study, arms=arms), tmp_path).parent).text


def test_options_that_all_arms_share_are_told_once(tmp_path: Path) -> None:
    study = make_study(precisions=("w4a4",))
    options = {
        arm.name: {"base": "sgd", "lr": 0.4, "derived": {"class": arm.role, "groups": [{"role": "bias", "rho": None}]}}
        for arm in study.arms
    }
    study = replace(study, results=replace(study.results, options=options))
    text = page_of(write_report(study, tmp_path).parent).text
    assert text.count("lr 0.4") == 1
    assert "every method base sgd, lr 0.4, derived groups (role bias, rho none)" in text
    assert "W4A4 SAM derived class sam" in text


def test_hostile_names_are_shown_and_not_executed(tmp_path: Path) -> None:
    study = make_study(precisions=("w4a4",), title=HOSTILE, question=HOSTILE, description=HOSTILE, command=HOSTILE)
    arms = tuple(replace(arm, label=HOSTILE, method_label=HOSTILE, group=HOSTILE) for arm in study.arms)
    study = replace(study, arms=arms, caveats=(HOSTILE,), protocol=((HOSTILE, HOSTILE),))
    out = write_report(study, tmp_path).parent
    page = page_of(out)
    assert page.tags.count("script") == 1
    assert page.text.count(HOSTILE) > 20
    assert "<script" not in (out / "summary.md").read_text(encoding="utf-8")
    for figure in (out / "figures").iterdir():
        assert "<script" not in figure.read_text(encoding="utf-8")


def test_a_spreadsheet_computes_nothing_that_a_name_says(tmp_path: Path) -> None:
    study = make_study(precisions=("w4a4",))
    signs = ("=1+1", "+1", "-1", "@a", "\tx", "SAM")
    arms = tuple(replace(arm, label=label) for arm, label in zip(study.arms, signs, strict=True))
    runs = study.results.runs.assign(label="=cmd()")
    out = write_report(replace(study, arms=arms, results=replace(study.results, runs=runs)), tmp_path).parent
    assert list(pd.read_csv(out / "arms.csv")["label"]) == ["'=1+1", "'+1", "'-1", "'@a", "'\tx", "SAM"]
    assert set(pd.read_csv(out / "results.csv")["label"]) == {"'=cmd()"}
    assert pd.read_csv(out / "arms.csv")["to_sam_points"].min() < 0


def test_the_cells_of_the_summary_are_separated_and_readable_as_they_are(report: Path) -> None:
    text = (report / "summary.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| W4A4 VSAM |") and "kB" in line)
    assert re.search(r"\| 9\d\.\d\d \[9\d\.\d\d, 9\d\.\d\d\] \| .0\.\d\d \[.0\.\d\d, .0\.\d\d\]; equivalent \|", row)
    assert "&lt;" not in text
    lines = text.splitlines()
    heads = [line for line in lines if line.startswith("| Method |") and "Cost until" in line]
    assert heads[0].count("|") == row.count("|")
    for name in re.findall(r"!\[[^]]*\]\((.*?)\)", text):
        assert (report / name).is_file()


def test_signs_that_mean_nothing_to_markdown_stay_as_they_are(tmp_path: Path) -> None:
    study = make_study(precisions=("w4a4",), caveats=("p < 0.001 & n > 3, split_sgd, [0.1, 0.2]", "a_b_ *c* <b>"))
    text = (write_report(study, tmp_path).parent / "summary.md").read_text(encoding="utf-8")
    assert "- p < 0.001 & n > 3, split_sgd, [0.1, 0.2]" in text
    assert r"- a_b\_ \*c\* &lt;b>" in text


def test_arms_csv_holds_the_numbers_of_the_study_under_names_of_their_own(report: Path) -> None:
    study = make_study()
    frame = pd.read_csv(report / "arms.csv").set_index("arm")
    assert frame.columns.is_unique
    for arm in study.arms:
        row = frame.loc[arm.name]
        assert row["test_accuracy_percent"] == pytest.approx(arm.accuracy.value)
        assert row["test_accuracy_percent_low"] == pytest.approx(arm.accuracy.low)
        assert row["run_time"] == pytest.approx(arm.run_time.value if arm.run_time else None)
        assert row["file_bytes_packed"] == arm.file_bytes["packed"]
        assert row["best_of_group"] == arm.best
        if arm.verdict is not None:
            assert row["verdict"] == arm.verdict.word
            assert row["margin_points"] == arm.verdict.margin


@pytest.mark.parametrize(
    "changes",
    [
        {"precisions": ("w4a4",), "methods": ("vsam",)},
        {"methods": ("sgd", "vsam")},
        {"methods": ("sam", "vsam")},
        {"seeds": 1},
        {"seeds": 2},
        {"bench": False},
        {"epochs": 0},
        {"epochs": 2},
        {"tuned": False},
        {"seeds": 1, "precisions": ("float32",), "methods": ("sgd",), "bench": False, "epochs": 0, "tuned": False},
    ],
    ids=str,
)
def test_a_study_may_lack_almost_everything(changes: dict[str, Any], tmp_path: Path) -> None:
    study = make_study(**changes)
    out = write_report(study, tmp_path).parent
    text = page_of(out).text
    assert study.sentence in text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)
    assert "nan" not in "".join(path.read_text(encoding="utf-8") for path in (out / "figures").iterdir())


def test_very_long_names_are_whole_in_the_table(tmp_path: Path) -> None:
    study = make_study(precisions=("w4a4",))
    name = "half of the batch, " * 40
    arms = tuple(replace(arm, label=f"{name} {arm.label}") for arm in study.arms)
    text = (write_report(replace(study, arms=arms), tmp_path)).read_text(encoding="utf-8")
    assert f">{name} W4A4 SAM" in text


def test_five_hundred_arms_of_twenty_seeds_fit_ten_megabytes(tmp_path: Path) -> None:
    study = make_study(seeds=20, copies=28, epochs=3)
    assert len(study.arms) >= 500
    page = write_report(study, tmp_path)
    assert page.stat().st_size <= 10e6
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 20e6


def test_a_report_of_run_folders_is_that_of_the_study_in_them(comparison: Path, tmp_path: Path) -> None:
    out = build_report(comparison, tmp_path / "out", title="Digits", command="qat-vsam compare digits").parent
    assert len(pd.read_csv(out / "results.csv")) == 72
    assert "qat-vsam compare digits" in page_of(out).text


def test_an_out_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="expected a folder that can be written"):
        write_report(make_study(precisions=("w4a4",)), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_several_run_folders_need_a_place_for_their_report(make_run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="name it with --out"):
        build_report([make_run("w4a4", "sgd", 0)])
