"""Step times of networks: a sample holds a whole period of VSAM, so that a ratio is that of a whole run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qat_vsam.errors import QatVsamError
from qat_vsam.recipes import bench_sizes, step_times


@pytest.fixture
def one_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "SIZES", (("digits_cnn", {"width": 4}, (8, 1, 8, 8)),))


@pytest.mark.usefixtures("one_small_network")
def test_each_optimizer_is_timed_at_its_declared_cost() -> None:
    (table,) = bench_sizes(repeats=3)
    assert [row.name for row in table.rows] == ["float32 sgd", "float32 vsam", "float32 sam"]
    assert [row.gradient_evaluations for row in table.rows] == [1.0, pytest.approx(1.15, abs=1e-12), 2.0]
    sgd, vsam, sam = table.rows
    assert (sgd.ratio_to_float, sgd.ratio_to_declared) == (1, None)
    assert vsam.ratio_to_declared == pytest.approx(vsam.ratio_to_float / 1.15)
    assert sam.ratio_to_declared == pytest.approx(sam.ratio_to_float / 2)


@pytest.mark.usefixtures("one_small_network")
def test_a_table_names_the_size_of_its_network() -> None:
    (table,) = bench_sizes(repeats=3)
    title, *rows = table.lines()
    assert title.startswith("digits_cnn, 0.00 M, batch 8, 8 x 8")
    assert [row.split()[0] for row in rows] == ["float32"] * 3


def test_sizes_and_a_file_exclude_each_other(command_line: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = command_line("bench", "digits", "--sizes")
    assert code == 2
    assert "--sizes: got a file, digits; expected one of the two; leave the file or --sizes out" in err


@pytest.mark.usefixtures("one_small_network")
def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(QatVsamError, match="repeats"):
        list(bench_sizes(repeats=0))
