"""SqueezeNet 1.0, a network of 0.7 million weights (5 MB with its classifier) that a CPU trains.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB
model size", arXiv 1602.07360, 2016; table 1 and section 3. Parameters bear torchvision's names, so that its weights load.

Of an image of 224 x 224 the maps before each halving are, by name: features.5 (256, 54, 54), features.10 (512, 27, 27) and
features.12 (512, 13, 13), the last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """(b, c, h, w) -> (b, 2 expand, h, w): few 1x1 filters, then as many 1x1 as 3x3 filters side by side (section 3.1)."""

    def __init__(self, c: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu_()
        # A convolution needs its input for the gradient, not its output: ReLU may overwrite that.
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu_()


class SqueezeNet(nn.Module):
    """Images (b, 3, h, w), standardised by `mean` and `std` -> the last map (b, 512, h / 16, w / 16); or logits (b, C)."""

    input_size = 224
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1], over ImageNet
    feature_layers = ("features.12",)
    stage_layers = ("features.5", "features.10", "features.12")  # the last maps of three sizes, for pool=pyramid

    def __init__(self, classes: int = 0) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2),
            nn.ReLU(inplace=True),
            pool(),
            Fire(96, 16, 64),
            Fire(128, 16, 64),
            Fire(128, 32, 128),
            pool(),
            Fire(256, 32, 128),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            pool(),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU()) if classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if self.classifier is not None:
            last = self.classifier[1]
            assert isinstance(last, nn.Conv2d)
            nn.init.normal_(last.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return x if self.classifier is None else self.classifier(x).mean((2, 3))


def squeezenet1_0(classes: int = 0) -> SqueezeNet:
    """The network; classes: width of its own classifier, 0 for none, 1000 for ImageNet's. Raises ValueError below 0."""
    if classes < 0:
        raise ValueError(f"classes is {classes}, needs 0 or more")
    return SqueezeNet(classes)
