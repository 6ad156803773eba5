"""Files of rows in every format that `rows.read` takes."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    """Rows in the format that the name says; lists and objects as JSON where a format has none."""
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(given), path)
        return path
    if form == "json":
        text = json.dumps(given, ensure_ascii=False)
    elif form == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given)
    else:
        cells = [[v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in given]
        if form == "tsv":
            text = "".join("\t".join(line) + "\n" for line in [list(given[0]), *cells])
        else:
            with (path.parent / "plain").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([list(given[0]), *cells])
            text = (path.parent / "plain").read_bytes().decode()
            (path.parent / "plain").unlink()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
