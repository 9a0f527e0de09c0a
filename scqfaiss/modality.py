"""What an item of a data set is: a row of features, or something that an encoder turns into one first.

A Source has a modality, and so have an encoder and a model; whether two fit together is one comparison. REGISTRY names
them all: a new modality is one file, with its Modality, its reader and its encoder, and one line there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reader:
    """A kind of file. Nothing of it is imported before a file of this kind is opened.

    endings: of file names, in small letters. open: 'package.module:function', called with a path and data.kinds.RowOptions,
    gives a Source. keys: those of features_key, labels_key and ids_key that name something in such files;
    no_keys: why the others do not, with {} for the ending.
    """

    endings: tuple[str, ...]
    open: str
    keys: tuple[str, ...] = ()
    no_keys: str = ""


@dataclass(frozen=True)
class Modality:
    """One kind of items.

    name: in REGISTRY, and in the record of an encoder in a model. noun: what messages say that a source holds, or that an
    encoder takes; items: what they count. readers: the kinds of files that hold such items.

    encoder: the default of a training, '' the method's own. encoder_class: 'package.module:Class' of the encoders that stand
    in front of what takes rows of features, see encoders.base.FrontEncoder; '' where items are such rows.

    choose_encoder, make_features, give_labels: what to type where the encoder does not take these items, where nothing
    but rows of features is taken, and where labels are lacking.
    """

    name: str
    noun: str
    items: str
    encoder: str = ""
    encoder_class: str = ""
    readers: tuple[Reader, ...] = ()
    choose_encoder: str = ""
    make_features: str = ""
    give_labels: str = "bring them with --labels FILE, or use --labels-key"

    @property
    def needs_encoder(self) -> bool:
        """Whether items are no rows of features: an encoder stands in front of whatever takes rows."""
        return bool(self.encoder_class)


ROWS = Modality("rows", noun="rows of features", items="rows")
IMAGES = Modality(
    "images",
    noun="images",
    items="images",
    encoder="squeezenet",
    encoder_class="scqfaiss.encoders.backbone:Backbone",
    choose_encoder="choose --encoder squeezenet or package.module:factory",
    make_features="make rows with `scqfaiss features`",
    give_labels="sort them into a folder for each class, or list them",
)
REGISTRY: dict[str, Modality] = {modality.name: modality for modality in (ROWS, IMAGES)}
