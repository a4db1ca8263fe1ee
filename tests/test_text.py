"""Promises of the text: every example runs, every public name is explained, the README's commands exist."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import qat_vsam
from qat_vsam import cli, config, errors

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(qat_vsam.__path__, "qat_vsam.") if ".configs" not in module.name
)
README = (ROOT / "README.md").read_text()
# those whose blocks stand by themselves; the optimizers' page shows parts of programs, which their own tests complete
PAGES = ["README.md", "qat_vsam/quant/README.md"]
MOST_WORDS = 900


@pytest.mark.parametrize("name", ["qat_vsam", *MODULES])
def test_every_docstring_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0


@pytest.mark.parametrize("name", ["qat_vsam", *MODULES])
def test_every_module_says_what_it_does_in_its_first_line(name: str) -> None:
    text = importlib.import_module(name).__doc__
    assert text is not None
    assert text.strip().splitlines()[0].rstrip().endswith((".", ":", ",")) or len(text.strip().splitlines()) > 1


@pytest.mark.parametrize("name", qat_vsam.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    thing = getattr(qat_vsam, name)
    text = inspect.getdoc(thing)
    assert text is not None
    assert len(text.splitlines()[0]) > 10


def test_every_error_class_speaks_through_the_common_base() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) >= 8
    assert all(issubclass(c, errors.QatVsamError) for c in classes)


def blocks(page: str, languages: str) -> list[str]:
    """The code blocks of a page in these languages."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", text, flags=re.S | re.M)


def commands() -> list[str]:
    """The `qat-vsam ...` lines of the pages' code blocks."""
    found = "\n".join(block for page in PAGES for block in blocks(page, "sh|console"))
    lines = found.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("qat-vsam ")]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readmes_exists_with_its_options(command: str) -> None:
    words = command.split("#")[0].split()[1:]
    import typer

    group = typer.main.get_command(cli.app)
    assert words[0] in group.commands  # type: ignore[attr-defined]
    known = {option for parameter in group.commands[words[0]].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}
    if words[0] in ("compare", "train", "validate", "cp") and "." not in words[1]:
        config.find_config(words[1])


@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_of_the_readmes_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks(page, "python")
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), {"__name__": "readme"})


@pytest.mark.parametrize(
    "page", ["README.md", "reports/README.md", "qat_vsam/quant/README.md", "qat_vsam/optim/README.md"]
)
def test_every_link_of_the_readmes_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [target for target in targets if "://" not in target and not ((ROOT / page).parent / target).exists()]
    assert not missing


def table_of_the_readme() -> list[list[str]]:
    """The cells of its one table, without head."""
    lines = [line for line in README.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("cells", table_of_the_readme(), ids=lambda cells: f"{cells[0]} {cells[1]}")
def test_every_row_of_the_readmes_table_is_what_its_study_found(cells: list[str]) -> None:
    link, group, *figures = cells
    found = re.search(r"\]\((.+)/summary\.md\)", link)
    assert found
    arms = pd.read_csv(ROOT / found[1] / "arms.csv")
    role = arms[arms["group"] == group].set_index("role")
    vsam = role.loc["vsam"]
    accuracies = [f"{role.loc[name, 'test_accuracy_percent']:.2f}" for name in ("sgd", "sam", "vsam")]
    assert figures == [*accuracies, vsam["verdict"], vsam["against_sgd"]]


def test_the_readme_has_one_short_table_and_one_figure() -> None:
    assert 0 < len(table_of_the_readme()) <= 8
    assert len(re.findall(r"^!\[", README, flags=re.M)) == 1


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_readme_gives_one_command_for_all_tests() -> None:
    assert len(re.findall(r"^pip install -e .*&& pytest.*$", README, flags=re.M)) == 1
