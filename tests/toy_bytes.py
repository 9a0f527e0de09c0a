"""A third modality, all of it in this file: rows of bytes, which a table of vectors, one for each byte, turns into features.

A .bytes file holds rows of 1 + LENGTH bytes: the number of the class, and what is encoded.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from scqfaiss.data.items import ItemSource
from scqfaiss.data.open_file import OpenFile
from scqfaiss.encoders.base import FrontEncoder
from scqfaiss.errors import CheckpointError, ConfigError, DataError
from scqfaiss.modality import Modality, Reader

LENGTH = 12
BYTES = Modality(
    "bytes",
    noun="rows of bytes",
    items="byte rows",
    encoder="byte-table",
    encoder_class="toy_bytes:ByteTable",
    readers=(Reader((".bytes",), "toy_bytes:ByteSource", no_keys="a {} file has classes by position"),),
    choose_encoder="choose --encoder byte-table",
    make_features="there is no other way",
)


class ByteSource(ItemSource):
    modality = BYTES
    item_shape = (LENGTH,)
    features_name = "bytes"

    def __init__(self, path, options):
        file = OpenFile(path)
        rows, rest = divmod(file.size, 1 + LENGTH)
        content = file.read()
        file.close()
        if rest:
            raise DataError(f"{file.name}: file is truncated")
        self._x = np.frombuffer(content, np.uint8).reshape(rows, 1 + LENGTH)
        self.path, self.name, self.physical_rows = os.fspath(path), file.name, rows
        self.settle(None if options.labels_key is None else self._x[:, 0].astype(np.int64))

    def items(self, physical):
        return self._x[physical, 1:]


class ByteTable(FrontEncoder):
    @dataclass(frozen=True)
    class Config:
        table_width: int = 8

    modality = BYTES
    factory = "byte-table"

    def __init__(self, config, seed=0):
        nn.Module.__init__(self)
        self.config, self.members = config, 1
        self.width = self.d_in = config.table_width
        table = torch.randn(256, self.width, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(table)

    @classmethod
    def build(cls, config, name, arguments, weights=None, seed=0):
        if arguments or weights is not None:
            raise ConfigError("byte-table takes neither arguments nor weights")
        return cls(config, seed)

    @classmethod
    def load(cls, tensors, record, trusted=None):
        if tensors["table"].shape != (256, record["width"]):
            raise CheckpointError("the table is of another size")
        encoder = cls(cls.Config(record["width"]))
        encoder.load_state_dict({"table": torch.tensor(tensors["table"])})
        return encoder.eval()

    def record(self):
        tensors = {"table": self.table.detach().cpu().numpy().copy()}
        return tensors, {"modality": "bytes", "factory": self.factory, "width": self.width}

    def forward(self, x):
        return self.table[x.long()].mean(1)[None]

    def features(self, items):
        with torch.no_grad():
            return self.forward(torch.tensor(items))[0].numpy()


def write(path, n, seed):
    """n rows of 3 classes, each with letters of its own."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    letters = rng.integers(0, 6, (n, LENGTH)) + 100 + 6 * y[:, None]
    with open(path, "wb") as f:
        f.write(np.concatenate([y[:, None], letters], 1).astype(np.uint8).tobytes())
