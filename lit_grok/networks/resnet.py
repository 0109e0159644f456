"""The residual network of 18 layers."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stem = Literal["imagenet", "small"]
Normalisation = Literal["batch", "group"]

#: Mean and standard deviation that whole-numbered images are normalised by: ImageNet's, over its colours.
MEAN, STD = 0.449, 0.226


class ResNet18(nn.Module):
    """Residual network of 18 layers with weights (He et al. 2015, arXiv 1512.03385, Table 1, without the projections).

    A stem; four stages of two blocks each, of width, 2·width, 4·width and 8·width channels, the first block of stages 2
    to 4 with stride 2; the mean over all positions; Linear(8·width → classes). A block is
    relu(norm(conv₃ₓ₃(relu(norm(conv₃ₓ₃(x))))) + x), with norm(conv₁ₓ₁(x)) in place of x where the shape changes. No
    convolution has a bias. Layers are named, and start, as in torchvision: convolutions normal with variance
    2 / (outputs · k²) (Kaiming, fan_out), normalisations with scale 1 and shift 0, the last layer as PyTorch does.

    Batch normalisation keeps running statistics, in buffers that training updates and evaluation reads, so such a
    network trains one replica at a time. Group normalisation has no memory and treats every image by itself: replicas
    with it train together.

    Args:
        classes: Number of classes.
        width: Channels of the first stage; 64 is the original.
        channels: Of the images: 1 for grey, 3 for colours.
        stem: ``imagenet``: Conv 7×7 with stride 2 and a 3×3 maximum with stride 2, so that the stages see a quarter of
            the side; ``small``: Conv 3×3 with stride 1, for images of 32 pixels or so.
        normalisation: ``batch``, or ``group`` with 8 groups of channels, with fewer, their greatest common divisor,
            where 8 does not divide the width.

    Raises:
        ValueError: For no classes, no channels, and an unknown stem or normalisation.

    Example:
        >>> network = ResNet18(classes=1000, channels=3)
        >>> sum(p.numel() for p in network.parameters())
        11689512
        >>> small = ResNet18(classes=25, width=8, stem="small", normalisation="group")
        >>> small(torch.zeros(2, 32, 32)).shape, small.penultimate(torch.zeros(2, 32, 32)).shape
        (torch.Size([2, 25]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        classes: int,
        width: int = 64,
        channels: int = 1,
        stem: Stem = "imagenet",
        normalisation: Normalisation = "batch",
    ):
        super().__init__()
        for name, value, least in (("classes", classes, 2), ("width", width, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: allowed: 1 (grey), 3 (colours)")
        if stem not in get_args(Stem):
            raise ValueError(f"stem={stem}: unknown; allowed: {', '.join(get_args(Stem))}")
        if normalisation not in get_args(Normalisation):
            raise ValueError(f"normalisation={normalisation}: unknown; allowed: {', '.join(get_args(Normalisation))}")
        self.channels, self.stem = channels, stem
        norm = nn.BatchNorm2d if normalisation == "batch" else _group_norm
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)
        self.bn1 = norm(width)
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            blocks = _Block(inputs, outputs, 1 if stage == 0 else 2, norm), _Block(outputs, outputs, 1, norm)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(inputs, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def neurons(self) -> dict[str, str]:
        """The first and the second convolution of every block: what lies between them has no other way."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, _Block)]
        return {f"{name}.conv1.weight": f"{name}.conv2.weight" for name in blocks}

    def penultimate(self, inputs: Tensor) -> Tensor:
        """What the last layer sees, shape (B, 8·width): the mean over all positions of the last stage.

        Args:
            inputs: As those of `forward`.
        """
        x = F.relu(self.bn1(self.conv1(self._image(inputs))))
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, padding=1)
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean((2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, classes).

        Args:
            inputs: Images (B, H, W) or (B, channels, H, W), where grey ones are repeated in every channel. Floating
                point numbers are taken as they are, and uint8 as levels from 0 to 255, of which the network sees
                (level / 255 − 0.449) / 0.226.
        """
        return self.fc(self.penultimate(inputs))

    def _image(self, inputs: Tensor) -> Tensor:
        images = (inputs.unsqueeze(1) if inputs.ndim == 3 else inputs).to(self.fc.weight.dtype)
        if inputs.dtype == torch.uint8:
            images = (images / 255 - MEAN) / STD
        return images.expand(-1, self.channels, -1, -1)


class _Block(nn.Module):
    """Two 3×3 convolutions, and a way past them."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = nn.Sequential()  # nothing: the identity
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.downsample(x))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
