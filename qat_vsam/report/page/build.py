"""Writes a study's page, summary, CSVs and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat_vsam.errors import InputError, explain
from qat_vsam.report.page import content, sheets
from qat_vsam.report.page.bars import Bars
from qat_vsam.report.page.render import INDEX_MARK, relative, render, write
from qat_vsam.report.study import Study, load_study

RECIPE = "comparison.yaml"
_FIGURES = ("differences", "accuracy_vs_cost", "learning_curves", "trials")


def build_report(
    runs: Path | Sequence[Path], out: Path | None = None, *, index: Path | None = None, **options: Any
) -> Path:
    """Computes a study from its files and writes index.html, summary.md, the CSVs and figures/ of it.

    The page is one self-contained file. The same files give byte-identical reports.

    Args:
        runs: a study's or a comparison's folder, or single run folders.
        out: the folder to write, created if missing; None: `runs` itself.
        index: the page that lists all studies; None: the nearest one above `out`, if there is one.
        options: title, command, description, notes ... in place of those of the files, as `load_study` takes them.

    Returns:
        The path of index.html.

    Raises:
        InputError: there is nothing to report, a file is broken, or `out` cannot be written.
    """
    if out is None:
        if not isinstance(runs, str | Path):
            raise InputError(explain("out", "no folder", "one, for several run folders", "name it with --out"))
        out = Path(runs)
    recipes = [Path(runs) / RECIPE] if isinstance(runs, str | Path) else []
    recipe = next((path for path in [Path(out) / RECIPE, *recipes] if path.is_file()), None)
    return write_report(load_study(runs, **options), Path(out), recipe=recipe, index=index)


def write_report(study: Study, out: Path, *, recipe: Path | None = None, index: Path | None = None) -> Path:
    """Writes the report of a study.

    Args:
        study: what the page shows, and nothing else.
        out: the folder to write; created if missing, files of an earlier report are replaced.
        recipe: the comparison's recipe, to be linked.
        index: the page that lists all studies; None: the nearest one above `out`, if there is one.

    Returns:
        The path of index.html.

    Raises:
        InputError: `out` cannot be written.
    """
    index = index or _find_index(out)
    frames = {
        "results.csv": sheets.runs_frame(study.results),
        "arms.csv": sheets.arms_frame(study.arms),
        "trials.csv": study.trials,
    }
    frames = {name: frame for name, frame in frames.items() if len(frame)}
    figures = content.figures(study)
    links = [(name, name) for name in frames]
    if recipe is not None:
        links.append((RECIPE, relative(recipe, out)))
    common, options = content.split_options(study)
    shown = {
        "study": study,
        "sample": content.sample(study),
        "standing": content.standing(study),
        "links": links,
        "index": None if index is None else relative(index, out),
        "table": content.arms_table(study.arms),
        "bars": Bars([row.arm for row in study.answer], whole=True),
        "figures": figures,
        "common": common,
        "options": options,
    }
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name in _FIGURES:
            (out / "figures" / f"{name}.svg").unlink(missing_ok=True)
        for figure in figures:
            write(out / "figures" / f"{figure.name}.svg", figure.wide.standalone())
        for name, frame in frames.items():
            write(out / name, sheets.csv(frame))
        write(out / "summary.md", render("summary.md.jinja", shown))
        write(out / "index.html", render("study.html.jinja", shown))
    except OSError as error:
        raise InputError(
            explain(str(out), error.strerror or error, "a folder that can be written", "choose another --out")
        ) from error
    return out / "index.html"


def _find_index(out: Path) -> Path | None:
    """The index of studies that `build_all` wrote, one to three folders above."""
    for folder in list(out.resolve().parents)[:3]:
        page = folder / "index.html"
        if page.is_file() and INDEX_MARK in page.read_text(encoding="utf-8", errors="replace")[:2000]:
            return page
    return None
