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
from .arrays import Floats, as_features, transposed
from .calibration.lengths import Calibrations
from .calibration.tables import Calibration
from .codebooks import Codebooks, Codes
from .content import PREFIX as OF_CONTENT
from .content import Content, Joint
from .contract import Progress, silent
from .data import Source
from .encoders import chain as chains
from .encoders.chain import Chain
from .errors import CheckpointError, ConfigError, ScqError, printable
from .files import PathLike, atomic_write
from .metadata import check_config, check_facts
from .modality import IMAGES, REGISTRY, ROWS, Modality

SUFFIX = ".safetensors"
LISTS, LISTED = "codebooks.lists", 2  # the tensor of lists, and the format of a file that holds it
WITH_CONTENT = 3  # the format of a file with content codes, with or without lists
NETWORK = "backbone."  # what the names of the network's tensors begin with
MAX_NUMBER = 1e18  # in the tensors of a model: squares and products stay in float32
ASSIGN_ELEMENTS = 1 << 20  # distances to a codebook held at a time: 4 MB, which stays in the cache


class Model:
    """Encoder chain, codebooks and the facts of the training; of a model for images also the network before the chain.

    semantic: the codebooks that the method trained. content: what else of a row is coded, for classes that the training has not
    seen, or None. codebooks: those of whole codes, which galleries hold: the semantic ones, or both joined.

    backbone: the tensors of that network by name. What it is stands in config['backbone']; encoders.backbone runs it, in
    torch. Rows of its features go in wherever rows go.

    calibrations: what held-out rows told of the scores of its codes, or None.

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
        content: Content | None = None,
        calibrations: Calibrations | None = None,
    ) -> None:
        if chain.d_out != codebooks.d:
            raise CheckpointError(f"the encoder gives d={chain.d_out}, the codebooks need d={codebooks.d}")
        check_facts(config, codebooks.lists is not None, backbone is not None)
        self.chain, self.semantic, self.content, self.backbone = chain, codebooks, content, backbone
        self.joint = None if content is None else _joint(chain, codebooks, content)
        self.codebooks = codebooks if self.joint is None else self.joint.codebooks
        self.calibrations = None if calibrations is None else calibrations.checked(self.codebooks.d)
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

    @property
    def has_gate(self) -> bool:
        """Whether `known` can tell anything."""
        return self.content is not None and self.content.gate is not None

    @property
    def calibration(self) -> Calibration | None:
        """Of codes of this length; None where there is none."""
        return None if self.calibrations is None else self.calibrations.lengths.get(self.codebooks.bits)

    def calibrated(self, calibrations: Calibrations | None) -> Model:
        """The same model with these calibrations, or without any."""
        return Model(self.chain, self.semantic, self.config, self.backbone, self.content, calibrations)

    def embed(self, x: Any, name: str = "rows", known: Any = None) -> Floats:
        """x (n, d_in) floats -> what is searched with, (n, d) float32; (d_in,) is one row. Without content codes that is z.

        With content codes it is [z ; w v], laid out for the joint codebooks. known sets w: how certain the class of each row is
        one of the training's, a number from 0 to 1 or (n,) of them; None or 'auto' asks the model's gate, and says 1 where there
        is none or it is off. Raises DataError on another form or on rows that are not finite, ConfigError on another width or on
        another `known`.
        """
        return self.queries(self._rows(x, name), name, known)

    def vectors(self, x: Any, name: str = "rows") -> Floats:
        """x (n, d_in) floats -> what is coded, (n, d) float32: z, or [z ; v], laid out like queries. Raises as embed."""
        return self._vectors(self._rows(x, name), name)

    def of_semantic(self, z: Floats, x: Floats, name: str = "rows") -> tuple[Floats, Floats]:
        """z (n, d) float32 that other heads made of rows x (n, d_in) -> what would search for them, and what would be coded."""
        if self.content is None or self.joint is None:
            return z, z
        v = self.content.chain(x, name)
        return self.joint.join(z, v, self.content.weight(self.content.known(z, v))), self.joint.join(z, v)

    def known(self, x: Any, name: str = "rows") -> Floats:
        """x (n, d_in) floats -> the probability that the class of each row is one of the training's, (n,) float32.

        Raises ConfigError where the model has no gate, and as embed.
        """
        return self.gate_of(self._rows(x, name), name)

    def encode(self, x: Any, name: str = "rows") -> Codes:
        """x (n, d_in) floats -> codes (n, M) uint8, or uint16 above 8 bits a codebook; with lists, (n, 1 + M) and of the type
        that holds their numbers. Labels play no part. Raises as embed.
        """
        return self.assign(self.vectors(x, name))

    def _rows(self, rows: Any, name: str) -> Floats:
        x: Floats = as_features(rows, name, one_row=True)
        if x.shape[1] != self.d_in:
            how = transposed(len(x), x.shape[1], self.d_in)
            raise ConfigError(f"{name} have d={x.shape[1]}, the model needs d={self.d_in}{how}")
        return x

    def queries(self, x: Floats, name: str = "rows", known: Any = None) -> Floats:
        """The same as embed for rows (n, d_in) float32 that were looked at already."""
        if self.content is None or self.joint is None:
            if known is not None:
                raise ConfigError("known is given, and the model has no content codes; train it with --content-bits")
            return self.chain(x, name)
        z, v = self.chain(x, name), self.content.chain(x, name)
        return self.joint.join(z, v, self.content.weight(self.content.known(z, v, known)))

    def gate_of(self, x: Floats, name: str = "rows") -> Floats:
        """The same as known for rows (n, d_in) float32 that were looked at already."""
        if self.content is None or self.content.gate is None:
            what = "content codes" if self.content is None else "gate, which needs one label a row, and four classes"
            more = "; train it with --content-bits" if self.content is None else ""
            raise ConfigError(f"the model cannot tell known classes from others: it has no {what}{more}")
        return self.content.gate(self.chain(x, name), self.content.chain(x, name))

    def _vectors(self, x: Floats, name: str, first: int = 0) -> Floats:
        z = self.chain(x, name, first)
        if self.content is None or self.joint is None:
            return z
        return self.joint.join(z, self.content.chain(x, name, first))

    def assign(self, vectors: Floats) -> Codes:
        """vectors (n, d) float32 -> codes (n, M), or (n, 1 + M) with lists, by the method's own rule; content codes by the
        smallest distance.
        """
        b = self.codebooks
        codes = np.empty((len(vectors), b.columns), b.code_dtype)
        step = max(64, ASSIGN_ELEMENTS // max(b.K, b.L))
        for i in range(0, len(vectors), step):
            codes[i : i + step] = self._assign(vectors[i : i + step])
        return codes

    def _assign(self, vectors: Floats) -> Codes:
        rule, beams = self.config["rule"], (self.config.get("beam", 1), self.config.get("list_beam", 1))
        if self.content is None or self.joint is None:
            return self.semantic.assign(vectors, rule, *beams)
        z, v = self.joint.split(vectors)
        lists, words = self.semantic.split(self.semantic.assign(z, rule, *beams))
        return self.codebooks.joined(lists, np.concatenate([words, self.content.assign(v, lists)], axis=1))

    def prefix(self, bits: int) -> Model:
        """The model of the first `bits` of every code: its codes are the first columns of this model's, bit for bit.

        Galleries of either are searched and changed with either, see `origin`. Lists stay, and 0 bits leave them alone. Raises
        ConfigError where `bits` are not those of the first few codebooks, where there are content codes, which stand last, or
        where codes are not nested: product codebooks each hold a part of z, a beam chooses the first codebooks (of lists: the
        list) with the later ones in view, and codebooks trained for their whole sum alone make poor prefixes.
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
        return Model(self.chain, first, config, self.backbone, calibrations=self.calibrations)

    def _not_nested(self, M: int) -> str | None:
        """None, or why the first M codebooks of a code are no code; with M = 0 its list."""
        method = self.config["method"]
        if self.content is not None:
            return f"the last {self.content.bits} bits are content codes, which every prefix would leave out"
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
        """SHA-256 (hex) by which index metadata name their model: of the whole model, where this one is a prefix, and without its
        calibration.
        """
        whole: str | None = self.config.get("prefix", {}).get("sha256")
        if whole is not None:
            return whole
        return self.sha256 if self.calibrations is None else self.calibrations.model_sha256

    # ------------------------------------------------------------------------------------------------------------ file
    def to_bytes(self) -> bytes:
        """The model file, the same bytes for the same model."""
        tensors, encoder = self.chain.pack()
        b = self.semantic
        config = self.config | {"chain": encoder, "codebooks": {"kind": b.kind, "metric": b.metric}}
        tensors |= {f"{NETWORK}{name}": t for name, t in (self.backbone or {}).items()}
        tensors["codebooks.centroids"] = b.centroids
        # Readers of format 1 would pass over lists, those of 2 over content codes, and encode wrongly.
        if b.lists is not None:
            tensors[LISTS] = b.lists
        if self.calibrations is not None:
            of_calibration, config["calibration"] = self.calibrations.pack()
            tensors |= of_calibration
        if self.content is not None:
            of_content, config["content"] = self.content.pack()
            return bundle.Bundle(tensors | of_content, config, WITH_CONTENT).to_bytes()
        return bundle.Bundle(tensors, config, 1 if b.lists is None else LISTED).to_bytes()

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
        _check_format(stored, name)
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
            content = Content.unpack(stored.tensors, config.pop("content")) if stored.format == WITH_CONTENT else None
            calibrations = Calibrations.unpack(stored.tensors, config.pop("calibration", None))
            model = Model(chain, codebooks, config, of_network or None, content, calibrations)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{name}: a model without {error}") from error
        except ScqError as error:  # the parts do not fit together, whatever each of them raised
            raise CheckpointError(f"{name}: {error}") from error
        model._sha256 = json.dumps(model.config, sort_keys=True), sha256
        return model


def _joint(chain: Chain, semantic: Codebooks, content: Content) -> Joint:
    """Raises CheckpointError where the parts do not fit one another."""
    if content.chain.d_in != chain.d_in:
        raise CheckpointError(f"the content encoder takes d={content.chain.d_in}, the other one d={chain.d_in}")
    if content.gate is not None and content.gate.classes_z.shape[1] != semantic.d:
        raise CheckpointError(
            f"the gate takes z of d={content.gate.classes_z.shape[1]}, the codebooks need d={semantic.d}"
        )
    return Joint(semantic, content.codebooks)


def _check_format(stored: bundle.Bundle, name: str) -> None:
    """Raise CheckpointError unless the format of a file is the one that its lists and content codes need."""
    told = "content" in stored.config
    stray = not told and any(key.startswith(OF_CONTENT) for key in stored.tensors)
    if stray or told != (stored.format == WITH_CONTENT):
        raise CheckpointError(
            f"{name}: content codes and format {WITH_CONTENT} need one another, the file is of format {stored.format}"
        )
    if not told and (LISTS in stored.tensors) != (stored.format == LISTED):
        raise CheckpointError(
            f"{name}: a tensor {LISTS} and format {LISTED} need one another, the file is of format {stored.format}"
        )


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


def encode_source(model: Model, source: Source, progress: Progress = silent, threads: int = 0) -> Codes:
    """Codes of all rows of a source, as Model.encode gives them, block by block; the next is read while `threads` encode one."""
    from threadpoolctl import threadpool_limits  # a model needs NumPy and safetensors alone

    check_width(model, source)
    codes = np.empty((len(source), model.codebooks.columns), model.codebooks.code_dtype)
    workers = threads or max(2, len(os.sched_getaffinity(0)))
    # A part for each core, each on one thread from end to end: products on all cores would leave them between one another
    # and, beside a busy process, wait for the one that lost its core.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        for i, x in read_ahead(source.blocks()):
            cuts = len(x) * np.arange(workers) // workers
            parts = pool.map(
                lambda rows, first: model.assign(model._vectors(rows, source.name, first)),
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
