"""Trainings that start from a trained model: its network and classifier stay as they are, codebooks alone are trained."""

from __future__ import annotations

from typing import Any

from ..contract import Method
from ..data import Source, classes
from ..data.items import ItemSource
from ..encoders import BACKBONES
from ..errors import CheckpointError, ConfigError, printable
from ..modality import IMAGES
from ..model import Model
from ..options import TrainOptions

OF_TRAINING = {
    "adversarial",
    "balance",
    "features",
    "holdout",
    "kappa",
    "sharpen",
}  # settings of what --start leaves as it is


def model_to_start_from(options: TrainOptions, method: type[Method], source: Source) -> Model | None:
    """The model of --start. Raises ConfigError where the method, the rows or other options do not go with it."""
    if options.start is None:
        return None
    name = printable(options.start)
    if not method.starts:
        raise ConfigError(
            f"method {options.method} cannot start from a model: its codebooks and its network learn together"
        )
    for option, given in (
        ("--weights", options.weights is not None),
        ("--encoder-arg", bool(options.encoder_args)),
    ):
        if given:
            raise ConfigError(f"{option} goes with a network that is trained, that of {name} stays as it is")
    for key in options.settings:
        if key.split(".")[0] in OF_TRAINING:
            raise ConfigError(
                f"{key} is for a network and a head that train, those of {name} stay as they are; leave it out"
            )
    from ..encoders import record

    model = Model.load(options.start)
    if not model.modality == source.modality == IMAGES:
        what = f"{name} has no network for images" if model.modality != IMAGES else f"{source.name} holds no images"
        raise ConfigError(f"{what}; only trainings on images, which take long, start from one another")
    try:
        factory = record.check_record(model.config["backbone"])["factory"]
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if options.encoder != TrainOptions.encoder and BACKBONES.get(options.encoder, options.encoder) != factory:
        raise ConfigError(f"encoder {options.encoder} is not that of {name}, {factory}")
    return model


def align_with(start: Model, source: Source) -> None:
    """Number the classes of images as the classifier of a trained model does. Raises ConfigError where it knows others."""
    assert isinstance(source, ItemSource) and source.labels is not None
    names, kind = start.config.get("class_names"), "many" if source.labels.multilabel else "one"
    if start.config.get("labels") != kind:
        raise ConfigError(
            f"{source.name} has {kind} label{'s' if kind == 'many' else ''} an image, the model to start from was trained with "
            f"{start.config.get('labels')}"
        )
    if names:
        source.align(names, "the model to start from")
    elif source.labels.class_names:
        source.labels = classes.unnamed(source.labels, source.name, "the model to start from")


def of_network(model: Model) -> dict[str, Any]:
    """The settings of a model's network that decide what its features are."""
    found = model.config["backbone"]
    settings = {key: found.get(key) for key in ("size", "fit", "pool", "mirror", "channels_last")}
    return settings | {"layers": ",".join(found.get("layers", ()))}


def make_network(options: TrainOptions, name: str, encoder: type[Any], config: Any, start: Model | None) -> Any:
    """The network for images of that name, with its weights, or with those of a model; reads no rows."""
    from ..encoders import record

    if start is not None:
        assert start.backbone is not None
        trusted = None if options.encoder == TrainOptions.encoder else options.encoder
        found = record.from_record(start.backbone, start.config["backbone"], trusted=trusted)
        made = encoder(config, found.net, found.factory, found.arguments, options.seed)
        made.load_state_dict(found.state_dict())
        made.standardise(found.channels, found.deviations)
        return made
    return encoder.build(config, name, options.encoder_args, options.weights, options.seed)
