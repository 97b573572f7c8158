"""Tables on disk: parquet, which keeps types and ``attrs`` exact, or CSV, which everything reads."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def write_table(path: str | Path, table: "pd.DataFrame") -> Path:
    """The path, holding the table as parquet (with its ``attrs``) or CSV (without them), by suffix; else ValueError."""
    path = Path(path)
    try:
        return atomic_write(path, _encode(table, path))
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}; choose a folder you can write to") from error


def read_table(path: str | Path) -> "pd.DataFrame":
    """The table in a ``.parquet`` or ``.csv`` file, as `write_table` wrote it; else ValueError."""
    import pyarrow as pa

    path = Path(path)
    _suffix(path)
    try:
        data = path.read_bytes()
        return decode_parquet(data) if path.suffix == ".parquet" else _decode_csv(data)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; give an existing .parquet or .csv") from error
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(f"{path} is damaged or no table ({reason}); write it again") from error


def _encode(table: "pd.DataFrame", path: Path) -> bytes:
    if _suffix(path) == ".parquet":
        return encode_parquet(table, path.name)
    plain = table.index.nlevels == 1 and table.index.name is None and table.index.dtype.kind == "i"
    return table.to_csv(None, index=not plain, na_rep="nan", lineterminator="\n").encode("utf-8")


def encode_parquet(table: "pd.DataFrame", name: str = "table.parquet", *, compression: Any = "snappy") -> bytes:
    """The table and its ``attrs`` as the bytes of a parquet file; an error speaks of it by `name`."""
    import pyarrow as pa

    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, compression=compression)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{name} cannot hold this table: {_first_line(error)}; use plain columns") from error
    return buffer.getvalue()


def decode_parquet(data: bytes) -> "pd.DataFrame":
    """The table in the bytes of a parquet file, with its ``attrs``."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(data))


def markdown(table: "pd.DataFrame") -> str:
    """The table in markdown: numbers to the right, text to the left, a bar in a cell escaped."""
    text = table.astype(str).apply(lambda column: column.str.replace("|", "\\|"))
    rules = ["--:" if text[name].str.match(r"[-+\d]|$").all() else ":--" for name in text]
    return "\n".join(f"| {' | '.join(line)} |" for line in [text.columns, rules, *text.to_numpy()])


def _suffix(path: Path) -> str:
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"a table cannot be kept in {path.name!r}; use a name that ends in .parquet or .csv")
    return path.suffix


def _decode_csv(data: bytes) -> "pd.DataFrame":
    import pandas as pd

    # Empty strings stay empty strings; missing numbers are written "nan".
    options: dict[str, Any] = {"keep_default_na": False, "na_values": ["nan", "NaN"]}
    if tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1):
        options["float_precision"] = "round_trip"  # which later versions do by themselves
    table = pd.read_csv(io.BytesIO(data), **options)
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) or not (column == "").any() or (column == "").all():
            continue
        numbers = pd.to_numeric(column.where(column != ""), errors="coerce")  # a blank cell among numbers is missing
        if numbers.notna().equals(column != ""):
            table[name] = numbers
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".;")
