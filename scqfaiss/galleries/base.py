"""What all galleries have in common, one file or many: how queries are taken and encoded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import Floats, Ints, as_features, transposed
from ..codebooks import Codebooks, Codes
from ..errors import ConfigError, DataError, warn
from ..model import Model
from ..options import as_whole
from ..targets.queries import MAX_SCORE
from .hits import Hits, RangeHits
from .promises import Promised


class AnyGallery(Promised):
    """An open gallery. model: the Model that encodes queries, None where the index holds its encoder."""

    model: Model | None

    # ---------------------------------------------------------------------------------------------- what each has by itself
    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, Any] | None:
        """Facts as written by the export; None for plain FAISS files."""

    @property
    @abstractmethod
    def ntotal(self) -> int: ...

    @property
    @abstractmethod
    def index_d(self) -> int:
        """Dimension of encoded queries."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether a search finds the best by the codes' own scores."""

    @property
    @abstractmethod
    def every_list(self) -> int | None:
        """The nprobe with which a search looks at every row, where codes have lists."""

    @property
    @abstractmethod
    def checksum(self) -> str | None:
        """SHA-256 of what is open, in hexadecimal digits; None for plain FAISS files."""

    @abstractmethod
    def search(
        self,
        xq: Any,
        k: int = 10,
        *,
        encoded: bool = False,
        decoded: bool = False,
        allow: Any = None,
        deny: Any = None,
        nprobe: int | None = None,
        known: Any = None,
        name: str = "queries",
        check_finite: bool = True,
    ) -> Hits:
        """The k nearest vectors of each query."""

    @abstractmethod
    def range_search(
        self,
        xq: Any,
        threshold: float,
        *,
        encoded: bool = False,
        decoded: bool = False,
        allow: Any = None,
        deny: Any = None,
        known: Any = None,
        name: str = "queries",
        check_finite: bool = True,
    ) -> RangeHits:
        """All vectors beyond a threshold, of each query."""

    @abstractmethod
    def unpack(self) -> tuple[Codebooks, Codes, Ints]:
        """Codebooks, codes (n, M) and ids (n,)."""

    @abstractmethod
    def ids(self) -> Ints:
        """(n,) ids, in no order."""

    @abstractmethod
    def reconstruct(self, ids: Any) -> Floats:
        """ids (n,) -> the vectors their codes stand for."""

    @abstractmethod
    def encoded(self, z: Floats) -> Floats:
        """What `embed` made -> queries as the codes meet them."""

    @abstractmethod
    def refresh(self) -> bool:
        """Open anew what stands under the name now -> whether it is another."""

    # -------------------------------------------------------------------------------------------------------- queries
    @property
    def needs_model(self) -> bool:
        """True where queries must go through the model first."""
        return self.metadata is not None and self.metadata.get("encoder") == "model"

    @property
    def d(self) -> int:
        """Dimension of the queries."""
        return self.model.d_in if self.model is not None and self.needs_model else self.index_d

    def facts(self) -> dict[str, Any]:
        """What is known without a look at the codes: the export's metadata, with a calibration as a table, and what is open."""
        if self.metadata is None:  # made by another program
            return {"vectors": self.ntotal, "query_d": self.d}
        found = {key: value for key, value in self.metadata.items() if key != "calibration"}
        if self.has_calibration:
            calibration, share = self.promises
            found["calibration"] = calibration.table(share)
        return found | {"vectors": self.ntotal, "query_d": self.metadata["d_in"], "exact": self.exact}

    def embed(self, xq: Any, name: str = "queries", *, known: Any = None, check_finite: bool = True) -> Floats:
        """Query rows (nq, d) -> what the FAISS index is searched with, (nq, index_d) float32. known, check_finite: see search."""
        rows = self._rows(xq, name, check_finite)
        if self.needs_model and self.model is not None:
            return self.model.queries(rows, name, known)
        if known is not None:
            raise ConfigError(
                f"known is given, and the codes of {self.name} have no content part; that takes a model trained with "
                "--content-bits"
            )
        return rows

    def known(self, xq: Any, name: str = "queries", *, check_finite: bool = True) -> Floats:
        """Query rows (nq, d) -> the probability that the class of each is one of the training's, (nq,) float32.

        Raises ConfigError where the gallery's model has no gate to tell it, and as search does.
        """
        xq = self._rows(xq, name, check_finite)
        if not self.has_gate or self.model is None:
            raise ConfigError(
                f"{self.name} cannot tell queries of known classes from others: that takes a model with a gate, trained with "
                "--content-bits"
            )
        return self.model.gate_of(xq, name)

    @property
    def has_gate(self) -> bool:
        """Whether `known` can tell anything: the model is here, and has content codes and a gate."""
        return self.needs_model and self.model is not None and self.model.has_gate

    def clip(self, k: int) -> int:
        """k, or with a warning the number of vectors where that is smaller. Raises ConfigError for k < 1."""
        return self._clip(k, self.ntotal)

    def _clip(self, k: int, n: int) -> int:
        k = as_whole("k", k)
        if k < 1:
            raise ConfigError(f"k is {k}, needs 1 or more")
        if k > n:
            warn(f"k={k:,} is more than the {n:,} vectors of {self.name}: returned all of them")
        return min(k, max(n, 1))

    def _rows(self, xq: Any, name: str, check_finite: bool) -> Floats:
        xq = as_features(xq, name, finite=check_finite, one_row=True)
        if self.needs_model and self.model is None:  # how wide its rows are, only the model knows
            raise ConfigError(f"{self.name} needs the model its codes came from; give --model")
        if xq.shape[1] != self.d:
            how = transposed(len(xq), xq.shape[1], self.d)
            raise ConfigError(f"{name}: queries have d={xq.shape[1]}, {self.name} needs d={self.d}{how}")
        rows: Floats = xq
        return rows

    def _queries(self, xq: Any, width: int | None, name: str, check_finite: bool, known: Any) -> Floats:
        """What an index is searched with. width: of queries that need no encoding any more, None for rows."""
        if width is None:
            return self.embed(xq, name, known=known, check_finite=check_finite)
        if known is not None:
            raise ConfigError(f"{name}: known weighs queries as they are encoded, and these are encoded already")
        z: Floats = as_features(xq, name, finite=check_finite, one_row=True)
        if z.shape[1] != width:
            raise ConfigError(f"{name}: encoded queries have d={z.shape[1]}, the index needs d={width}")
        return z

    def _visited_of(self, nprobe: int | None, lists: int | None) -> int | None:
        """How many of so many lists a search visits; None where the file or the target decides."""
        if nprobe is None:
            return None
        nprobe = as_whole("nprobe", nprobe)
        if nprobe < 1 or lists is None:
            raise ConfigError(f"nprobe is {nprobe}: " + ("needs 1 or more" if lists else f"{self.name} has no lists"))
        if nprobe > lists:
            warn(f"nprobe={nprobe:,} is more than the {lists:,} lists of {self.name}: visited all of them")
        return min(nprobe, lists)


def threshold_of(value: Any) -> float:
    """A threshold of a search, held to what scores can be. Raises ConfigError for what is no number."""
    if not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise ConfigError(f"threshold is {value}, needs a number")
    return float(np.clip(value, -MAX_SCORE, MAX_SCORE))


def absent(missing: Ints, asked: int, name: str) -> DataError:
    """What to say of ids that a gallery does not hold."""
    first = ", ".join(str(i) for i in missing[:5])
    return DataError(f"ids {first} are not in {name} ({len(missing):,} of {asked:,})")
