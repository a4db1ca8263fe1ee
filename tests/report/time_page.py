"""How long the report of a large study takes, and how large it is: `python tests/report/time_page.py [ARMS] [SEEDS]`.

The study's numbers are drawn, its page is written whole: table, figures, summary and CSVs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from studies import METHODS, PRECISIONS, make_study

from qat_vsam.report.page import write_report


def main(arms: int = 500, seeds: int = 20) -> None:
    """Writes one report and prints its time and sizes."""
    copies = -(-arms // (len(METHODS) * len(PRECISIONS)))
    study = make_study(seeds=seeds, copies=copies, epochs=24)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        page = write_report(study, Path(folder))
        seconds = time.perf_counter() - start
        whole = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        sys.stdout.write(
            f"{len(study.arms)} arms of {seeds} seeds: {seconds:.1f} s, page {page.stat().st_size / 1e6:.2f} MB, "
            f"all files {whole / 1e6:.2f} MB\n"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
