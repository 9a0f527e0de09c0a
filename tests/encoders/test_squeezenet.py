"""SqueezeNet 1.0: its shape, its parameters, and what it sees in an image under ImageNet's weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scqfaiss.encoders.factory import network
from scqfaiss.encoders.squeezenet import Fire, SqueezeNet, squeezenet1_0
from scqfaiss.encoders.weights import load_weights

DATA = Path(os.environ.get("SCQFAISS_DATA", Path(__file__).parents[3] / "shared" / "data"))
WEIGHTS = DATA.parent / "models" / "squeezenet1_0_imagenet.safetensors"

# Table 1 of the paper: squeeze 1x1, expand 1x1, expand 3x3 of each fire module, and parameters of the whole.
FIRES = {3: (16, 64), 4: (16, 64), 5: (32, 128), 7: (32, 128), 8: (48, 192), 9: (48, 192), 10: (64, 256), 12: (64, 256)}


def test_every_layer_is_as_wide_as_the_paper_says():
    net = squeezenet1_0(1000)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    want, c = {"features.0.weight": (96, 3, 7, 7), "features.0.bias": (96,)}, 96
    for place, (squeeze, expand) in FIRES.items():
        for part, shape in {
            "squeeze": (squeeze, c, 1, 1),
            "expand1x1": (expand, squeeze, 1, 1),
            "expand3x3": (expand, squeeze, 3, 3),
        }.items():
            want |= {f"features.{place}.{part}.weight": shape, f"features.{place}.{part}.bias": shape[:1]}
        c = 2 * expand
    want |= {"classifier.1.weight": (1000, 512, 1, 1), "classifier.1.bias": (1000,)}
    assert shapes == want
    assert sum(p.numel() for p in net.parameters()) == 1_248_424  # '1,248,424 (total)' of table 1


def test_maps_of_a_image_of_its_own_size():
    net, seen = squeezenet1_0().eval(), {}
    for name in ("features.2", "features.5", "features.10", "features.12"):
        net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape[1:]}))
    with torch.no_grad():
        out = net(torch.zeros(1, 3, 224, 224))
    assert out.shape == (1, 512, 13, 13)
    assert seen == {
        "features.2": (96, 54, 54),
        "features.5": (256, 54, 54),
        "features.10": (512, 27, 27),
        "features.12": (512, 13, 13),
    }


def test_a_fire_module_equals_its_parts():
    torch.manual_seed(0)
    fire = Fire(5, 3, 4)
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        got = fire(x)
        s = F.conv2d(x, fire.squeeze.weight, fire.squeeze.bias).clamp_min(0)
        left = F.conv2d(s, fire.expand1x1.weight, fire.expand1x1.bias)
        right = F.conv2d(s, fire.expand3x3.weight, fire.expand3x3.bias, padding=1)
        assert torch.equal(got, torch.cat([left, right], 1).clamp_min(0))


def test_gradients_pass_what_relu_overwrites():
    torch.manual_seed(0)
    fire = Fire(3, 2, 2).double()
    assert torch.autograd.gradcheck(fire, torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True))


def test_initial_weights_keep_the_size_of_activations():
    torch.manual_seed(0)
    net = squeezenet1_0(10)
    with torch.no_grad():
        x = torch.randn(4, 3, 64, 64)
        first = net.features[:2](x)
        last = net.features(x)
    assert 0.1 < float(last.std() / first.std()) < 10
    assert net(x).shape == (4, 10)
    assert float(net.classifier[1].weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_classes_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"^classes is -1, needs 0 or more$"):
        squeezenet1_0(-1)


def test_what_it_says_of_its_images():
    assert (SqueezeNet.input_size, SqueezeNet.feature_layers) == (224, ("features.12",))
    assert SqueezeNet.mean == (0.485, 0.456, 0.406) and SqueezeNet.std == (0.229, 0.224, 0.225)


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ImageNet's weights beside the folder that SCQFAISS_DATA names")
def test_a_chinese_temple_is_seen_as_one():
    """Squashed, bilinear. Of ImageNet's classes, 442 is bell cote, 832 stupa, 449 boathouse, 663 monastery, 437 beacon."""
    images = pytest.importorskip("sklearn.datasets")
    PIL = pytest.importorskip("PIL.Image")
    path = Path(images.__file__).parent / "images" / "china.jpg"
    image = PIL.open(path).convert("RGB").resize((227, 227), PIL.Resampling.BILINEAR)
    net = network("squeezenet", {"classes": "1000"})
    assert len(load_weights(net, WEIGHTS)) == 64
    x = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.mean, net.std))
    with torch.no_grad():
        p, classes = net.eval()((x - mean) / std).softmax(1).topk(5)
    assert classes[0].tolist() == [442, 832, 449, 663, 437]
    assert float(p[0, 0]) == pytest.approx(0.68, abs=0.01)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ImageNet's weights beside the folder that SCQFAISS_DATA names")
def test_weights_of_a_classifier_may_be_left_out():
    net = network("squeezenet", {})
    with pytest.warns(
        UserWarning, match=r": 2 tensors have no place in the network and are left out: classifier.1.bias, "
    ):
        load_weights(net, WEIGHTS)
    assert float(net.features[0].weight.detach().std()) > 0
