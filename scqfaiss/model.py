"""A trained model: rows in, codes out, in NumPy. Neither torch nor FAISS is needed to load it or to encode with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import bundle
from .arrays import MAX_CLASSES, Floats, as_features, transposed
from .codebooks import MAX_BEAM, RULES, Codebooks, Codes
from .contract import Progress, silent
from .data import Source
from .encoders import chain as chains
from .encoders.chain import Chain
from .errors import CheckpointError, ConfigError, ScqError, printable
from .files import PathLike, atomic_write
from .metadata import check_config
from .modality import IMAGES, REGISTRY, ROWS, Modality

SUFFIX = ".safetensors"
LISTS, LISTED = "codebooks.lists", 2  # the tensor of lists, and the format of a file that holds it
NETWORK = "backbone."  # what the names of the network's tensors begin with
MAX_NUMBER = 1e18  # in the tensors of a model: squares and products stay in float32
ASSIGN_ELEMENTS = 1 << 20  # distances to a codebook held at a time: 4 MB, which stays in the cache


class Model:
    """Encoder chain, codebooks and the facts of the training; of a model for images also the network before the chain.

    backbone: the tensors of that network by name. What it is stands in config['backbone']; encoders.backbone runs it, in
    torch. Rows of its features go in wherever rows go.

    config: plain JSON values; 'method', 'rule' ('l2' or 'ip') and 'encoder' are always there, and 'beam' where it is
    not 1: how many partial sums the encoding of additive codebooks carries along. So is 'list_beam', the nearest lists that
    the encoding tries, where the codebooks have lists. 'nested' is true where every prefix of a
    code was trained to be a code; 'C' counts the classes that the training told apart, 'classes' lists their numbers where
    others were left out; 'prefix' stands in a model that was cut from another: its SHA-256 and its bits.
    """

    def __init__(
        self,
        chain: Chain,
        codebooks: Codebooks,
        config: Mapping[str, Any],
        backbone: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        if chain.d_out != codebooks.d:
            raise CheckpointError(f"the encoder gives d={chain.d_out}, the codebooks need d={codebooks.d}")
        if config.get("rule") not in RULES:
            raise CheckpointError(f"the assignment rule is {config.get('rule')!r}, needs one of {', '.join(RULES)}")
        for key, name in (("beam", "beam"), ("list_beam", "beam of lists")):
            beam = config.get(key, 1)
            if type(beam) is not int or not 1 <= beam <= MAX_BEAM:
                raise CheckpointError(f"the {name} is {beam!r}, needs a whole number from 1 to {MAX_BEAM}")
        if codebooks.lists is None and config.get("list_beam", 1) != 1:
            raise CheckpointError(f"the beam of lists is {config['list_beam']}, and the codebooks have no lists")
        if codebooks.lists is not None and config["rule"] != "l2":
            raise CheckpointError(f"the assignment rule is '{config['rule']}', codebooks with lists need 'l2'")
        whole = config.get("prefix")
        if whole is not None and not _tells_of_a_whole(whole):
            raise CheckpointError(
                f"the model is a prefix of {whole!r}, needs the SHA-256 and the bits of the whole one"
            )
        if not _tells_of_classes(config):
            raise CheckpointError(
                "the class numbers of the model need to be whole numbers that rise, one for each of its classes"
            )
        if (backbone is None) != ("backbone" not in config) or not isinstance(config.get("backbone", {}), dict):
            raise CheckpointError("a network for images needs its tensors and its description")
        modality = config.get("backbone", {}).get("modality", IMAGES.name)
        if not isinstance(modality, str) or modality not in REGISTRY:
            raise CheckpointError(
                f"the model's encoder is of '{printable(str(modality))[:80]}', which is not known here"
            )
        self.chain, self.codebooks, self.backbone = chain, codebooks, backbone
        self.config = dict(config)
        self._sha256 = ("", "")  # config as JSON, and the hash of the file with it

    @property
    def modality(self) -> Modality:
        """Of what goes in: rows of features, unless an encoder for something else stands in front."""
        if self.backbone is None:
            return ROWS
        # The record of an encoder of images names no modality.
        return REGISTRY[self.config["backbone"].get("modality", IMAGES.name)]

    @property
    def d_in(self) -> int:
        """Dimension of the rows that go in."""
        return self.chain.d_in

    def embed(self, x: Any, name: str = "rows") -> Floats:
        """x (n, d_in) floats -> z (n, d) float32, what is coded on one side and searched with on the other; (d_in,) is one row.

        Raises DataError on another form or on rows that are not finite, ConfigError on another width.
        """
        x = as_features(x, name, one_row=True)
        if x.shape[1] != self.d_in:
            how = transposed(len(x), x.shape[1], self.d_in)
            raise ConfigError(f"{name} have d={x.shape[1]}, the model needs d={self.d_in}{how}")
        return self.chain(x, name)

    def encode(self, x: Any, name: str = "rows") -> Codes:
        """x (n, d_in) floats -> codes (n, M) uint8, or uint16 above 8 bits a codebook; with lists, (n, 1 + M) and of the type
        that holds their numbers. Labels play no part. Raises as embed.
        """
        return self.assign(self.embed(x, name))

    def assign(self, z: Floats) -> Codes:
        """z (n, d) float32 -> codes (n, M), or (n, 1 + M) with lists, by the method's own rule."""
        b = self.codebooks
        codes = np.empty((len(z), b.columns), b.code_dtype)
        step, beams = (
            max(64, ASSIGN_ELEMENTS // max(b.K, b.L)),
            (self.config.get("beam", 1), self.config.get("list_beam", 1)),
        )
        for i in range(0, len(z), step):
            codes[i : i + step] = b.assign(z[i : i + step], self.config["rule"], *beams)
        return codes

    def prefix(self, bits: int) -> Model:
        """The model of the first `bits` of every code: its codes are the first columns of this model's, bit for bit.

        Galleries of either are searched and changed with either, see `origin`. Lists stay, and 0 bits leave them alone. Raises
        ConfigError where `bits` are not those of the first few codebooks, or where codes are not nested: product codebooks
        each hold a part of z, a beam chooses the first codebooks (of lists: the list) with the later ones in view, and
        codebooks trained for their whole sum alone make poor prefixes.
        """
        codebooks = self.codebooks
        M, remainder = divmod(bits, codebooks.nbits) if type(bits) is int else (0, 1)
        if remainder or not int(codebooks.lists is None) <= M <= codebooks.M:
            raise ConfigError(
                f"bits is {bits}, needs a multiple of nbits={codebooks.nbits} up to the model's {codebooks.bits}"
            )
        if M == codebooks.M:
            return self
        reason = self._not_nested(M)
        if reason is not None:
            raise ConfigError(f"{reason}: codes of {bits} bits need a model of their own, or one of method dpq")
        whole = self.config.get("prefix", {"sha256": self.origin, "bits": codebooks.bits})
        config = self.config | {"bits": bits, "prefix": whole}
        training = config.get("training")
        if isinstance(training, dict) and isinstance(training.get("codewords_used"), list):
            config["training"] = training | {"codewords_used": training["codewords_used"][:M]}
        if M == 0 and codebooks.lists is not None:
            first = Codebooks.of_lists(codebooks.lists, codebooks.metric)
        else:
            first = Codebooks(codebooks.kind, codebooks.centroids[:M], codebooks.metric, codebooks.lists)
        return Model(self.chain, first, config, self.backbone)

    def _not_nested(self, M: int) -> str | None:
        """None, or why the first M codebooks of a code are no code; with M = 0 its list."""
        method = self.config["method"]
        if self.config.get("list_beam", 1) != 1:
            return (
                f"the model tries the {self.config['list_beam']} nearest lists, and chooses list and codewords together"
            )
        if M == 0:  # the nearest list, whatever codes what it leaves over
            return None
        if self.codebooks.kind != "additive":
            return f"product codebooks of method {method} each hold a part of the features"
        if self.config.get("beam", 1) != 1:
            return f"the model encodes with a beam of {self.config['beam']}, which chooses all codebooks together"
        if self.config.get("nested") is not True:
            return f"method {method} trains its codebooks for the whole code alone"
        return None

    @property
    def origin(self) -> str:
        """SHA-256 (hex) by which index metadata name their model: of the whole model, where this one is a prefix."""
        whole: str = self.config.get("prefix", {}).get("sha256") or self.sha256
        return whole

    # ------------------------------------------------------------------------------------------------------------ file
    def to_bytes(self) -> bytes:
        """The model file, the same bytes for the same model."""
        tensors, encoder = self.chain.pack()
        b = self.codebooks
        config = self.config | {"chain": encoder, "codebooks": {"kind": b.kind, "metric": b.metric}}
        tensors |= {f"{NETWORK}{name}": t for name, t in (self.backbone or {}).items()}
        tensors["codebooks.centroids"] = b.centroids
        if b.lists is None:
            return bundle.Bundle(tensors, config).to_bytes()
        # Readers of format 1 would pass over the lists, and encode wrongly.
        return bundle.Bundle(tensors | {LISTS: b.lists}, config, LISTED).to_bytes()

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the model file."""
        config = json.dumps(self.config, sort_keys=True)
        if self._sha256[0] != config:  # new, or changed since
            self._sha256 = config, hashlib.sha256(self.to_bytes()).hexdigest()
        return self._sha256[1]

    def save(self, path: PathLike) -> None:
        """Write the model file, whole or not at all. Raises WriteError; ConfigError unless it ends in .safetensors."""
        with atomic_write(path, suffix=SUFFIX) as output:
            self.save_to(output)

    def save_to(self, output: Any) -> None:
        """Write into an AtomicFile of files.atomic_write."""
        self.prepare(output)
        output.place()

    def prepare(self, output: Any) -> None:
        """Write beside the place of an AtomicFile of files.atomic_write."""
        data = self.to_bytes()
        output.prepare(lambda f: f.write(data), check=lambda temporary: check_saved(temporary, data), nbytes=len(data))

    @staticmethod
    def load(path: PathLike) -> Model:
        """Read a model file. Raises ConfigError where it is missing, CheckpointError where it is damaged or foreign."""
        return Model._of(*bundle.read(path), printable(path))

    @staticmethod
    def from_bytes(data: bytes, name: str = "the model") -> Model:
        """The inverse of to_bytes. Raises as load does; name: what messages call it."""
        return Model._of(bundle.from_bytes(data, name), hashlib.sha256(data).hexdigest(), name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its file is written: with its hash, and without code."""
        return Model.from_bytes, (self.to_bytes(),)

    @staticmethod
    def _of(stored: bundle.Bundle, sha256: str, name: str) -> Model:
        config = dict(stored.config)
        check_config(config, name)
        for key, t in stored.tensors.items():
            of_rows = t.dtype == np.float32 and not key.startswith(NETWORK)
            if of_rows and np.abs(t[np.isfinite(t)]).max(initial=0) > MAX_NUMBER:
                raise CheckpointError(f"{name}: tensor {printable(key)} holds numbers above {MAX_NUMBER:g}")
        if (LISTS in stored.tensors) != (stored.format == LISTED):
            raise CheckpointError(
                f"{name}: a tensor {LISTS} and format {LISTED} need one another, the file is of format {stored.format}"
            )
        try:
            shape = config.pop("codebooks")
            chain = chains.unpack(stored.tensors, config.pop("chain"))
            codebooks = Codebooks(
                shape["kind"],
                stored.tensors["codebooks.centroids"],
                shape["metric"],
                stored.tensors.get(LISTS),
            )
            of_network = {n.removeprefix(NETWORK): t for n, t in stored.tensors.items() if n.startswith(NETWORK)}
            model = Model(chain, codebooks, config, of_network or None)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{name}: a model without {error}") from error
        except ScqError as error:  # the parts do not fit together, whatever each of them raised
            raise CheckpointError(f"{name}: {error}") from error
        model._sha256 = json.dumps(model.config, sort_keys=True), sha256
        return model


def _tells_of_classes(config: Mapping[str, Any]) -> bool:
    """Whether a config that holds 'C', and 'classes', holds what training writes."""
    C, numbers = config.get("C", 0), config.get("classes")
    if type(C) is not int or not 0 <= C <= MAX_CLASSES:
        return False
    if numbers is None:
        return "classes" not in config
    if not isinstance(numbers, list) or len(numbers) != C or any(type(c) is not int for c in numbers):
        return False
    return all(a < b for a, b in zip([-1, *numbers], [*numbers, MAX_CLASSES]))


def _tells_of_a_whole(prefix: Any) -> bool:
    """Whether the 'prefix' of a config is what Model.prefix writes."""
    return isinstance(prefix, dict) and len(str(prefix.get("sha256"))) == 64 and type(prefix.get("bits")) is int


def check_saved(path: Path, data: bytes) -> None:
    """Read a freshly written model back."""
    if path.read_bytes() != data:
        raise CheckpointError(f"{printable(path)}: read back differently from what was written")
    Model.load(path)


def check_width(model: Model, source: Source) -> None:
    """Raise ConfigError unless the rows of a source are as wide as those that the model takes."""
    if source.d != model.d_in:
        how = transposed(len(source), source.d, model.d_in)
        raise ConfigError(f"{source.name}: rows have d={source.d}, the model needs d={model.d_in}{how}")


def encode_source(model: Model, source: Source, progress: Progress = silent) -> Codes:
    """Codes of all rows of a source, as Model.encode gives them, block by block; the next is read while one is encoded."""
    from threadpoolctl import threadpool_limits  # a model needs NumPy and safetensors alone

    check_width(model, source)
    codes = np.empty((len(source), model.codebooks.columns), model.codebooks.code_dtype)
    workers = max(2, len(os.sched_getaffinity(0)))
    # A part for each core, each on one thread from end to end: products on all cores would leave them between one another
    # and, beside a busy process, wait for the one that lost its core.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        for i, x in read_ahead(source.blocks()):
            cuts = len(x) * np.arange(workers) // workers
            parts = pool.map(
                lambda rows, first: model.assign(model.chain(rows, source.name, first)),
                np.split(x, cuts[1:]),
                (i + cuts).tolist(),
            )  # checked by the source
            codes[i : i + len(x)] = np.concatenate(list(parts))
            progress("encode", i + len(x), len(source), "")
    return codes


def read_ahead(blocks: Iterator[Any]) -> Iterator[Any]:
    """The same blocks, each read by a second thread while the caller works on the one before."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block
