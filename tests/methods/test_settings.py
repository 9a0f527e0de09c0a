"""One scheme of names for the settings of all methods: what belongs to a stage stands under its name."""

import pytest

import scqfaiss
from scqfaiss.contract import flat, settings
from scqfaiss.encoders import BACKBONES, encoder_class
from scqfaiss.encoders import REGISTRY as ENCODERS
from scqfaiss.errors import ConfigError
from scqfaiss.methods import REGISTRY, method_class

GROUPS = {"scq": {"features", "codebooks"}, "dpq": {"features", "codebooks"}, "label": {"features"}}
GROUPS |= {"phpq": GROUPS["scq"]} | {name: {"training"} for name in ("mecoq", "mopq")}


@pytest.mark.parametrize("name", REGISTRY)
def test_stages_have_groups_of_settings(name):
    known = settings(method_class(name).Config)
    groups = {key.partition(".")[0] for key in known if "." in key}
    assert groups == GROUPS.get(name, set())
    for group in groups:
        assert {f"{group}.{key}" for key in ("epochs", "batch_size", "lr")} <= set(known)
    for encoder in (*ENCODERS, *BACKBONES):  # whose settings stand beside them
        assert not groups & set(settings(encoder_class(encoder).Config))
    outside = [
        key for key in known if "." not in key and key.endswith(("epochs", "batch", "batch_size", "lr", "decay"))
    ]
    assert outside == []


@pytest.mark.parametrize("name", REGISTRY)
def test_presets_are_settings_that_exist(name):
    method = method_class(name)
    for key, choices in method.PRESETS.items():
        assert set(choices) <= set(settings(method.Config)[key].choices)
        assert all(set(values) <= set(settings(method.Config)) for values in choices.values())


def test_nested_and_dotted_settings_train_the_same_model(one):
    fast = {"bits": 8, "nbits": 4, "encoder": "linear", "codebooks.copies": 1}
    dotted = scqfaiss.train(*one, **fast, **{"features.epochs": 1, "features.lr": 0.01, "codebooks.epochs": 1})
    fast.pop("codebooks.copies")
    nested = scqfaiss.train(*one, **fast, features={"epochs": 1, "lr": 0.01}, codebooks={"epochs": "1", "copies": 1})
    assert dotted.to_bytes() == nested.to_bytes()
    recorded = dotted.config["settings"]
    assert (recorded["features.epochs"], recorded["features.lr"], recorded["codebooks.epochs"]) == (1, 0.01, 1)
    assert set(flat(settings_of_scq())) - {"adversarial"} <= set(recorded)  # told only where it was used


def settings_of_scq():
    return method_class("scq").Config()


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            {"cfa_epochs": 3},
            r"^unknown key 'cfa_epochs' for method scq; did you mean 'features.epochs'\?$",
        ),
        (
            {"lr": 3},
            r"^unknown key 'lr' for method scq; did you mean 'features.lr' or 'codebooks.lr'\?$",
        ),
        (
            {"features": {"epoch": 3}},
            r"^unknown key 'features.epoch' for method scq; did you mean 'features.epochs'\?$",
        ),
        (
            {"codebooks": "additive"},
            r"^unknown key 'codebooks' for method scq; that is a group of settings: codebooks.kind, ",
        ),
    ],
)
def test_misspelt_settings_come_with_the_right_ones(one, asked, message):
    with pytest.raises(ConfigError, match=message):
        scqfaiss.train(*one, bits=8, nbits=4, **asked)
