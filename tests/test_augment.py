"""Crops are windows, flips are mirrors, normalisation is arithmetic: checked image by image."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tas_ray.augment import crop_and_flip, evaluation_view, lighting, normalize, training_view
from tas_ray.randomness import generator, seed_of


def random_images(*shape: int) -> Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator("cpu", "test images"))


def window_of(padded: Tensor, image: Tensor) -> tuple[int, int] | None:
    """Return the top left corner of `image` in `padded`, by comparing every window."""
    height, width = image.shape[-2:]
    for top in range(padded.shape[-2] - height + 1):
        for left in range(padded.shape[-1] - width + 1):
            if torch.equal(padded[:, top : top + height, left : left + width], image):
                return top, left
    return None


def test_every_crop_is_one_window_of_the_black_padded_image() -> None:
    images = random_images(40, 3, 8, 8)
    cropped = crop_and_flip(images, padding=2, horizontal_flip=False, generator=generator("cpu", 1))
    corners = [window_of(F.pad(image, (2, 2, 2, 2)), crop) for image, crop in zip(images, cropped, strict=True)]
    assert None not in corners
    assert len(set(corners)) > 15  # of 25 windows: every image draws its own


def test_windows_are_uniform_over_all_offsets() -> None:
    image = random_images(1, 3, 4, 4)
    crops = crop_and_flip(image.expand(9000, 3, 4, 4), padding=1, horizontal_flip=False, generator=generator("cpu", 2))
    padded = F.pad(image[0], (1, 1, 1, 1))
    counts = [
        int((crops == padded[:, top : top + 4, left : left + 4]).flatten(1).all(1).sum())
        for top in range(3)
        for left in range(3)
    ]
    assert sum(counts) == 9000
    assert max(abs(count - 1000) for count in counts) < 150  # five standard deviations


def test_a_flip_mirrors_and_hits_half_of_the_images() -> None:
    images = random_images(2000, 3, 4, 4)
    flipped = crop_and_flip(images, padding=0, horizontal_flip=True, generator=generator("cpu", 3))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 850 < int(mirrored.sum()) < 1150


def test_without_flip_and_padding_nothing_changes() -> None:
    images = random_images(5, 3, 8, 8)
    assert torch.equal(crop_and_flip(images, padding=0, horizontal_flip=False, generator=generator("cpu", 4)), images)


def test_flip_and_crop_together_give_a_window_or_its_mirror() -> None:
    images = random_images(30, 3, 8, 8)
    for image, crop in zip(
        images,
        crop_and_flip(images, padding=1, horizontal_flip=True, generator=generator("cpu", 5)),
        strict=True,
    ):
        padded = F.pad(image, (1, 1, 1, 1))
        assert window_of(padded, crop) or window_of(padded, crop.flip(2))


def test_normalize_is_torchvisions_to_tensor_and_normalize() -> None:
    images = random_images(4, 3, 5, 6)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalize(images, mean, std), expected.float(), atol=2e-6, rtol=1e-6)


def test_lighting_shifts_every_pixel_of_an_image_by_one_colour() -> None:
    images = random_images(2000, 3, 2, 2)
    shift = lighting(images, generator=generator("cpu", 6)) - images.float()
    assert float((shift - shift[:, :, :1, :1]).abs().max()) < 1e-4
    # Along the principal axes the deviations are 0.1 times the eigenvalues.
    colours = shift[:, :, 0, 0] / 255
    assert float(colours.mean(0).abs().max()) < 0.002
    variances, axes = torch.linalg.eigh(colours.T.cov())
    torch.testing.assert_close(variances.sqrt(), torch.tensor([0.00045, 0.00188, 0.02175]), rtol=0.1, atol=0.0)
    torch.testing.assert_close(axes[:, 2].abs(), torch.tensor([0.5675, 0.5808, 0.5836]), rtol=0.0, atol=0.01)
    torch.testing.assert_close(axes[:, 1].abs(), torch.tensor([0.7192, 0.0045, 0.6948]), rtol=0.0, atol=0.03)


def test_an_image_of_the_right_size_is_evaluated_as_it_is() -> None:
    pixels = random_images(16, 16, 3)
    view = evaluation_view(Image.fromarray(pixels.numpy()), 16)
    assert torch.equal(view, pixels.permute(2, 0, 1))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (10, 10), (9, 200)])
def test_other_images_are_evaluated_by_their_centre(shape: tuple[int, int]) -> None:
    height, width = shape
    ramp = torch.linspace(0, 255, width).round().byte().expand(3, height, width).permute(1, 2, 0).contiguous()
    view = evaluation_view(Image.fromarray(ramp.numpy()), 28)
    assert view.shape == (3, 28, 28)
    row = view[0, 0].float()
    assert bool((row.diff() >= 0).all())
    assert abs(float(row.mean()) - 127.5) < 4  # centred
    # The crop shows 28 of 32 pixels of the shorter side.
    assert float(row[-1] - row[0]) == pytest.approx(255 * 27 / (32 * max(width / height, 1)), rel=0.15, abs=3)


def test_training_views_follow_torchs_generator_and_differ() -> None:
    image = Image.fromarray(random_images(50, 40, 3).numpy())
    view = training_view(24, horizontal_flip=True)
    drawn = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            drawn.append(view(image))
    assert drawn[0].shape == (3, 24, 24)
    assert drawn[0].dtype == torch.uint8
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_seeds_tell_value_type_and_order_apart_and_never_change() -> None:
    parts: list[tuple[int | str, ...]] = [
        (), (1,), ("1",), (1, 2), (2, 1), (12,), ("a", 1), ("a1",), ("a", "1"), ("", "a1"), (-1,), (2**80,),
    ]  # fmt: skip
    seeds = {seed_of(*some) for some in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("train", 0, 7) == 4172877000387023304  # checkpoints rely on it


def test_generators_repeat_by_their_parts() -> None:
    first, again, other = (torch.rand(3, generator=generator("cpu", "a", n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
