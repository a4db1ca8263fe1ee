"""The first screen: the answer's rows with their terms, on an axis of their own, and the commits behind them."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report.studies import make_study

from qat_vsam.report.page import write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on a study of three precisions."""
    return write_report(make_study(), tmp_path_factory.mktemp("report")).parent


def answer_box(page: str) -> str:
    """The table of the answer."""
    return page.split('<table id="answer">')[1].split("</table>")[0]


def test_the_answer_box_has_the_rows_of_the_study(report: Path) -> None:
    study = make_study()
    box = answer_box((report / "index.html").read_text(encoding="utf-8"))
    rows = box.split("<tbody>")[1].split("<tr>")[1:]
    assert len(rows) == len(study.answer) <= 5
    for row, answer in zip(rows, study.answer, strict=True):
        plain = html.unescape(re.sub(r"<[^>]+>", " ", row))
        assert f"{answer.label} " in plain
        assert f"{answer.accuracy.value:.2f}" in plain
        assert answer.cost in plain
        assert answer.verdict in plain
        assert all(line in plain for line in answer.details)


def test_several_commits_are_counted_and_listed_where_a_pointer_rests(tmp_path: Path) -> None:
    study = make_study()
    study = replace(study, provenance=replace(study.provenance, commits=("aaa", "bbb", "ccc")))
    page = write_report(study, tmp_path).read_text(encoding="utf-8")
    assert '<abbr title="aaa; bbb; ccc">code of 3 commits</abbr> (differences are marked below)' in page
    assert "<code>aaa</code>" not in page


def test_terms_stand_directly_below_the_answer(report: Path) -> None:
    study = make_study()
    page = (report / "index.html").read_text(encoding="utf-8")
    after = page.split('<table id="answer">')[1].split("</table>")[1]
    assert after.lstrip().startswith(f'<p class="terms">{study.terms}')
    lines = (report / "summary.md").read_text(encoding="utf-8").splitlines()
    last = next(place for place, line in enumerate(lines) if line.startswith("| W4A4 VSAM |"))
    assert lines[last + 2] == study.terms


def test_the_intervals_of_the_answer_have_an_axis_of_their_own_and_ends_that_show(tmp_path: Path) -> None:
    study = make_study()
    far = replace(study.arms[-1], accuracy=replace(study.arms[-1].accuracy, value=60.0, low=59.9, high=60.1))
    page = write_report(study, tmp_path / "a").read_text(encoding="utf-8")
    other = replace(study, arms=(*study.arms[:-1], far))
    assert answer_box(page) == answer_box(write_report(other, tmp_path / "b").read_text(encoding="utf-8"))
    low = replace(study.answer[0].arm, accuracy=replace(far.accuracy))
    strayed = replace(study, answer=(replace(study.answer[0], arm=low), *study.answer[1:]))
    assert "<polygon" not in answer_box(write_report(strayed, tmp_path / "c").read_text(encoding="utf-8"))
    # the line, and its two ends
    assert answer_box(page).count('class="whisker"') == 3 * len(study.answer)
