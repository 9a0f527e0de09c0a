"""Tables that FAISS makes while it reads a residual quantizer, of which no limit of its reader knows."""

from __future__ import annotations

import faiss

MOST = 256 << 20  # bytes of such tables
SEARCH_TYPES = (faiss.AdditiveQuantizer.ST_LUT_nonorm, faiss.AdditiveQuantizer.ST_norm_float)


class ProductTables:
    """Watches the numbers of a residual quantizer go by. Unless told not to, FAISS makes tables of products of all codewords
    as it reads one, K^2 M^2 / 2 floats, which no limit knows of; raises RuntimeError before they grow large.
    """

    def __init__(self) -> None:
        self.place = -1  # reads since the name of the class
        self.d = self.floats = 0
        self.left = 0  # bytes of the codebooks still to come: FAISS reads a mebibyte at a time
        self.refused = False

    def __call__(self, block: bytes) -> None:
        if block == b"IxRq":
            self.place = 0
            return
        if self.place < 0:
            return
        if self.left > 0:
            self.left -= len(block)
            return
        self.place += 1
        value = int.from_bytes(block[:8], "little")
        # d, ntotal, two dummies, trained, metric; then d, M, nbits (length, content), trained, length of the codebooks, whose
        # content has no place, search type, two norms, training type. What shifts this order is none of the forms that pass the
        # allow-list.
        odd = {6: value > 1, 9: value == 0, 12: value == 0, 13: value not in SEARCH_TYPES}
        if odd.get(self.place):
            self._refuse("a residual quantizer of another form")
        if self.place == 7:
            self.d = value
        elif self.place == 12:
            self.floats, self.left = value, 4 * value
        elif self.place == 16:
            self.place = -1
            codewords = self.floats // max(self.d, 1)
            if not value & faiss.ResidualQuantizer.Skip_codebook_tables and 2 * codewords**2 > MOST:
                self._refuse("the limit of tables of products")

    def _refuse(self, why: str) -> None:
        self.refused = True
        raise RuntimeError(why)
