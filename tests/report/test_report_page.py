"""The page: written whole, safe, self-contained, honest, and the same every time."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import image

from qat_vsam.errors import InputError
from qat_vsam.report import build_report

HOSTILE = '<script>alert("x")</script>|`a`'


@pytest.fixture(scope="session")
def report(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on the full synthetic comparison."""
    out = tmp_path_factory.mktemp("report")
    build_report(comparison, out, title="Digits", command="qat-vsam compare digits", notes=("rho was tuned.",))
    return out


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
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path) -> _Page:
    return _Page((folder / "index.html").read_text(encoding="utf-8"))


def test_a_report_is_a_page_a_summary_two_csvs_and_figures_in_both_formats(report: Path) -> None:
    files = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    figures = ("accuracy_vs_evaluations", "accuracy_vs_time", "learning_curves", "cost_and_psf")
    drawn = {f"figures/{name}.{ending}" for name in figures for ending in ("png", "svg")}
    assert files == {"index.html", "summary.md", "results.csv", "arms.csv"} | drawn


def test_the_page_needs_no_script_and_no_network(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert len(page.addresses) == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[\w+/=]+", "", text))
    for address in page.addresses:
        svg = base64.b64decode(address.split(",", 1)[1]).decode()
        assert not re.search(r'(src|href)="(?!#)', svg)


def test_the_same_runs_give_the_same_bytes(report: Path, make_comparison: Callable[..., Path], tmp_path: Path) -> None:
    build_report(
        make_comparison(),
        tmp_path / "again",
        title="Digits",
        command="qat-vsam compare digits",
        notes=("rho was tuned.",),
    )
    for path in sorted(report.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(report)).read_bytes(), path.name


def test_hostile_names_are_shown_and_not_executed(make_run: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"label": f"W4A4 {HOSTILE}", "command": HOSTILE, "optimizer_options": {HOSTILE: HOSTILE}}
    folder = make_run(
        "w4a4",
        "vsam",
        0,
        model={"name": HOSTILE},
        data={"name": HOSTILE},
        versions={HOSTILE: HOSTILE},
        exports=[{"format": HOSTILE, "proof": {"passed": False, "worst_layer": HOSTILE}}],
        **changes,
    )
    out = build_report(folder, tmp_path / "out", title=HOSTILE, description=HOSTILE, notes=(HOSTILE,)).parent
    page = page_of(out)
    assert "script" not in page.tags
    # once each: page title, heading, description, model, data, label in each table, format, layer ...
    assert page.text.count(HOSTILE) >= 10
    assert "<script" not in (out / "summary.md").read_text(encoding="utf-8")


def test_the_headline_says_what_share_of_the_gain_is_kept_and_at_what_price(report: Path) -> None:
    headline = re.search(r'class="headline">(.*?)</p>', (report / "index.html").read_text(encoding="utf-8"))
    assert headline is not None
    arms = pd.read_csv(report / "arms.csv").set_index("arm")
    kept = arms.loc["w4a4-vsam", "share_of_sam_gain"]
    text = html.unescape(headline[1])
    assert text.startswith(f"W4A4 VSAM keeps {100 * kept:.0f} % of SAM's gain over SGD (95 % interval ")
    assert text.endswith("at 1.25 gradient evaluations a step and 1.36 times SGD's time.")


def test_where_sam_did_not_pay_the_headline_says_so(make_comparison: Callable[..., Path], tmp_path: Path) -> None:
    arms = [("w4a4", method) for method in ("sgd", "vsam", "sam")]
    out = build_report(make_comparison(seeds=5, arms=arms, gain=0.0), tmp_path / "out", title="flat").parent
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "**SAM did not pay at W4A4: " in summary
    assert "SAM's gain not established" in page_of(out).text


def test_where_sam_harms_the_headline_says_so(make_comparison: Callable[..., Path], tmp_path: Path) -> None:
    arms = [("w4a4", method) for method in ("sgd", "vsam", "sam")]
    out = build_report(make_comparison(seeds=5, arms=arms, gain=-1.5), tmp_path / "out", title="harm").parent
    assert "**SAM did harm at W4A4: " in (out / "summary.md").read_text(encoding="utf-8")


def test_a_gain_that_the_correction_takes_away_is_not_claimed(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for precision, gains in (("float32", (0.3, -0.2, 0.25, -0.1)), ("w4a4", (0.6, 0.9, 0.3, 1.5))):
        for seed, gain in enumerate(gains):
            for method, points in (("sgd", 0.0), ("vsam", gain), ("sam", gain)):
                runs = make_run(precision, method, seed, accuracy={"test": 0.95 + points / 100}).parent.parent
    out = build_report(runs, tmp_path / "out", title="fragile").parent
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert (
        "**SAM's gain at W4A4 is not established: +0.82 points [+0.01, +1.64] over SGD, p = 0.097 corrected" in summary
    )
    assert "+0.82 points [+0.01, +1.64] SAM's gain not established" in summary
    # the uncorrected interval lies above zero, and is not marked for it
    assert not re.search(r'class="good"><b>\+0.82', (out / "index.html").read_text(encoding="utf-8"))


def test_many_methods_are_told_in_one_sentence_and_drawn_precision_by_precision(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    others = [f"method-{number}" for number in range(14)]
    for precision in ("float32", "w4a4"):
        for seed in range(3):
            for method in ("sgd", "sam"):
                make_run(precision, method, seed)
            for number, name in enumerate(others):
                shift = {"test": 0.95 + 0.001 * number + 0.0001 * seed}
                runs = make_run(precision, "sgd", seed, arm=f"{precision}-{name}", label=name, accuracy=shift)
    out = build_report(runs.parent.parent, tmp_path / "out", title="many").parent
    page = page_of(out)
    assert page.text.count("Of 14 other methods at ") == 2
    assert "The intervals stand in the table." in page.text
    assert "Of each precision 10 arms at most" in page.text
    svg = (out / "figures" / "accuracy_vs_evaluations.svg").read_text()
    assert svg.count('<g id="axes_') == 2


def test_a_long_name_of_a_curve_stays_in_the_figure(make_run: Callable[..., Path], tmp_path: Path) -> None:
    name = "W4A4 half of the batch at three steps of ten"
    runs = make_run("w4a4", "vsam", 0, label=name)
    out = build_report([runs], tmp_path / "out", title="long").parent
    for figure in ("learning_curves", "cost_and_psf"):
        pixels = image.imread(out / "figures" / f"{figure}.png")
        assert (pixels[:, -3:] == 1.0).all(), figure


def test_one_seed_has_no_interval_and_one_run_reports(make_run: Callable[..., Path], tmp_path: Path) -> None:
    out = build_report([make_run("w4a4", "vsam", 0)], tmp_path / "out", title="one run").parent
    page = page_of(out)
    assert "One seed per arm" in page.text
    assert "[" not in page.text
    arms = pd.read_csv(out / "arms.csv")
    assert arms["test_accuracy_percent_low"].isna().all()
    # a single point is no trade-off
    assert not (out / "figures" / "accuracy_vs_evaluations.svg").exists()
    assert (out / "figures" / "learning_curves.svg").exists()


def test_results_csv_holds_a_row_per_run_with_its_exports_and_the_corrected_p_value(report: Path) -> None:
    frame = pd.read_csv(report / "results.csv")
    assert len(frame) == 72
    exported = frame[frame["export_onnx_latency_ms"].notna()]
    assert set(exported["seed"]) == {0}
    assert len(exported) == 9
    arms = pd.read_csv(report / "arms.csv").set_index("arm")
    for arm, rows in frame.groupby("arm"):
        assert 100 * rows["test_accuracy"].mean() == pytest.approx(arms.loc[arm, "test_accuracy_percent"])
        assert rows["arm_p_holm_against_sgd"].iloc[0] == pytest.approx(arms.loc[arm, "p_holm_against_sgd"], nan_ok=True)


def test_the_summary_holds_the_table_of_the_page(report: Path) -> None:
    lines = (report / "summary.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| W4A4 VSAM |")]
    assert len(rows) == 3
    widths = {line.count("|") for line in lines if line.startswith("| ") and "Gradient" in line}
    assert {rows[0].count("|")} == widths
    arms = pd.read_csv(report / "arms.csv").set_index("arm")
    assert f"{arms.loc['w4a4-vsam', 'test_accuracy_percent']:.2f}" in rows[0]


def test_author_notes_command_and_protocol_are_on_the_page(report: Path) -> None:
    text = page_of(report).text
    for expected in (
        "rho was tuned.",
        "qat-vsam compare digits",
        "300 training images",
        "torch 2.14.1",
        "medians of 30",
    ):
        assert expected in text


def test_an_out_that_is_a_file_is_refused_in_one_line(make_run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="expected a folder that can be written"):
        build_report(make_run("w4a4", "sgd", 0), tmp_path / "out", title="x")
    assert (tmp_path / "out").read_text() == "mine"
