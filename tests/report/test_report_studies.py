"""The index of all studies: rebuilt by one command, bit-equal, with a row for each study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qat_vsam.errors import InputError
from qat_vsam.report import record_of, write_records
from qat_vsam.report.page import build_all, build_report

RECIPE = """\
name: digits
title: Digits
question: Is VSAM as good as SAM?
fitted: true
command: qat-vsam compare digits
seeds: 8
"""


@pytest.fixture(scope="module")
def studies(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two studies, one of them nested, and a folder that is none."""
    root = tmp_path_factory.mktemp("reports")
    for name in ("digits", "optimizers/default"):
        folder = root / name
        folder.mkdir(parents=True)
        write_records(folder / "runs.jsonl", [record_of(path.parent) for path in comparison.glob("*/*/result.json")])
        (folder / "comparison.yaml").write_text(RECIPE)
    (root / "bench").mkdir()
    (root / "bench" / "summary.md").write_text("by hand")
    return root


def test_every_study_has_its_report_and_a_row_in_both_indices(studies: Path) -> None:
    index = build_all(studies)
    page, readme = index.read_text(encoding="utf-8"), (studies / "README.md").read_text(encoding="utf-8")
    for name in ("digits", "optimizers/default"):
        assert (studies / name / "index.html").is_file()
        assert f'href="{name}/index.html"' in page
        assert f"[Digits]({name}/summary.md)" in readme
    rows = [line for line in readme.splitlines() if line.startswith("| [Digits]")]
    assert len(rows) == 2
    for part in (
        "Is VSAM as good as SAM?",
        "8 seeds",
        "default was tuned on these very tasks",
        "`qat-vsam compare digits`",
        "W4A4: VSAM 96.8",
    ):
        assert part in rows[0]
        assert part.strip("`") in page


def test_pages_link_the_index_and_their_recipe(studies: Path) -> None:
    build_all(studies)
    assert 'href="../index.html"' in (studies / "digits" / "index.html").read_text(encoding="utf-8")
    nested = (studies / "optimizers" / "default" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../index.html"' in nested
    assert 'href="comparison.yaml"' in nested


def test_a_page_rebuilt_alone_is_the_one_that_was_rebuilt_with_all(studies: Path) -> None:
    build_all(studies)
    page = studies / "optimizers" / "default" / "index.html"
    before = page.read_bytes()
    assert build_report(page.parent) == page
    assert page.read_bytes() == before


def test_everything_is_bit_equal_when_repeated(studies: Path, tmp_path: Path) -> None:
    build_all(studies)
    again = tmp_path / "again"
    shutil.copytree(studies, again, ignore=shutil.ignore_patterns("*.html", "summary.md", "*.csv", "*.svg"))
    build_all(again)
    written = [path for path in studies.rglob("*") if path.is_file() and path.parent.name != "bench"]
    assert len(written) >= 20
    for path in written:
        assert path.read_bytes() == (again / path.relative_to(studies)).read_bytes(), path


def test_what_a_person_wrote_around_the_list_is_kept(studies: Path) -> None:
    readme = studies / "README.md"
    readme.write_text("# Our studies\n\nRead this first.\n")
    build_all(studies)
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text + "\n## Benches\n\nSee bench/summary.md.\n", encoding="utf-8")
    build_all(studies)
    after = readme.read_text(encoding="utf-8")
    assert after.startswith("# Our studies\n\nRead this first.\n")
    assert after.endswith("\n## Benches\n\nSee bench/summary.md.\n")
    assert after.count("| Study | Question |") == 1


def test_a_page_that_is_no_index_of_ours_is_not_linked(comparison: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>somebody's home page</html>")
    out = build_report(comparison, tmp_path / "out")
    assert "../index.html" not in out.read_text(encoding="utf-8")


def test_a_folder_without_studies_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no runs\.jsonl below it"):
        build_all(tmp_path)
