"""All studies below a folder: rebuilt by one command, and listed with question, answer, sample and command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qat_vsam.errors import InputError, explain
from qat_vsam.report.page import content
from qat_vsam.report.page.build import RECIPE, write_report
from qat_vsam.report.page.render import relative, render, write
from qat_vsam.report.study import Study, load_study

RUNS = "runs.jsonl"
_START, _END = "<!-- studies: written by qat-vsam report --all -->", "<!-- end of studies -->"


@dataclass(frozen=True)
class Listed:
    """One row of the index: a study, and the folder of its page as seen from the index."""

    study: Study
    folder: str

    @property
    def sample(self) -> str:
        """How many seeds, images and draws, and what the intervals cover."""
        return content.sample(self.study)

    @property
    def default(self) -> str:
        """Whether VSAM's default was fitted on its tasks."""
        return content.standing(self.study)


def build_all(root: Path) -> Path:
    """Rebuilds every study below a folder, and writes index.html and README.md into it.

    A study is a folder with a runs.jsonl. Of a README.md that is there already only the list of studies is replaced,
    which stands between two marks; what a person wrote around it is kept.

    Args:
        root: the folder of all studies, such as `reports`.

    Returns:
        The path of index.html.

    Raises:
        InputError: there is no study, a study is broken, or a file cannot be written.
    """
    root = Path(root)
    folders = sorted(path.parent for path in root.rglob(RUNS))
    if not folders:
        raise InputError(
            explain(str(root), f"no {RUNS} below it", "a folder of studies", "run `qat-vsam compare NAME --study DIR`")
        )
    index = root / "index.html"
    listed = []
    for folder in folders:
        study = load_study(folder)
        recipe = folder / RECIPE
        write_report(study, folder, recipe=recipe if recipe.is_file() else None, index=index)
        listed.append(Listed(study, relative(folder, root)))
    write_index(listed, root)
    return index


def write_index(listed: list[Listed], root: Path) -> None:
    """Writes index.html and README.md.

    Args:
        listed: the studies, in the order of the rows.
        root: the folder of both files.

    Raises:
        InputError: a file cannot be written.
    """
    readme = root / "README.md"
    block = f"{_START}\n\n{render('studies.md.jinja', {'listed': listed})}\n{_END}"
    try:
        before = readme.read_text(encoding="utf-8") if readme.is_file() else f"# Studies\n\n{block}\n"
        pattern = f"{re.escape(_START)}.*?{re.escape(_END)}"
        told, count = re.subn(pattern, lambda _: block, before, flags=re.DOTALL)
        write(readme, told if count else f"{before.rstrip()}\n\n{block}\n")
        write(root / "index.html", render("studies.html.jinja", {"listed": listed}))
    except OSError as error:
        raise InputError(
            explain(str(root), error.strerror or error, "a folder that can be written", "check its rights")
        ) from error
