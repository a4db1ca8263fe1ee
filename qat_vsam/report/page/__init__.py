"""The page of a study: HTML that needs no network and no script, its summary, its CSVs and its figures.

`build_report` makes one from a study's folder, `build_all` those of all studies with an index, `write_report` one from
a `Study` at hand. From the bottom up: `palette`, `svg`, `scales` and `labels` draw; `forest`, `trade_off`, `curves`
and `trials` are the figures; `cells`, `forms` and `columns` are the table; `content` puts them in order; `build`
and `studies` write.
"""

from qat_vsam.report.page.build import build_report, write_report
from qat_vsam.report.page.studies import build_all, write_index

__all__ = ["build_all", "build_report", "write_index", "write_report"]
