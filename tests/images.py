"""Small images and a model that takes them, for the tests of features, galleries and ONNX; nothing is trained."""

import warnings
from functools import cache

import numpy as np

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ScqWarning

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (230, 30, 20)}
SIZE = 32
NETWORK = ("--encoder", "squeezenet", "--set", f"size={SIZE}")


class Drawn:
    """Images in memory, as a source gives them."""

    def __init__(self, x):
        self.x, self.size, self.d, self.block_rows = x, x.shape[2], x[0].size, 16
        self.item_shape = x.shape[1:]

    def __len__(self):
        return len(self.x)

    def take(self, rows):
        return self.x[rows]


def draw(colour, seed, side=40):
    """(side, side, 3) uint8: noise around one colour, with a square in it."""
    rng = np.random.default_rng(seed)
    x = np.asarray(COLOURS[colour]) + rng.integers(-20, 20, (side, side, 3))
    i, j = rng.integers(0, side - 10, 2)
    x[i : i + 10, j : j + 10] = rng.integers(0, 256, 3)
    return np.clip(x, 0, 255).astype(np.uint8)


def photos(folder, each=6, colours=tuple(COLOURS), seed=0):
    """A folder of `each` images a class, a sub-folder for each; returns it."""
    from PIL import Image

    for c, colour in enumerate(colours):
        (folder / colour).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(draw(colour, (seed, c, i))).save(folder / colour / f"p{i}.png")
    return folder


@cache
def network(pool="average", layers=""):
    """A squeezenet of random weights, in evaluation mode."""
    from scqfaiss.encoders import inference

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        found, _ = inference.of_factory("squeezenet", {}, None, {"size": SIZE, "pool": pool, "layers": layers})
    return found.eval()


@cache
def model(folded=False, **how):
    """A model for images with z of d=8 in 16 bits; folded: its chain, without the network, stands inside galleries."""
    net, rng = network(**how), np.random.default_rng(0)

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    tensors, record = net.record()
    layers = [("linear", {"A": f(8, net.width), "b": f(8)})] + ([] if folded else [("tanh", {})])
    config = {"method": "pq", "rule": "l2", "encoder": net.factory, "backbone": record}
    return scqfaiss.Model(Chain(net.width, layers), Codebooks("product", f(4, 16, 2), "ip"), config, tensors)


def plain(d):
    """A model for rows of d alone."""
    codebooks = np.random.default_rng(1).standard_normal((2, 16, d // 2)).astype(np.float32)
    return scqfaiss.Model(
        Chain(d), Codebooks("product", codebooks, "ip"), {"method": "pq", "rule": "l2", "encoder": "identity"}
    )
