"""The network of phpq.safetensors: two maps of a few channels."""

from torch import nn


def small() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
    net.input_size, net.stage_layers = 8, ("1", "3")
    return net
