"""Turns stored pixels into what a network sees: crops, flips, lighting and normalisation.

Settings of the TAS paper's code (NeurIPS 2019): flip and padded crop for CIFAR; resized crop, colour jitter
and PCA lighting for ImageNet.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

# Importing torchvision takes seconds; the functions that treat photographs import it themselves.

CROP_PADDING_DIVISOR = 8
"""Image size over padding of a random crop: 4 pixels of padding for CIFAR's 32, 1 for the digits' 8."""

EVALUATION_RESIZE = 256 / 224
"""Shorter side of a photograph before the centre crop, as a multiple of the crop's size."""

_LIGHTING_STD = 0.1
_LIGHTING_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_LIGHTING_EIGENVECTORS = (  # one row a colour (red, green, blue), one column an eigenvalue
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def crop_and_flip(
    images: UInt8[Tensor, "batch channels height width"],
    *,
    padding: int,
    horizontal_flip: bool,
    generator: torch.Generator,
) -> UInt8[Tensor, "batch channels height width"]:
    """Return a random window of every image, padded with black; `horizontal_flip` mirrors half of them.

    Each image has its own window, uniform over all (2 * padding + 1)**2, and its own coin. The published
    code mirrors before it crops; with symmetric padding and windows the distribution is the same.
    `generator` must be on the CPU, so that the draws, and with them the pixels, are the same for images on
    any device.
    """
    batch, _, height, width = images.shape
    draws = torch.stack(
        [
            torch.arange(batch),
            torch.randint(0, 2 * padding + 1, (batch,), generator=generator),
            torch.randint(0, 2 * padding + 1, (batch,), generator=generator),
            torch.randint(0, 2, (batch,), generator=generator),
        ]
    )
    row, top, left, mirror = draws.to(images.device, non_blocking=True)
    if padding:
        padded = F.pad(images, (padding, padding, padding, padding))
        # [batch, channels, tops, lefts, height, width]
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[row, :, top, left]
    if horizontal_flip:
        images = torch.where(mirror.bool()[:, None, None, None], images.flip(3), images)
    return images


def normalize(
    images: UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Tensor, "batch channels height width"]:
    """Return `(images / 255 - mean) / std` as float32 on the images' device.

    `images` hold 0..255; `mean` and `std` have one number a channel, where white is 1.
    """
    factors = torch.tensor([[1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]])
    scale, shift = factors[:, :, None, None].to(images.device, non_blocking=True)
    return images.float().mul_(scale).add_(shift)


def lighting(
    images: UInt8[Tensor, "batch 3 height width"], *, generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Return the images as float32, each shifted by a random colour; values may leave 0..255.

    AlexNet's PCA lighting with standard deviation 0.1, as in TAS's ImageNet training: the shifts follow the
    principal axes of ImageNet's colours. `generator` must be on the CPU.
    """
    strength = _LIGHTING_STD * torch.randn(len(images), 3, generator=generator)
    shift = 255 * (strength * torch.tensor(_LIGHTING_EIGENVALUES)) @ torch.tensor(_LIGHTING_EIGENVECTORS).T
    return images.float().add_(shift[:, :, None, None].to(images.device, non_blocking=True))


def evaluation_view(image: Image.Image, size: int) -> UInt8[Tensor, "3 size size"]:
    """Return the centre of an RGB photograph whose shorter side was resized to `size * 256 / 224` pixels.

    An image that already has `size` x `size` pixels is returned as it is, so that a dataset stored at its
    final size loses no border.
    """
    from torchvision.transforms.v2 import functional as v2

    if image.size != (size, size):
        image = v2.center_crop(v2.resize(image, [round(size * EVALUATION_RESIZE)], antialias=True), [size, size])
    return v2.pil_to_tensor(image)


def training_view(size: int, horizontal_flip: bool) -> Callable[[Image.Image], UInt8[Tensor, "3 size size"]]:
    """Return the function that makes a random view of an RGB photograph for training.

    Resized crop, colour jitter (brightness, contrast, saturation 0.4, hue 0.2), and a flip if
    `horizontal_flip`. The view draws from torch's default CPU generator, the only one torchvision knows.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.2),
            v2.RandomHorizontalFlip(0.5 if horizontal_flip else 0.0),
            v2.PILToTensor(),
        ]
    )
