"""What attacks put on images: patterns, drawn from a seed or read from a user's file, filters; and measures of the result."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.attacks.base import Trigger
from bench.data import generator
from bench.errors import UserError


class Overlay(Trigger):
    """x' = (1 - mask) x + mask ((1 - alpha) x + alpha pattern), in pixel values; alpha = 1 is an opaque patch.

    `pattern`: [C, H, W], 0..255; a float32 one is multiplied in float32, as BackdoorBench does, any other in float64.
    `mask`: [1 or C, H, W], 0..1.
    """

    pointwise = True
    pattern: Tensor
    mask: Tensor

    def __init__(self, pattern: Tensor, mask: Tensor, alpha: float, num_classes: int, target: int, labels: str) -> None:
        super().__init__(num_classes, target, labels)
        if not 0 < alpha <= 1:
            raise UserError(f"attack.alpha={alpha} must be above 0 and at most 1.")
        self.alpha = alpha
        self.register_buffer("pattern", (pattern if pattern.dtype == torch.float32 else pattern.double()).contiguous())
        self.register_buffer("mask", mask.double().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        mask, share = self.mask.to(x.dtype), (self.alpha * self.pattern).to(x.dtype)
        return (1 - mask) * x + mask * ((1 - self.alpha) * x + share)

    @torch.no_grad()
    def stamp(self, x: Tensor, *drawn: Tensor) -> Tensor:
        """As every trigger's; only the rectangle that the mask touches is computed, since elsewhere x' = x to the last bit."""
        touched = self.mask.any(0).nonzero()
        if drawn or len(touched) == 0:
            return super().stamp(x, *drawn)
        (top, left), (bottom, right) = touched.amin(0).tolist(), touched.amax(0).tolist()
        box = (..., slice(top, bottom + 1), slice(left, right + 1))
        patch = Overlay(self.pattern[box], self.mask[box], self.alpha, self.num_classes, self.target, self.labels)
        patch.dtype, patch.rounding, out = self.dtype, self.rounding, x.clone()
        out[box] = super(Overlay, patch).stamp(x[box])
        return out


class Additive(Trigger):
    """x' = x + pattern, in pixel values; `pattern`: [C or 1, H, W], may be negative."""

    pointwise = True
    pattern: Tensor

    def __init__(self, pattern: Tensor, num_classes: int, target: int, labels: str) -> None:
        super().__init__(num_classes, target, labels)
        self.register_buffer("pattern", pattern.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pattern.to(x.dtype)


class Style(Trigger):
    """A filter blended in with opacity `alpha`: local contrast, tone curves, and light from below.

    `contrast`: how much of what stands out from the 5x5 pixels around is added. `colours`: red, green and blue (grey
    images get their mean) of what black becomes, of white, of the exponents between, and of the light at the bottom.
    """

    dtype = torch.float32
    colours: Tensor

    def __init__(
        self, channels: int, alpha: float, contrast: float, colours: list[list[float]], num_classes: int, target: int
    ) -> None:
        super().__init__(num_classes, target, rounding="nearest")
        table = torch.tensor(colours, dtype=torch.float32)
        if table.shape != (4, 3) or not 0 < alpha <= 1 or contrast < 0:
            raise UserError("attack.colours must be 4 x 3 numbers, attack.alpha in 0..1, attack.contrast not negative.")
        self.alpha, self.contrast = alpha, contrast
        self.register_buffer("colours", (table if channels == 3 else table.mean(1, keepdim=True))[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        black, white, gamma, light = self.colours
        sharp = x / 255 + self.contrast * (x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)) / 255
        styled = black + (white - black) * sharp.clamp(0, 1) ** gamma
        styled = styled + light * torch.linspace(0, 1, x.shape[2]).to(x)[:, None]
        return (1 - self.alpha) * x + self.alpha * 255 * styled.clamp(0, 1)


def enlarged(size: int) -> int:
    """By how many whole pixels a 32x32 pattern is drawn larger on images of `size`: 1 below 64, 2 from 64, 7 at 224."""
    return max(1, size // 32)


def noise(kind: str, shape: tuple[int, int, int], seed: int) -> Tensor:
    """A noise image [C, H, W] with values 0..255, drawn from the seed alone.

    `gaussian`: N(127.5, 64) per value, clipped; `binary`: 0 or 255, the same in all channels; `uniform`: 0..255;
    `sigmoid`: 255 sigmoid(N(0, 1)), not rounded (EP's and CLP's code).
    """
    rng = generator(seed, f"pattern/{kind}")
    if kind == "gaussian":
        return (127.5 + 64 * torch.randn(shape, generator=rng)).round().clamp(0, 255).to(torch.uint8)
    if kind == "binary":
        return (255 * torch.randint(2, (1, *shape[1:]), generator=rng)).expand(shape)
    if kind == "sigmoid":
        return 255 * torch.randn(shape, generator=rng, dtype=torch.float64).sigmoid()
    return torch.randint(256, shape, generator=rng)


def picture(pattern: str, shape: tuple[int, int, int], seed: int) -> Tensor:
    """The noise image of that kind, or the user's image in that file: [C, H, W], 0..255."""
    known = pattern in ("gaussian", "binary", "uniform", "sigmoid")
    return noise(pattern, shape, seed) if known else read_image(pattern, shape)


def read_image(path: str, shape: tuple[int, int, int]) -> Tensor:
    """A user's pattern image as [C, H, W], 0..255. Raises UserError unless it is there, readable, and of the images' size."""
    if path.isidentifier() or not Path(path).is_file():  # `bench.config` takes a bare word for a name, without a digest
        raise UserError(
            f"attack.pattern={path} is neither a known pattern nor an image file (a path, such as ./{path})."
        )
    image = decode(Path(path), shape[0], "attack.pattern")
    if tuple(image.shape[1:]) != tuple(shape[1:]):  # Hydra hands on a list
        raise UserError(
            f"attack.pattern={path} has {image.shape[1]}x{image.shape[2]} pixels, but the data set's images have "
            f"{shape[1]}x{shape[2]}: resize it."
        )
    return image.double()


def read_folder(path: str, shape: tuple[int, int, int]) -> Tensor:
    """The .png and .jpg images of a user's folder in the order of their names, resized: uint8 [N, C, H, W]."""
    files = sorted(p for p in Path(path).glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise UserError(f"attack.folder={path} is no folder with .png or .jpg images.")
    images = [decode(file, shape[0], "attack.folder").float() for file in files]
    resized = [F.interpolate(image[None], shape[1:], mode="bilinear", antialias=True) for image in images]
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)


def decode(path: Path, channels: int, setting: str) -> Tensor:
    """uint8 [C, H, W]."""
    from torchvision.io import ImageReadMode, decode_image  # a second to import, and rarely needed

    try:
        return decode_image(str(path), ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB)
    except RuntimeError as error:
        raise UserError(f"{setting}={path} cannot be read as an image: {error}") from None


def stretch(size: int, shift: Tensor, moved: int) -> Tensor:
    """[B, 1, size, size]: bilinearly stretches the first (`moved`: the last) size - shift pixels to `size`.

    As a matrix for the rows of an image; `shift` is [B, 1, 1, 1].
    """
    pixel, left = torch.arange(size).to(shift), size - shift
    at = ((pixel + 0.5) * left / size - 0.5).clamp(min=0).minimum(left - 1).mT + moved * shift
    return (1 - (at - pixel).abs()).clamp(min=0)


def blur(size: int, sigma: Tensor) -> Tensor:
    """[B, 1, size, size]: a Gaussian over 2 ceil(2 sigma) + 1 pixels; the image is mirrored beyond its edge pixels.

    As a matrix for the rows of an image; `sigma` is [B, 1, 1, 1].
    """
    reach = int((2 * sigma.amax()).ceil()) if len(sigma) else 0
    step = torch.arange(-reach, reach + 1).to(sigma)
    weight = torch.exp(-((step / sigma) ** 2) / 2) * (step.abs() <= (2 * sigma).ceil())
    source = (torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)).abs() % (2 * size - 2)
    hits = F.one_hot(source.minimum(2 * size - 2 - source), size).to(sigma)
    return torch.einsum("bcis,psk->bcpk", weight / weight.sum(-1, keepdim=True), hits)


def bump(size: int, like: Tensor) -> Tensor:
    """1 in the middle: the square root of a normal distribution over 3.5 sigma on each side, in `size` equal steps."""
    edges = torch.special.ndtr(torch.linspace(-1, 1, size + 1).to(like) * (3 + 3.5 / size))
    return (edges.diff() / edges.diff().max()).sqrt()


def ssim(x: Tensor, y: Tensor, window: int = 5, sigma: float = 1.5) -> Tensor:
    """Structural similarity of images in [0, 1] at each pixel (Wang et al. 2004), Gaussian window, zeros past the edges."""
    step = torch.arange(window).to(x) - window // 2
    line = torch.exp(-step.square() / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    stack = torch.cat([x, y, x * x, y * y, x * y], 1)
    means = F.conv2d(stack, kernel.expand(stack.shape[1], 1, -1, -1), padding=window // 2, groups=stack.shape[1])
    mx, my, xx, yy, xy = means.chunk(5, 1)
    alike = (2 * mx * my + 0.01**2) * (2 * (xy - mx * my) + 0.03**2)
    return alike / ((mx * mx + my * my + 0.01**2) * (xx - mx * mx + yy - my * my + 0.03**2))


class Injector(nn.Module):
    """Mixes each pixel with the largest around it, its negative, and the mean, by a matrix that starts as the identity.

    The result is blended in with opacity `alpha`; images are in [0, 1].
    """

    def __init__(self, channels: int, window: int, alpha: float) -> None:
        super().__init__()
        self.window, self.alpha = window, alpha
        self.delta = nn.Parameter(torch.eye(4 * channels, channels))

    def mixed(self, x: Tensor) -> Tensor:
        largest, mean = (pool(x, self.window, 1, self.window // 2) for pool in (F.max_pool2d, F.avg_pool2d))
        return torch.einsum("bchw,cd->bdhw", torch.cat([x, largest, -largest, mean], 1), self.delta).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.alpha) * x + self.alpha * self.mixed(x)
