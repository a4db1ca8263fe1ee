"""Templates into text, and text into files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qat_vsam.report.page import cells, markdown
from qat_vsam.report.page.cells import TONES
from qat_vsam.report.page.palette import css_variables
from qat_vsam.report.page.svg import figure_css

# by which a page knows the index that lists it
INDEX_MARK = '<meta name="generator" content="qat-vsam index of studies">'


def render(template: str, content: Mapping[str, object]) -> str:
    """Fills a template; what goes into HTML is escaped, and a name that is missing is an error."""
    return _environment().get_template(template).render(content)


def relative(path: Path, folder: Path) -> str:
    """The address of a file as a page in a folder links it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def write(path: Path, text: str) -> None:
    """Writes text with the same bytes on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qat_vsam.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "markdown": markdown.escape,
        "code": markdown.code,
        "svg": Markup,
        "urlpath": quote,
        "cell": cells.estimate,
        "estimate": lambda value: cells.estimate(value).line,
    }
    environment.globals |= {
        "colours": Markup(css_variables()),
        "figure_css": Markup(figure_css()),
        "index_mark": Markup(INDEX_MARK),
        "tones": TONES,
    }
    return environment
