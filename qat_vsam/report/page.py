"""Puts a report together: reads the runs, computes, draws, and writes the page, the summary and the CSVs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from qat_vsam.errors import InputError, explain
from qat_vsam.report.figures import Drawing, draw_figures
from qat_vsam.report.findings import find
from qat_vsam.report.frames import arms_frame, runs_frame
from qat_vsam.report.palette import Palette
from qat_vsam.report.study import load_study
from qat_vsam.report.tables import (
    Table,
    choices_table,
    gains_table,
    methods_table,
    shipping_table,
)


def build_report(
    runs: Path | Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    bench: Path | None = None,
    command: str = "",
    description: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Writes index.html, summary.md, results.csv (a row per run), arms.csv (a row per arm) and figures/.

    The page is one self-contained file. The same inputs give byte-identical files.

    Args:
        runs: a comparison folder (ARM/seed-K/result.json below it), or single run folders.
        out: the folder to write; created if missing, files of an earlier report are replaced.
        title: the page's heading.
        bench: a bench.json with step times; None: the one in the comparison folder, if there is one.
        command: what repeats the comparison.
        description: a paragraph below the heading.
        notes: caveats of the author, shown before those that the data calls for.

    Returns:
        The path of index.html.

    Raises:
        InputError: there is nothing to report, a result is broken, or `out` cannot be written.
    """
    study = load_study(runs, title=title, description=description or None, notes=notes or None, command=command, bench=bench)
    results, arms = study.results, list(study.arms)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawings = draw_figures(results, arms, out / "figures")
        content = {
            "title": study.title,
            "description": description,
            "findings": find(arms),
            "tables": _told(methods_table(arms), gains_table(arms)),
            "details": _told(choices_table(results.choices, arms), shipping_table(arms)),
            "palette": Palette.of(arms),
            "figures": [(drawing, _data_address(drawing)) for drawing in drawings],
            "protocol": study.protocol,
            "options": study.options,
            "caveats": [*study.warnings, *study.caveats],
        }
        _write(out / "summary.md", _render("summary.md.jinja", content))
        _write(out / "results.csv", runs_frame(results).to_csv(index=False, lineterminator="\n"))
        _write(out / "arms.csv", arms_frame(arms).to_csv(index=False, lineterminator="\n"))
        if not study.trials.empty:
            _write(out / "trials.csv", study.trials.to_csv(index=False, lineterminator="\n"))
        _write(out / "index.html", _render("index.html.jinja", content))
    except OSError as error:
        raise InputError(
            explain(str(out), error.strerror or error, "a folder that can be written", "choose another --out")
        ) from error
    return out / "index.html"


def build_all(root: Path) -> Path:
    """Rebuilds every study below a folder (a stand-in: without their index)."""
    for runs in sorted(root.rglob("runs.jsonl")):
        build_report(runs.parent, runs.parent)
    return root / "index.html"


def _told(*tables: Table) -> list[Table]:
    return [table for table in tables if table.groups]


def _render(template: str, content: dict[str, object]) -> str:
    environment = Environment(
        loader=PackageLoader("qat_vsam.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = escape_markdown
    return environment.get_template(template).render(content)


def escape_markdown(text: object) -> str:
    r"""Text that Markdown shows as it is: no HTML, no links, no table bars, no line breaks.

    Example:
        >>> escape_markdown("a|b <script>")
        'a\\|b &lt;script&gt;'
    """
    plain = " ".join(str(text).split())
    for sign in ("\\", "|", "`", "*", "_"):
        plain = plain.replace(sign, "\\" + sign)
    plain = plain.replace("](", "]\\(")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _data_address(drawing: Drawing) -> str:
    # as an image of its own an SVG keeps its identifiers to itself, where inlined ones would collide
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.svg.read_bytes()).decode("ascii")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
