"""BppAttack: its scan against one written pixel by pixel, and what it does to a batch."""

import numpy as np
import pytest
import torch

from bench.attacks.base import Lab
from bench.attacks.bpp import Bpp, Quantised
from bench.data import Dataset, ImageSet
from bench.errors import UserError

SPREAD = ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1))


def scan(image, levels):
    """Floyd-Steinberg from left to right, row by row, on one channel."""
    image = image.astype(np.float64)
    for row, col in np.ndindex(*image.shape):
        old = image[row, col]
        image[row, col] = np.round(old / 255 * (levels - 1)) / (levels - 1) * 255
        for down, right, share in SPREAD:
            if row + down < image.shape[0] and 0 <= col + right < image.shape[1]:
                image[row + down, col + right] += (old - image[row, col]) * share / 16
    return image


@pytest.mark.parametrize(("size", "levels"), [((9, 17), 8), ((20, 8), 3), ((8, 8), 2)], ids=str)
def test_the_slanted_scan_is_the_scan(size, levels):
    x = torch.randint(256, (3, 2, *size), generator=torch.Generator().manual_seed(levels)).double()
    found = Quantised(levels, True, num_classes=10).dithered(x)
    wanted = np.stack([[scan(channel, levels) for channel in image] for image in x.numpy()])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dithering", [True, False])
def test_a_batch(dithering):
    """First the poisoned share, then negatives under their own label, then what was there."""
    rng = torch.Generator().manual_seed(0)
    train = ImageSet(
        torch.randint(256, (50, 3, 8, 8), generator=rng, dtype=torch.uint8), torch.randint(4, (50,), generator=rng)
    )
    attack = Bpp((3, 8, 8), 4, 0.2, 0.3, 4, dithering, target=2)
    seen = []

    def fit(model, data, on_batch, **rest):
        x = data.x[:20] / 255
        seen.extend((x, *on_batch(x, data.y[:20])))

    facts = attack.inject(None, Dataset(train, train, train, 4), Lab(fit, 5))
    before, x, y = seen
    assert facts["poisoned"] == 4
    torch.testing.assert_close(x[:4] * 255, attack.trigger(train.x[:4].float()), rtol=0, atol=1e-4)
    assert (y[:4] == 2).all() and y[4:].equal(train.y[4:20])
    assert x[10:].equal(before[10:])
    residuals = attack.trigger(train.x.float()) - train.x
    for new, old in zip(255 * x[4:10], train.x[4:10], strict=True):
        off = (new - (old + residuals).clamp(0, 255)).abs().amax((1, 2, 3))
        assert (off < 1e-3).sum() == 1, "the residual of one training image"
    assert x.min() >= 0 and x.max() <= 1


def test_a_small_batch_is_poisoned_now_and_then():
    attack = Bpp((3, 8, 8), 4, 0.1, 0.1, 4)
    images = ImageSet(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8), torch.tensor([1, 2]))

    def fit(model, data, on_batch, **rest):
        for _ in range(200):
            on_batch(data.x / 255, data.y)

    assert 20 < attack.inject(None, Dataset(images, images, images, 4), Lab(fit, 5))["poisoned"] < 60  # 40 expected


@pytest.mark.parametrize("wrong", [{"levels": 1}, {"negative_rate": 0.9}, {"negative_rate": -0.1}, {"poison_rate": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=f"attack.{next(iter(wrong))}"):
        Bpp((3, 8, 8), 4, **{"poison_rate": 0.2, "negative_rate": 0.2, "levels": 8} | wrong)
