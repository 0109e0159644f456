"""Sums of polygons: images of four regular polygons, and how many sides these have together."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Dataset, ReplicaDataModule, Split


class PolygonsDataModule(ReplicaDataModule):
    """All images of four symbols, labelled by the sum of their sides (arXiv 2504.03162, Section 6.4).

    An image has four quadrants, top left, top right, bottom left and bottom right, each blank (symbol 0, no sides) or
    with a regular polygon (symbol k ≥ 1 has k + 2 sides: a triangle, a square, …). The label is the sum of the four
    numbers of sides, from 0 to 4·(symbols + 1), of which 1 and 2 never occur. There are symbols⁴ images; the first
    symbol of the quadruple (top left) varies slowest.

    Inputs are grey levels uint8, white 255, shape (R, N, side, side), which the network turns into numbers, because as
    float32 the paper's 14 641 images would take 2.9 GB and not 0.7; targets (R, N). How a symbol is drawn:
    `draw_polygon`.

    The authors' images differ in three ways: their polygons have the radius 46 in the first quadrant alone and −56 in
    the others (of 112 pixels; a slip that turns them by 180°), and they are saved as JPEG and cropped by 14 pixels on
    each side.

    Args:
        symbols: Of a quadrant, the blank one included; 11 is the paper's, with up to 12 sides.
        side: Of an image, in pixels: an even number from 16 on; 224 is the paper's.
        classes: Of the network, so that it is checked here: 4·symbols + 5 or more (the sums from 0 to
            4·(symbols + 1)); the paper's network has 52, of which it needs 49. None for no check.
        train_fraction: Part of the images to train on, rounded down to whole images.
        batch_size: Examples per step and replica.
        shuffle: A new order in every epoch, as the authors; otherwise the same batches.
        options: Those of `ReplicaDataModule`: ``data_seeds``, ``order_seeds``, ``label_noise``.

    Raises:
        ValueError: For a value that is not allowed; the message says what is.

    Example:
        >>> data = PolygonsDataModule(symbols=3, side=16)
        >>> data.setup()
        >>> data.split("train")[0].shape, data.split("test")[0].shape, data.split("test")[1].max().item()
        (torch.Size([1, 20, 16, 16]), torch.Size([1, 61, 16, 16]), 16)
    """

    def __init__(
        self,
        symbols: int = 11,
        side: int = 224,
        classes: int | None = None,
        train_fraction: float = 0.25,
        batch_size: int = 200,
        shuffle: bool = True,
        **options: Any,
    ):
        super().__init__(batch_size=batch_size, shuffle=shuffle, **options)
        if symbols < 2:
            raise ValueError(f"symbols={symbols}: must be at least 2, the blank one and a triangle")
        if side < 16 or side % 2:
            raise ValueError(f"side={side}: must be an even number of pixels, 16 or more")
        if classes is not None and classes < 4 * symbols + 5:
            raise ValueError(
                f"classes={classes}: the sums of {symbols} symbols go from 0 to {4 * symbols + 4}, "
                f"so give network.classes={4 * symbols + 5} or more"
            )
        if not 0 < train_fraction < 1 or int(train_fraction * symbols**4) < 1:
            raise ValueError(
                f"train_fraction={train_fraction}: must lie between 0 and 1 and leave images to train and to test on"
            )
        self.symbols, self.side, self.train_fraction = symbols, side, train_fraction

    def dataset(self) -> Dataset:
        """All quadruples of symbols in lexicographic order, uint8 (symbols⁴, 4), and their sums of sides."""
        symbols = torch.arange(self.symbols, dtype=torch.uint8)
        quadruples = torch.cartesian_prod(*[symbols] * 4)
        return Dataset(quadruples, _sides(quadruples.long()).sum(1))

    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """A uniformly random choice of ⌊train_fraction · symbols⁴⌋ images, and the others."""
        order = generator.permutation(self.symbols**4)
        train = int(self.train_fraction * self.symbols**4)
        return {"train": order[:train], "test": order[train:]}

    def encode(self, inputs: Tensor) -> Tensor:
        """Images, uint8 (…, side, side), of quadruples (…, 4): each symbol is drawn once, and put where it belongs."""
        drawn = [draw_polygon(int(_sides(torch.tensor(symbol))), self.side // 2) for symbol in range(self.symbols)]
        symbols, half = torch.from_numpy(np.stack(drawn)), self.side // 2
        images = torch.empty(*inputs.shape[:-1], self.side, self.side, dtype=torch.uint8)
        for quadrant in range(4):
            top, left = half * (quadrant // 2), half * (quadrant % 2)
            images[..., top : top + half, left : left + half] = symbols[inputs[..., quadrant].long()]
        return images

    def grid(self) -> tuple[Tensor, Tensor]:
        """All images, uint8 (symbols⁴, side, side), in lexicographic order, and their labels, whatever the split."""
        quadruples, labels = self.dataset()
        return self.encode(quadruples), labels


def draw_polygon(sides: int, size: int) -> np.ndarray:
    """A regular polygon with its spokes, black on white.

    Vertex k of n stands at the angle 2πk/n, the first to the right of the centre, at 46/112 of the size from it; the
    outline and a spoke from the centre to each vertex are lines of size/112 pixels, but of one pixel at least. The grey
    level of a pixel is 255 · min(1, max(0, d + ½ − w/2)), with d the distance of its middle from the next line and w
    the width of the lines, so that the picture varies smoothly with what it shows.

    Args:
        sides: n, at least 3; 0 for a blank picture.
        size: In pixels.

    Returns:
        Grey levels, uint8 (size, size), rows from top to bottom.

    Raises:
        ValueError: For 1 or 2 sides.

    Example:
        >>> draw_polygon(0, 2)
        array([[255, 255],
               [255, 255]], dtype=uint8)
        >>> draw_polygon(4, 8)[3]  # one of the two rows beside the horizontal spokes, half a pixel away from them
        array([129,  52, 128, 128, 128, 128,  52, 129], dtype=uint8)
    """
    if sides < 0 or sides in (1, 2):
        raise ValueError(f"sides={sides}: a polygon has 3 or more, and 0 is blank")
    angles = 2 * np.pi * np.arange(sides) / max(sides, 1)
    vertices = 46 / 112 * size * np.stack([np.cos(angles), -np.sin(angles)], 1)  # rows grow downwards
    starts = np.concatenate([vertices, np.zeros_like(vertices)])
    ends = np.concatenate([np.roll(vertices, -1, 0), vertices])
    middles = np.arange(size) + 0.5 - size / 2
    points = np.stack(np.meshgrid(middles, middles), -1)[:, :, None]  # (row, column, 1, (x, y))
    along = ends - starts
    share = ((points - starts) * along).sum(-1) / (along**2).sum(-1)
    nearest = starts + share.clip(0, 1)[..., None] * along
    distance = np.linalg.norm(points - nearest, axis=-1).min(-1, initial=np.inf)
    level = distance + 0.5 - max(1, size / 112) / 2
    # To six digits first: a half must not go up in one pixel and down in its mirror image.
    return np.rint((255 * level.clip(0, 1)).round(6)).astype(np.uint8)


def _sides(symbols: Tensor) -> Tensor:
    """How many sides each symbol has."""
    return torch.where(symbols > 0, symbols + 2, symbols)
