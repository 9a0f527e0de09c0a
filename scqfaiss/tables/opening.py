"""Tables, frames and datasets in memory: told apart without an import, read in pieces."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ..dependencies import missing
from ..errors import DataError
from . import columns as choosing
from .labels import class_names, ids_of, labels_of
from .numbers import is_list, matrix, number_type, width


class DatasetRows:
    """A dataset of Hugging Face as a table of Arrow: its rows are read from its files when they are asked for."""

    def __init__(self, dataset: Any) -> None:
        self._rows = dataset.with_format("arrow")
        self.schema, self.num_rows = dataset.features.arrow_schema, len(dataset)

    def slice(self, i: int, n: int) -> Any:
        return self._rows[i : i + n]

    def column(self, name: str) -> Any:
        return self._rows.select_columns(name)[:].column(name) if self.num_rows else self._rows.data.table.column(name)


def is_arrow(x: Any) -> bool:
    """Whether `x` is a table or a column that Arrow can take: nothing is imported to tell."""
    return hasattr(x, "__arrow_c_stream__") or hasattr(x, "__arrow_c_array__") or _of_hugging_face(x)


def _of_hugging_face(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "datasets" and type(x).__name__.endswith(("Dataset", "DatasetDict"))


def as_table(x: Any, name: str) -> Any:
    """A table, frame or dataset -> pyarrow.Table or DatasetRows; None where `x` is a column, or nothing of Arrow.

    Raises ConfigError without pyarrow, DataError for a dataset of several splits or one that is streamed.
    """
    if not is_arrow(x):
        return None
    try:
        import pyarrow
    except ImportError as error:
        if getattr(x, "ndim", 2) == 1:  # a column of pandas, which NumPy takes as it is
            return None
        raise missing(error, f"{name}, a {type(x).__name__},") or error from error
    if _of_hugging_face(x):
        kind = type(x).__name__
        if kind != "Dataset":
            how = "choose a split: x['train']" if kind.endswith("Dict") else "load it without streaming"
            raise DataError(f"{name} is a {kind}, needs a Dataset; {how}")
        return DatasetRows(x)
    if isinstance(x, pyarrow.Table):
        return x
    try:
        return pyarrow.table(x)
    except (TypeError, ValueError):  # a column, as a rule
        return None


def as_column(x: Any) -> Any:
    """A column of lists -> its rows (n, d) as NumPy has them; anything else as it is."""
    try:
        import pyarrow

        column = pyarrow.chunked_array(x) if hasattr(x, "__arrow_c_stream__") else pyarrow.chunked_array([x])
    except (ImportError, TypeError, ValueError):
        return x
    if not is_list(column.type):
        return x
    return matrix([column], width(column), "rows", 0)


class TableRows:
    """The features of a table of Arrow as an array (n, d), read where it is sliced. Raises DataError where there are none."""

    def __init__(self, table: Any, name: str, *, labelled: bool = False) -> None:
        """labelled: choose the columns of labels and ids, too."""
        self.columns = choosing.choose(table.schema, name, any_labels=labelled, any_ids=labelled)
        self.name, self._table, self._labelled = f"{name}: {self.columns.features_name}", table, labelled
        self.dtype = number_type(table.schema, self.columns.features, self.name)
        d = len(self.columns.features)
        if d == 1:
            first = table.slice(0, min(1024, table.num_rows)).column(self.columns.features[0])
            d = max(1, width(first))
        self.shape = (table.num_rows, d)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        i, j, _ = rows.indices(self.shape[0])
        part = self._table.slice(i, max(0, j - i))
        return matrix([part.column(c) for c in self.columns.features], self.shape[1], self.name, i)

    def labels(self) -> tuple[Any, Any]:
        """(labels, names of classes), None where the table has none."""
        column = self.columns.labels
        if column is None:
            return None, None
        names = class_names(self._table.schema, column)
        return labels_of(self._table.column(column), names, f"{self.name.partition(':')[0]}: {column}")

    def ids(self) -> Any:
        """Ids, None where the table has none."""
        column = self.columns.ids
        if column is None:
            return None
        return ids_of(self._table.column(column), f"{self.name.partition(':')[0]}: {column}", asked=False)
