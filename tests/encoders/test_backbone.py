"""Networks for images as encoders: what a factory may be, what is pooled, what trains, what a file may bring."""

import hashlib
import json
import os
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import assert_close, long_sum
from safetensors.numpy import save_file
from torch import nn

from scqfaiss import distributed
from scqfaiss.bundle import Bundle, from_bytes
from scqfaiss.contract import configure, seed_of
from scqfaiss.encoders import BACKBONES, augment, backbone, encoder_class
from scqfaiss.encoders.backbone import Backbone, Settings
from scqfaiss.encoders.factory import network
from scqfaiss.encoders.network import IMAGENET
from scqfaiss.encoders.norms import JointNorm, joined
from scqfaiss.encoders.record import from_record
from scqfaiss.encoders.squeezenet import SqueezeNet
from scqfaiss.encoders.weights import load_weights, state_of
from scqfaiss.errors import CheckpointError, ConfigError
from scqfaiss.modality import IMAGES, ROWS

SIZE = 16
MAPS = (
    27 + 14 * 14 + 16
)  # roundings of a feature of Maps: windows of 3 x 3 x 3, the mean over 14 x 14 places, colours and views
PLAIN = {"size": SIZE, "augment": "none", "dropout": 0.0, "channels_last": False}

NETWORKS = '''
"""Networks of the tests."""
import torch
from typing import Optional
from torch import nn


class Small(nn.Module):
    """Maps of 4 and 6 channels, ReLU in place behind each."""

    def __init__(self, wide: int = 6, scale: float = 1.0, biased: bool = True, kind: str = "a", limit: Optional[int] = None):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, bias=biased)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, wide, 3)
        self.tail = nn.Linear(wide, 2)
        self.given = (wide, scale, biased, kind, limit)

    def forward(self, x):
        x = self.act(self.second(self.act(self.norm(self.first(x)))))
        return self.tail(x.mean((2, 3)))


def small(wide: int = 6, scale: float = 1.0, biased: bool = True, kind: str = "a", limit: "int | None" = None):
    return Small(wide, scale, biased, kind, limit)


class Maps(nn.Sequential):
    mean, std, input_size = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 16

    def __init__(self, c=5):
        super().__init__(nn.Conv2d(3, c, 3), nn.ReLU())


class Odd(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.one = what, nn.Linear(1, 1)

    def forward(self, x):
        return {"pair": (x, x), "tokens": x.flatten(2), "whole": x.long(), "raise": None}[self.what] if (
            self.what != "raise") else 1 / 0


def keywords(*, width: int = 2, **rest):
    return Maps(width + rest.get("more", 0))


def bare(width=3, scale=0.5, name="x", other=None):
    return Small(width, scale, kind=name, limit=other)


def fails(why="no reason"):
    raise RuntimeError(why + "\\nwith a second line")


def nothing():
    return 3


class Kept(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def get_extra_state(self):
        return "text"


number = 4
'''


@pytest.fixture(autouse=True, scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    (folder / "nets_of_tests.py").write_text(NETWORKS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("nets_of_tests", None)


def made(factory="nets_of_tests:small", arguments=None, seed=0, **settings):
    arguments = arguments or {}
    return Backbone(Settings(**(PLAIN | settings)), network(factory, arguments, seed), factory, arguments, seed)


def images(b=6, size=SIZE, seed=0):
    return torch.randint(256, (b, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ factories
def test_names_of_encoders():
    assert encoder_class("squeezenet") is Backbone and encoder_class("some.package:factory") is Backbone
    assert (Backbone.modality, encoder_class("mlp").modality) == (IMAGES, ROWS)
    message = (
        r"^unknown encoder 'squeezenett'; did you mean 'squeezenet'\?; there are identity, linear, mlp, squeezenet, and any "
        r"network for images as package.module:factory$"
    )
    with pytest.raises(ConfigError, match=message):
        encoder_class("squeezenett")


def test_arguments_become_what_the_factory_asks_for():
    def given(factory, **arguments):
        return network(f"nets_of_tests:{factory}", arguments).given

    assert given("small") == (6, 1.0, True, "a", None)
    assert given("small", wide="7", scale="2", biased="False", kind="3", limit="none") == (7, 2.0, False, "3", None)
    assert given("Small", limit="5", biased="on") == (6, 1.0, True, "a", 5)
    assert given("bare", width="7", scale="2", name="5", other="9") == (7, 2.0, True, "5", 9)
    assert given("bare", other="text")[4] == "text" and given("bare", other="1.5")[4] == 1.5
    assert network("nets_of_tests:keywords", {"width": "4", "more": "2"})[0].out_channels == 6
    assert isinstance(network("squeezenet", {"classes": "10"}), SqueezeNet)
    assert isinstance(network(BACKBONES["squeezenet"], {}), SqueezeNet)


@pytest.mark.parametrize(
    "factory, arguments, message",
    [
        (
            "squeeznet",
            {},
            "network 'squeeznet' is neither squeezenet nor package.module:factory; did you mean 'squeezenet'?",
        ),
        ("os.system", {}, "network 'os.system' is neither squeezenet nor package.module:factory"),
        ("a:b.c", {}, "network 'a:b.c' is neither squeezenet nor package.module:factory"),
        ("a:b:c", {}, "network 'a:b:c' is neither squeezenet nor package.module:factory"),
        (".a:b", {}, "network '.a:b' is neither squeezenet nor package.module:factory"),
        ("no_such.module:f", {}, "network no_such.module:f: ModuleNotFoundError: No module named 'no_such'"),
        (
            "nets_of_tests:smal",
            {},
            "network nets_of_tests:smal: AttributeError: module 'nets_of_tests' has no attribute 'smal'",
        ),
        (
            "nets_of_tests:number",
            {},
            "network nets_of_tests:number: TypeError: number is int, needs a function or class",
        ),
        ("nets_of_tests:nothing", {}, "network nets_of_tests:nothing: the factory gives int, needs a torch.nn.Module"),
        ("nets_of_tests:fails", {}, "network nets_of_tests:fails: RuntimeError: no reason"),
        (
            "squeezenet",
            {"classes": "-2"},
            f"network {BACKBONES['squeezenet']}: ValueError: classes is -2, needs 0 or more",
        ),
        (
            "nets_of_tests:small",
            {"wid": "3"},
            "network nets_of_tests:small has no argument 'wid'; did you mean 'wide'?; it takes wide, scale, biased, kind, limit",
        ),
        ("nets_of_tests:nothing", {"a": "3"}, "network nets_of_tests:nothing has no argument 'a'; it takes none"),
        ("nets_of_tests:small", {"wide": "3.5"}, "network nets_of_tests:small: wide is '3.5', needs a whole number"),
        ("nets_of_tests:small", {"biased": "2"}, "network nets_of_tests:small: biased is '2', needs true or false"),
        ("nets_of_tests:small", {"scale": "x"}, "network nets_of_tests:small: scale is 'x', needs a number"),
        ("nets_of_tests:small", {"limit": "x"}, "network nets_of_tests:small: limit is 'x', needs a whole number"),
    ],
)
def test_what_no_network_comes_from(factory, arguments, message):
    with pytest.raises(ConfigError) as caught:
        network(factory, arguments)
    assert str(caught.value) == message


def test_initial_weights_follow_from_the_seed_and_disturb_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (network("squeezenet", {}, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])


# ------------------------------------------------------------------------------------------------------------- features
def slow_keep(maps, name, module, inputs, out):
    maps[name] = out.detach().clone()


def name_is_last(s, layers):
    return s == max(len(layers), 1) - 1


def rms(a):
    return np.sqrt(np.mean(a**2))


def slow_features(net, layers, pool, x, mean, std, t=None):
    """Images one by one, maps by hooks that copy, pooling in float64 NumPy."""
    out = []
    for one in x.numpy():
        y = (one / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
        maps, handles = {}, []
        for name in layers:
            module = net.get_submodule(name)
            handles.append(module.register_forward_hook(partial(slow_keep, maps, name)))
        with torch.no_grad():
            whole = net.eval()(torch.tensor(y[None], dtype=torch.float32))
        for handle in handles:
            handle.remove()
        row = []
        for s, m in enumerate([maps[name] for name in layers] or [whole]):
            m = m[0].double().numpy()
            if m.ndim == 3:
                mean_, max_ = m.mean((1, 2)), m.max((1, 2))
                m = mean_
                if pool == "pyramid":
                    m = np.concatenate([mean_ / rms(mean_), max_ / rms(max_) / 4])
                    m = m if name_is_last(s, layers) else m / 2
                if pool == "hybrid":
                    share = 1 / (1 + np.exp(-t[s]))
                    m = share * mean_ + (1 - share) * max_
                    m = m / np.linalg.norm(m)
            row.append(m)
        out.append(np.concatenate(row))
    return np.array(out)


@pytest.mark.parametrize(
    "factory, layers, pool, width, stages",
    [
        ("nets_of_tests:small", "", "average", 2, 0),
        ("nets_of_tests:small", "second", "average", 6, 1),
        ("nets_of_tests:small", "norm, second, tail", "average", 12, 2),
        ("nets_of_tests:small", "norm,second", "hybrid", 10, 2),
        ("nets_of_tests:small", "norm,second", "pyramid", 20, 2),
        ("nets_of_tests:Maps", "", "pyramid", 10, 1),
        ("squeezenet", "", "pyramid", 2560, 3),
        ("nets_of_tests:Maps", "", "average", 5, 1),
        ("nets_of_tests:Maps", "", "hybrid", 5, 1),
        ("squeezenet", "", "average", 512, 1),
        ("squeezenet", "features.5,features.12", "hybrid", 768, 2),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_features_equal_the_slow_twin(factory, layers, pool, width, stages, channels_last):
    size = 40 if factory == "squeezenet" else SIZE
    b = made(factory, layers=layers, pool=pool, size=size, channels_last=channels_last)
    t = None
    if pool == "hybrid":
        with torch.no_grad():
            b.t.copy_(torch.arange(len(b.t)) - 0.7)
        t = b.t.tolist()
    mean, std = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) if "Maps" in factory else IMAGENET
    x = images(3, size)
    names = [n.strip() for n in layers.split(",")] if layers else list(b.names)
    want = slow_features(b.net, names, pool, x, mean, std, t)
    got = b.features(x.numpy())
    assert (b.width, b.d_in, b.stages, got.shape, got.dtype) == (width, width, stages, (3, width), np.float32)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-4)
    with torch.no_grad():
        np.testing.assert_array_equal(b.eval()(x)[0].numpy(), got)  # the same images, the same way
    assert b(x).shape == (1, 3, width) and b.layers() == [] and b.members == 1


def test_a_map_of_one_value_pools_to_it_whatever_was_learned():
    """And where places lie changes nothing: test (3) of the formula."""
    b = made("nets_of_tests:Maps", pool="hybrid")
    m = torch.rand(2, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in (-3.0, 0.0, 8.0):
        b.t.data.fill_(t)
        assert_close(b._pooled([m.expand(2, 5, 7, 7)]).detach(), F.normalize(m[:, :, 0, 0], dim=1), terms=49 + 16)
    varied = torch.rand(2, 5, 7, 7, generator=torch.Generator().manual_seed(1))
    mixed = varied.flatten(2)[:, :, torch.randperm(49)].view(2, 5, 7, 7)
    assert_close(b._pooled([varied]).detach(), b._pooled([mixed]).detach(), terms=49 + 16)


def test_a_pyramid_of_a_map_of_zeros_is_zero_and_passes_finite_gradients():
    b = made("nets_of_tests:Maps", pool="pyramid")
    m = torch.zeros(2, 5, 3, 3, requires_grad=True)
    g = b._pooled([m])
    g.sum().backward()
    assert (g == 0).all() and torch.isfinite(m.grad).all()


def test_the_gradient_of_a_pyramid_reaches_every_stage_and_equals_differences():
    b = made("nets_of_tests:small", layers="norm,second", pool="pyramid").double()
    x = images(2)
    weight = torch.rand(2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps = [m.detach() for m in b._maps(torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64))]
    moved = [m.clone().requires_grad_() for m in maps]
    (b._pooled(moved) * weight).sum().backward()
    for s, place in ((0, (0, 1, 2, 3)), (1, (1, 4, 0, 1))):
        values = []
        for sign in (1, -1):
            other = [m.clone() for m in maps]
            other[s][place] += sign * 1e-6
            values.append(float((b._pooled(other) * weight).sum()))
        assert float(moved[s].grad[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)
    (b.float().train()(x)[0] * weight.float()).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (b.net.first.weight, b.net.second.weight))


@pytest.mark.filterwarnings("ignore:nets_of_tests:scqfaiss.errors.ScqWarning")
def test_a_pyramid_of_one_map_is_said_to_be_none():
    with pytest.warns(match="^pool=pyramid is for feature maps of several stages, the network gives one; name them"):
        Backbone.build(Settings(**(PLAIN | {"pool": "pyramid"})), "nets_of_tests:Maps", {})


def test_the_gradient_reaches_what_hybrid_pooling_learns():
    b = made("nets_of_tests:Maps", pool="hybrid").double()
    m = torch.rand(2, 5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(t):
        b.t.data.fill_(t)
        return (b._pooled([m]) * weight).sum()

    value(0.3).backward()
    slope = float((value(0.3 + 1e-4) - value(0.3 - 1e-4)).detach()) / 2e-4
    assert float(b.t.grad) == pytest.approx(
        slope, rel=1e-6
    )  # in float64; the quotient is off by 1e-8 of the third slope


@pytest.mark.slow
def test_the_network_stops_behind_the_last_layer_unless_it_is_wanted_whole():
    b = made(layers="first,second")
    runs = []
    b.net.tail.register_forward_hook(lambda *_: runs.append(1))
    short = b.features(images().numpy())
    assert not runs
    b.whole = True
    assert np.array_equal(b.features(images().numpy()), short)
    assert runs
    b.whole = False
    rows = torch.export.Dim("rows", min=1, max=64)
    with torch.no_grad():
        exported = torch.export.export(b.eval(), (images(),), dynamic_shapes=({0: rows},)).module()
        x = images(4, seed=3)
        np.testing.assert_allclose(exported(x)[0].numpy(), b.features(x.numpy()), atol=1e-5)


def test_what_overwrites_a_map_does_not_reach_its_gradient():
    b = made(layers="norm,second", pool="hybrid").train()  # ReLU in place follows norm
    b(images()).sum().backward()
    assert b.net.first.weight.grad.abs().sum() > 0
    assert b.net.tail.weight.grad is None  # behind the last layer


@pytest.mark.parametrize(
    "factory, settings, message",
    [
        ("nets_of_tests:small", {"layers": "secnd"}, "the network has no layer 'secnd'; did you mean 'second'?"),
        (
            "nets_of_tests:small",
            {"layers": "zzzz"},
            "the network has no layer 'zzzz'; it begins with first, norm, act, ...",
        ),
        ("nets_of_tests:small", {"layers": "first,first"}, "layer first is named twice"),
        (
            "nets_of_tests:small",
            {"pool": "pyramid"},
            "pool=pyramid needs maps (b, c, h, w), network nets_of_tests:small gives vectors; use average",
        ),
        (
            "nets_of_tests:small",
            {"pool": "hybrid"},
            "pool=hybrid needs maps (b, c, h, w), network nets_of_tests:small gives vectors; use average",
        ),
        (
            "nets_of_tests:small",
            {"size": 2},
            "network nets_of_tests:small cannot take images of 2 x 2: RuntimeError: "
            "Calculated padded input size per channel: (2 x 2). Kernel size: (3 x 3). Kernel size can't be greater than "
            "actual input size",
        ),
    ],
)
def test_settings_that_do_not_fit_the_network(factory, settings, message):
    with pytest.raises(ConfigError) as caught:
        made(factory, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "what, reason",
    [
        ("pair", ": the network gives tuple, needs (b, c) or (b, c, h, w); name layers that do with --set layers=..."),
        (
            "tokens",
            ": the network gives (1, 3, 256), needs (b, c) or (b, c, h, w); name layers that do with --set layers=...",
        ),
        (
            "whole",
            ": the network gives (1, 3, 16, 16), needs (b, c) or (b, c, h, w); name layers that do with --set layers=...",
        ),
        ("raise", " cannot take images of 16 x 16: ZeroDivisionError: division by zero"),
    ],
)
def test_outputs_that_are_no_features(what, reason):
    with pytest.raises(ConfigError) as caught:
        made("nets_of_tests:Odd", {"what": what})
    assert str(caught.value) == f"network nets_of_tests:Odd{reason}"


def test_a_layer_that_does_not_run():
    with pytest.raises(ConfigError, match=r"layer one does not run; name others with --set layers=\.\.\.$"):
        made("nets_of_tests:Odd", {"what": "whole"}, layers="one")


@pytest.mark.parametrize("name, value", [("mean", (1.0, 2.0)), ("std", (0.1, 0.0, 0.1)), ("mean", "abc"), ("std", 3)])
def test_colours_that_are_none(name, value):
    net = network("nets_of_tests:Maps", {})
    setattr(net, name, value)
    with pytest.raises(
        ConfigError, match=rf"^the network's {name} is .*, needs three numbers for red, green and blue$"
    ):
        Backbone(Settings(**PLAIN), net, "nets_of_tests:Maps", {})


def test_what_a_network_says_of_itself_in_other_forms():
    net = network("nets_of_tests:Maps", {})
    net.mean, net.std, net.feature_layers = torch.tensor([0.5, 0.25, 0.75]).view(1, 3, 1, 1), (0.5, 1, 2), "0"
    b = Backbone(Settings(**PLAIN), net, "nets_of_tests:Maps", {})
    assert (b.channels, b.deviations, b.names) == ([0.5, 0.25, 0.75], [0.5, 1.0, 2.0], ["0"])
    net.feature_layers = None
    assert Backbone(Settings(**PLAIN), net, "nets_of_tests:Maps", {}).names == []


def test_the_size_is_the_networks_own_unless_asked():
    assert made("nets_of_tests:Maps", size=0).size == 16
    assert made("nets_of_tests:small", size=0).size == 224
    assert made("nets_of_tests:small", size=20).size == 20


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 8, 8), torch.zeros(2, SIZE, SIZE, 3), torch.zeros(3, SIZE, SIZE)])
def test_images_of_another_shape_are_refused(x):
    b = made()
    with pytest.raises(ConfigError, match=r"^images are \(.*\), the network needs \(b, 3, 16, 16\)$"):
        b(x.byte())
    with pytest.raises(ConfigError, match=r"^images are float64, the network needs uint8$"):
        b.features(np.zeros((2, 3, SIZE, SIZE)))


def test_features_of_many_and_of_none(monkeypatch):
    b, x = made("nets_of_tests:Maps").train(), images(10).numpy()
    whole = b.features(x)
    monkeypatch.setattr(backbone, "CHUNK", 3)
    x.setflags(write=False)
    assert_close(b.features(x), whole, MAPS)
    assert b.training  # as it was
    assert b.features(x[:0]).shape == (0, 5)
    seen = []
    b.net[0].register_forward_hook(lambda _, __, out: seen.append(len(out)))
    with torch.no_grad():
        assert b(images(10)).shape == (1, 10, 5)
    b(images(10))
    assert seen == [3, 3, 3, 1, 10]  # chunks where no gradient is wanted


def test_mirrored_features_are_the_mean_of_both_sides():
    both, one = (made("nets_of_tests:Maps", mirror=mirror) for mirror in (True, False))
    x = images()
    sides = one.features(x.numpy()), one.features(x.flip(3).numpy())
    assert np.abs(sides[0] - sides[1]).max() > 1e-3
    assert_close(both.features(x.numpy()), (sides[0] + sides[1]) / 2, MAPS)
    assert torch.equal(both.train()(x), one.train()(x))  # training sees mirrored images anyway
    again = from_record(*both.record(), trusted="nets_of_tests:Maps")
    np.testing.assert_array_equal(again.features(x.numpy()), both.features(x.numpy()))


# ---------------------------------------------------------------------------------------------- training: views, freezing
def test_one_number_of_draws_gives_one_view():
    b = made("nets_of_tests:Maps", augment="paper", dropout=0.3).train()
    x = images()
    first, second = b(x), b(x)
    assert int(b.draws) == 2 and not torch.equal(first, second)
    b.draws.fill_(0)
    assert torch.equal(b(x), first)
    assert torch.equal(b.eval()(x), b(x)) and int(b.draws) == 1  # evaluation draws nothing
    other = made("nets_of_tests:Maps", augment="paper", dropout=0.3).train()
    other.load_state_dict(b.state_dict())
    assert torch.equal(other(x), second)  # resumed
    seeded = Backbone(b.config, network("nets_of_tests:Maps", {}), "nets_of_tests:Maps", {}, seed=9).train()
    seeded.load_state_dict(b.state_dict() | {"draws": torch.tensor(0)})
    assert not torch.equal(seeded(x), first)


def test_views_do_not_hang_on_torchs_random_state():
    b, x = made("nets_of_tests:Maps", augment="paper", dropout=0.3).train(), images()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = b(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    b.draws.fill_(0)
    assert torch.equal(b(x), first)


@pytest.mark.parametrize("grad", [True, False])
def test_two_processes_see_the_views_of_one(monkeypatch, grad):
    x, parts = images(8), []
    b = made("nets_of_tests:Maps", augment="paper", erase=0.5, dropout=0.3).train()
    with torch.set_grad_enabled(grad):
        whole = b(x)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        for rank in (0, 1):
            b.draws.fill_(0)
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(b(x[4 * rank : 4 * rank + 4]))
        if grad:
            assert_close(torch.cat(parts, 1).detach(), whole.detach(), MAPS)
        else:  # each process encodes rows of its own
            b.draws.fill_(0)
            assert torch.equal(b(x[4:]), parts[1])
            assert_close(parts[0], whole[:, :4], MAPS)


def test_views_without_gradient_are_those_of_training():
    b, x = made("nets_of_tests:Maps", augment="light").train(), images()
    with torch.no_grad():
        got = b(x)
    plain = made("nets_of_tests:Maps")
    u = augment.table(6, torch.Generator().manual_seed(seed_of(seed_of(0, 0), 0)))
    v = augment.views(x / 255, u, augment.PRESETS["light"], b.mean.flatten())
    with torch.no_grad():
        want = plain.net((v - plain.mean) / plain.std).mean((2, 3))
    assert_close(got[0], want, MAPS)


def test_what_is_seen_can_be_moved_and_is_no_view_of_a_view():
    b, x = made("nets_of_tests:Maps", augment="paper", erase=0.5).train(), images()
    seen = b.seen(x)
    assert seen.dtype == torch.float32 and not seen.requires_grad and 0 <= seen.min() and 200 < seen.max() <= 255
    want = b(seen)
    b.draws.fill_(0)
    assert_close(b(x).detach(), want.detach(), MAPS)
    assert torch.equal(made("nets_of_tests:Maps").train().seen(x), (x / 255) * 255)


@pytest.mark.parametrize("frozen", [False, True])
def test_images_have_a_gradient_whether_the_network_learns_or_not(frozen):
    b = made("nets_of_tests:Maps", **({"backbone_lr": 0.0} if frozen else {})).train()
    x = b.seen(images()).requires_grad_()
    (slope,) = torch.autograd.grad(b(x)[0, :, 0].sum(), x)
    assert slope.isfinite().all() and (slope != 0).any() and b.net.training == (not frozen)
    assert all(p.grad is None for p in b.net.parameters())


def test_dropout_scales_up_what_it_keeps():
    b = made("nets_of_tests:Maps", {"c": "400"}, dropout=0.25).train()
    x = images(20)
    plain, dropped = b.eval()(x)[0], b.train()(x)[0]
    kept = dropped != 0
    alive = plain > 1e-3
    assert_close(dropped[kept].detach(), plain[kept].detach() / 0.75, MAPS)
    assert float(kept[alive].double().mean()) == pytest.approx(0.75, abs=0.02)


def test_norms_follow_training_steps_alone():
    b = made(layers="second").train()
    fresh = {k: v.clone() for k, v in b.state_dict().items()}
    with torch.no_grad():
        b(images())
    assert torch.equal(b.net.norm.running_mean, fresh["net.norm.running_mean"]) and b.training
    alone, beside = b.features(images(1).numpy()), b.features(images().numpy())
    assert_close(alone[0], beside[0], MAPS)
    b(images())
    assert not torch.equal(b.net.norm.running_mean, fresh["net.norm.running_mean"])


@pytest.mark.slow
def test_the_network_is_frozen_first_and_learns_then():
    b = made(layers="norm,second", pool="hybrid", frozen_epochs=2, backbone_lr=0.5, backbone_decay=0.1).train()
    groups = b.groups(0.01, 0.3)  # made before the first epoch, for all of them
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.005, 0.1, 3),
        (0.005, 0.0, 5),
        (0.01, 0.0, 1),
    ]
    optimizer = torch.optim.AdamW(groups)
    before = {k: v.clone() for k, v in b.state_dict().items()}

    def step():
        optimizer.zero_grad(set_to_none=True)
        b(images())[0, :, :3].sum().backward()
        optimizer.step()
        return {k for k, v in b.state_dict().items() if not torch.equal(v, before[k])}

    for epoch in (0, 1):
        b.on_epoch(epoch)
        assert not any(p.requires_grad for p in b.net.parameters())
        assert step() == {"draws", "t"}
        assert not b.net.training and b.training
    b.on_epoch(2)
    assert all(p.requires_grad for p in b.net.parameters())
    assert {"net.first.weight", "net.norm.running_mean", "t"} <= step()
    assert b.net.training


def test_a_network_of_rate_zero_never_learns():
    b = made(layers="second", backbone_lr=0.0).train()
    assert b.groups(0.01, 0.3) == []
    b.on_epoch(5)
    assert not b(images()).requires_grad


def test_what_the_factory_froze_stays_frozen():
    net = network("nets_of_tests:small", {})
    net.first.requires_grad_(False)
    b = Backbone(Settings(**PLAIN, frozen_epochs=1), net, "nets_of_tests:small", {})
    assert not {id(p) for p in net.first.parameters()} & {id(p) for g in b.groups(1, 0) for p in g["params"]}
    b.on_epoch(0)
    b.on_epoch(1)
    assert not net.first.weight.requires_grad and net.second.weight.requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_reduced_precision_is_for_training(grad):
    b, x = made("nets_of_tests:Maps"), images()
    b.precision = torch.bfloat16
    seen = []
    b.net[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.set_grad_enabled(grad):
        assert b.train()(x).dtype == torch.float32
        exact = b.eval()(x)
    rounded = b.features(x.numpy())
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact[0].detach().numpy(), atol=0.02)


def test_settings_are_checked():
    assert configure(Settings, {"size": "160", "layers": "a,b", "erase": "0.25"}) == Settings(
        160, layers="a,b", erase=0.25
    )
    for key, value in {"size": 4096, "pool": "max", "augment": "heavy", "flip": 2, "zoom": 1, "fit": "x"}.items():
        with pytest.raises(ConfigError, match=f"^{key} is "):
            configure(Settings, {key: value})
    b = made(augment="light", zoom=0.0, noise=0.2)
    assert b.strengths == augment.Strengths(flip=0.5, shift=0.1, noise=0.2)


# ------------------------------------------------------------------------------------------------------- several processes
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6)])
def test_joint_norms_equal_one_norm_of_the_joint_batch(monkeypatch, shape):
    """Of two processes that hold the same rows: what one gathers is its own piece twice."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    generator = torch.Generator().manual_seed(0)
    x = (7 + torch.randn(shape, generator=generator)).requires_grad_()
    up = torch.randn(shape, generator=generator)
    one = kind(3, momentum=None)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([0.5, 1, 2]))
    net = nn.Sequential(kind(3, momentum=None))
    net[0].load_state_dict(one.state_dict())
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_with_grad", lambda t: torch.cat([t, t]))
    two = joined(net)[0]
    assert isinstance(two, JointNorm) and list(net.state_dict()) == list(nn.Sequential(one).state_dict())
    for _ in range(2):
        want, got = one(torch.cat([x, x])), two(x)
        # Sums over n numbers of about 10, minus means of them.
        close = partial(assert_close, terms=long_sum(2 * x.numel() // 3), scale=10)
        close(got.detach(), want[:4].detach())
        for key, t in one.state_dict().items():
            close(two.state_dict()[key], t)
    (expected,) = torch.autograd.grad((want * torch.cat([up, up])).sum() / 2, x)
    (found,) = torch.autograd.grad((got * up).sum(), x)
    close(found, expected)
    close(two.eval()(x).detach(), one.eval()(x).detach())


def test_norms_stay_as_they_are_in_one_process():
    assert type(made().net.norm) is nn.BatchNorm2d


# ------------------------------------------------------------------------------------------------------------- weights
def arrays(net):
    return {k: v.detach().contiguous().numpy().copy() for k, v in net.state_dict().items()}


@pytest.fixture
def small():
    return network("nets_of_tests:small", {}, 1)


def test_weights_from_safetensors(tmp_path, small):
    other = network("nets_of_tests:small", {}, 2)
    save_file(arrays(other), tmp_path / "w.safetensors")
    sha = load_weights(small, tmp_path / "w.safetensors")
    assert sha == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_from_a_pickle_of_tensors(tmp_path, small, wrap, prefix):
    other = network("nets_of_tests:small", {}, 2)
    torch.save(wrap({prefix + k: v for k, v in other.state_dict().items()}), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"w\.pth: a pickle, of which only tensors were read; \.safetensors "):
        assert len(load_weights(small, tmp_path / "w.pth")) == 64
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), other.state_dict().values(), strict=True))


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("place", ["whole", "among tensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, small, place, zipped):
    marker = tmp_path / "ran"
    bomb = Bomb(marker)
    content = bomb if place == "whole" else small.state_dict() | {"x": bomb}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = r"w\.pth: not a plain state dict .*only tensors are read, and no code is run$"
    with pytest.raises(CheckpointError, match=message):
        load_weights(small, tmp_path / "w.pth")
    assert not marker.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # it would have
    assert marker.exists()


def without(key):
    return lambda a: {k: v for k, v in a.items() if k != key}


@pytest.mark.parametrize(
    "change, error, message",
    [
        (without("second.weight"), ConfigError, "lacks 1 of the network's 11 tensors: second.weight"),
        (
            lambda a: {"x": a["first.bias"]},
            ConfigError,
            "lacks 10 of the network's 11 tensors: first.weight, first.bias, norm.weight, ...",
        ),
        (
            lambda a: a | {"second.bias": a["second.bias"][:4]},
            ConfigError,
            "second.bias is (4,), the network needs (6,)",
        ),
        (
            lambda a: a | {"second.bias": a["second.bias"] * np.nan},
            CheckpointError,
            "second.bias holds NaN or infinity",
        ),
        (
            lambda a: a | {"second.bias": a["second.bias"].astype(np.complex64)},
            ConfigError,
            "second.bias is torch.complex64, the network needs torch.float32",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path, small, change, error, message):
    save_file(change(arrays(small)), tmp_path / "w.safetensors")
    before = arrays(small)
    with pytest.raises(error) as caught:
        load_weights(small, tmp_path / "w.safetensors")
    assert str(caught.value) == f"{tmp_path}/w.safetensors: {message}"
    assert all(np.array_equal(v, before[k]) for k, v in arrays(small).items())


def test_weights_that_are_not_needed_or_may_be_lacking(tmp_path, small):
    more = {f"head.{i}": np.zeros(2, np.float32) for i in range(5)}
    save_file(without("norm.num_batches_tracked")(arrays(small)) | more, tmp_path / "w.safetensors")
    message = "5 tensors have no place in the network and are left out: head.0, head.1, head.2, ...$"
    with pytest.warns(UserWarning, match=message):
        load_weights(small, tmp_path / "w.safetensors")


def test_weights_of_half_precision_become_float32(tmp_path, small):
    save_file(
        {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in arrays(small).items()},
        tmp_path / "w.safetensors",
    )
    load_weights(small, tmp_path / "w.safetensors")
    assert small.first.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("w.safetensors", b"junk", CheckpointError, "not a sound .safetensors file"),
        ("w.pth", b"junk", CheckpointError, "not a plain state dict of torch"),
        ("w.npz", b"junk", ConfigError, "files of weights end in .safetensors, or .pth, .pt, .bin, .ckpt"),
        ("w.pth", None, ConfigError, "no such file"),
    ],
)
def test_files_that_are_no_weights(tmp_path, small, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        load_weights(small, tmp_path / name)


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 3}, {}, {"state_dict": [1]}, {1: torch.zeros(2)}, {"a": torch.eye(2).to_sparse()}]
)
def test_pickles_that_hold_no_state_dict(tmp_path, small, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: .* needs "):
        load_weights(small, tmp_path / "w.pt")


def test_a_network_that_keeps_more_than_tensors_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), network("nets_of_tests:Kept", {}))
    with pytest.raises(ConfigError, match=r"^the network's state holds 1\._extra_state, str; needs tensors alone$"):
        state_of(net)


# --------------------------------------------------------------------------------------------------------------- record
@pytest.mark.parametrize(
    "factory, arguments, settings",
    [
        ("nets_of_tests:small", {"wide": "7"}, {"layers": "norm,second", "pool": "hybrid"}),
        ("nets_of_tests:small", {}, {"channels_last": True}),
        ("nets_of_tests:small", {}, {"layers": "norm,second", "pool": "pyramid"}),
        ("nets_of_tests:Maps", {"c": "4"}, {"fit": "squash"}),
        ("squeezenet", {}, {"size": 48, "layers": "features.4", "fit": "pad"}),
    ],
)
def test_a_record_gives_the_same_encoder_again(factory, arguments, settings):
    b = made(factory, arguments, **settings).train()
    if b.config.pool == "hybrid":
        b.t.data.fill_(0.7)
    x = images(3, b.size)
    b(x)  # moves the norms' statistics
    tensors, config = b.record()
    bundle = from_bytes(Bundle({f"backbone.{k}": v for k, v in tensors.items()}, {"backbone": config}).to_bytes(), "m")
    again = from_record(
        {k.removeprefix("backbone."): v for k, v in bundle.tensors.items()}, bundle.config["backbone"], trusted=factory
    )
    assert json.loads(json.dumps(config)) == config
    assert not again.training and (again.size, again.fit, again.width) == (b.size, b.fit, b.width)
    np.testing.assert_array_equal(again.features(x.numpy()), b.features(x.numpy()))
    tensors_again, config_again = again.record()
    assert config_again == config
    assert all(np.array_equal(tensors_again[k], tensors[k]) for k in tensors) and len(tensors) == len(tensors_again)


def test_a_record_is_a_copy():
    b = made()
    tensors, _ = b.record()
    before = tensors["net.first.weight"].copy()
    with torch.no_grad():
        b.net.first.weight += 1
    assert np.array_equal(tensors["net.first.weight"], before)


EVIL = [
    "os:system",
    "scqfaiss.encoders_evil.x:f",
    "scqfaiss.encoders.evil:f",
    "scqfaiss.encoders.factory:import_module",
    "scqfaiss.encoders.squeezenet:SqueezeNet",
    "nets_that_must_not_load:f",
]


@pytest.mark.parametrize("factory", EVIL)
@pytest.mark.parametrize("trusted", [None, "squeezenet", "nets_of_tests:small"])
def test_a_factory_that_nobody_named_is_not_even_imported(tmp_path, monkeypatch, factory, trusted):
    marker = tmp_path / "ran"
    for name in ("nets_that_must_not_load", "scqfaiss/encoders_evil/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\ndef f(**k): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tensors, config = made("squeezenet", size=48).record()
    config |= {"factory": factory, "arguments": {"command": f"touch {marker}", "name": "nets_that_must_not_load"}}
    modules = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        from_record(tensors, config, trusted=trusted)
    assert str(caught.value) == (
        f"the model's network is built by {factory}; name it with --encoder {factory} to allow that"
    )
    assert set(sys.modules) == modules and not marker.exists()


@pytest.mark.parametrize(
    "factory", ["scqfaiss.encoders.squeezenet:SqueezeNet.forward", "os", "a:b\n", "os:system ", "../x:y", ":f"]
)
def test_a_factory_that_is_no_name_is_no_record(factory):
    tensors, config = made("squeezenet", size=48).record()
    modules = set(sys.modules)
    with pytest.raises(CheckpointError, match=r"^the model's network: "):
        from_record(tensors, config | {"factory": factory}, trusted="os:system")
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    "key, value",
    [
        ("factory", 3),
        ("arguments", []),
        ("arguments", {"classes": 3}),
        ("size", 0),
        ("size", 10**9),
        ("size", True),
        ("fit", "x"),
        ("fit", []),
        ("mean", [0.1, 0.2]),
        ("mean", [0.1, 0.2, float("nan")]),
        ("std", [0.1, 0.2, 0.0]),
        ("layers", "features.12"),
        ("layers", [["a"]]),
        ("pool", "max"),
        ("width", "512"),
        ("channels_last", 1),
        ("mirror", None),
    ],
)
def test_values_that_no_record_holds(key, value):
    tensors, config = made("squeezenet", size=48).record()
    with pytest.raises(CheckpointError, match=rf"^the model's network: {key} is "):
        from_record(tensors, config | {key: value})
    with pytest.raises(CheckpointError, match=rf"^the model's network: {key} is None, "):
        from_record(tensors, {k: v for k, v in config.items() if k != key})


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, of_config, message",
    [
        (without("net.features.0.bias"), {}, r" lacks 1 of the network's 50 tensors: features.0.bias$"),
        (lambda a: a | {"net.x": np.zeros(2)}, {}, r" has no place for 1 of the tensors: x$"),
        (lambda a: a | {"y": np.zeros(2)}, {}, r" has no place for 1 of the tensors: y$"),
        (
            lambda a: a | {"net.features.0.bias": np.zeros(3, np.float32)},
            {},
            r" features.0.bias is \(3,\), the network needs \(96,\)$",
        ),
        (
            lambda a: a | {"net.features.0.bias": np.full(96, np.inf, np.float32)},
            {},
            r" features.0.bias holds NaN or infinity$",
        ),
        (lambda a: a, {"width": 100}, r" gives 512 features, the model was made with 100$"),
        (lambda a: a, {"pool": "hybrid"}, r" tensor t does not fit pool=hybrid$"),
        (lambda a: a | {"t": np.zeros(1, np.float32)}, {}, r" tensor t does not fit pool=average$"),
        (lambda a: a, {"pool": "pyramid"}, r" gives 1024 features, the model was made with 512$"),
        (lambda a: a, {"pool": "cone"}, r" pool is 'cone', which is no record$"),
        (lambda a: a | {"t": np.zeros(2, np.float32)}, {"pool": "hybrid"}, r" tensor t does not fit pool=hybrid$"),
        (lambda a: a, {"layers": ["nowhere"]}, r" is another one now: the network has no layer 'nowhere'"),
        # A network of 2,000 TB: refused by the shapes, before memory is asked for.
        (lambda a: a, {"arguments": {"classes": "1000000000000"}}, r" lacks 2 of the network's 52 tensors: classifier"),
    ],
)
def test_records_that_do_not_fit(change, of_config, message):
    tensors, config = made("squeezenet", size=48).record()
    with pytest.raises(CheckpointError, match=message):
        from_record(change(tensors), config | of_config)


def test_colours_come_from_the_record():
    tensors, config = made("squeezenet", size=48).record()
    changed = from_record(tensors, config | {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.4]})
    assert changed.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert changed.record()[1]["std"] == [0.1, 0.2, 0.4]
