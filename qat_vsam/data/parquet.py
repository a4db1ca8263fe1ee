"""Labelled images in parquet files of the layout that datasets have on the Hugging Face hub.

A row is a struct of `bytes` (an encoded image) and `path`, and an integer label. The schema's metadata may
hold the class names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from qat_vsam.data.dataset import Rows
from qat_vsam.data.images import Progress, decode_images
from qat_vsam.errors import DataError, explain

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")


def read_parquet(
    files: Sequence[Path], classes: Sequence[str] | None, progress: Progress | None = None
) -> tuple[Rows, tuple[str, ...]]:
    """The rows of one split, and its class names. Images stay encoded until rows are taken.

    Args:
        files: parquet files, in order.
        classes: names to use where the files hold none; None counts the labels instead.
        progress: for `decode_images`.

    Returns:
        The rows and the class names.

    Raises:
        DataError: a file is not parquet, is empty, lacks a column, or holds a label that is no class.
    """
    encoded: list[bytes | None] = []
    names: list[str] = []
    labels: list[Tensor] = []
    for file in files:
        table = _read_table(file)
        label_column = _column(table, file, LABEL_COLUMNS)
        classes = _class_names(table.schema, label_column) or classes
        labels.append(_labels(table, file, label_column, None if classes is None else len(classes)))
        encoded += _image_bytes(table, file)
        names += [f"{file} row {row}" for row in range(table.num_rows)]
    all_labels = torch.cat(labels)
    if classes is None:
        classes = [str(label) for label in range(int(all_labels.max()) + 1)]
    return Rows(all_labels, partial(_decode_rows, encoded, names, progress)), tuple(classes)


def _decode_rows(encoded: list[bytes | None], names: list[str], progress: Progress | None, index: Tensor) -> Tensor:
    rows = index.tolist()
    # a row without bytes is an empty file to the decoder, which reports it with its name
    return decode_images([encoded[i] or b"" for i in rows], [names[i] for i in rows], progress=progress)


def _read_table(file: Path) -> pa.Table:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            explain(f"data {file}", f"an unreadable file ({reason})", "a parquet file", "fetch the file again")
        ) from error
    if table.num_rows == 0:
        raise DataError(explain(f"data {file}", "0 rows", "at least one row", "fetch the file again"))
    return table


def _column(table: pa.Table, file: Path, candidates: Sequence[str]) -> str:
    for name in candidates:
        if name in table.column_names:
            return name
    raise DataError(
        explain(
            f"data {file}",
            f"columns {', '.join(table.column_names)}",
            f"a column {' or '.join(candidates)}",
            "rename the column",
        )
    )


def _labels(table: pa.Table, file: Path, name: str, classes: int | None) -> Tensor:
    column = table.column(name)
    if not pa.types.is_integer(column.type):
        raise DataError(
            explain(f"data {file} column {name}", column.type, "integers", "map the labels to class numbers")
        )
    rule = "0 or more" if classes is None else f"a class number in 0..{classes - 1}"
    do = "correct the label or remove the row"
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise DataError(explain(f"data {file} row {row} column {name}", "nothing", rule, do))
    labels = torch.from_numpy(column.to_numpy().astype("int64"))
    wrong = (labels < 0) if classes is None else (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(explain(f"data {file} row {row} column {name}", int(labels[row]), rule, do))
    return labels


def _image_bytes(table: pa.Table, file: Path) -> list[bytes | None]:
    name = _column(table, file, IMAGE_COLUMNS)
    column = table.column(name)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = table.select([name]).flatten().column(f"{name}.bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(
            explain(
                f"data {file} column {name}",
                column.type,
                "encoded images: binary, or a struct with a binary field `bytes`",
                "store the images as PNG or JPEG bytes",
            )
        )
    images: list[bytes | None] = column.to_pylist()
    return images


def _class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """The names of a ClassLabel feature, where the metadata holds one in the shape that the hub writes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None
