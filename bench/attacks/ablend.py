"""Adap-Blend: a faint image of which each training image shows only half the pieces; covers keep it from standing out.

Qi, Xie, Li, Mahloujifar & Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023,
Section 4.2 (asymmetric triggers) and 4.1 (regularisation samples, here `cover`); reference: backdoor-toolbox,
poison_tool_box/adaptive_blend.py. Piece i of d x d lies in row i % d and column i // d, as in that code.
Departures: the reference's pattern file (Hello Kitty) is not ours to give: noise drawn from `pattern_seed`, or a user's
image of the data's size. At any size the noise is drawn pixel by pixel, and there are as many pieces.
"""

import math

import torch
from torch.nn import functional as F

from bench.attacks.base import PoisonAttack
from bench.attacks.patterns import Overlay, picture
from bench.data import generator
from bench.errors import UserError


class PieceBlend(Overlay):
    """The whole pattern at `test_alpha`; on a training image `alpha` of it, without the pieces that are removed."""

    def __init__(self, pattern, alpha, test_alpha, pieces, mask_rate, **trigger):
        if not 0 < test_alpha <= 1:
            raise UserError(f"attack.test_alpha={test_alpha} must be above 0 and at most 1.")
        super().__init__(pattern, torch.ones(1, *pattern.shape[1:]), test_alpha, labels="all2one", **trigger)
        self.across = math.isqrt(max(pieces, 0))
        if pieces < 1 or self.across**2 != pieces or self.across > min(pattern.shape[1:]):
            raise UserError(f"attack.pieces={pieces} must be a square number, no row of pieces longer than the images.")
        if not 0 < alpha <= 1 or not 0 <= mask_rate < 1:
            raise UserError(
                f"attack.alpha={alpha} must be in 0..1 and attack.mask_rate={mask_rate} at least 0, below 1."
            )
        self.train_alpha, self.removed = alpha, round(pieces * mask_rate)
        if self.removed == pieces:
            raise UserError(f"attack.mask_rate={mask_rate} leaves none of the {pieces} pieces on a training image.")

    def draw(self, count, seed):
        """Which pieces each image lacks: int64 [count, removed]."""
        order = torch.rand(count, self.across**2, generator=generator(seed, "pieces")).argsort(1)
        return (order[:, : self.removed],)

    def forward(self, x, removed=None):
        if removed is None:
            return super().forward(x)
        mask = self.train_alpha * self.kept(removed, *x.shape[2:]).to(x.dtype)
        return x + mask * (self.pattern.to(x.dtype) - x)

    def kept(self, removed, height, width):
        """1 where the pieces remain: [B, 1, H, W]. What is left over at the lower and right edge is in no piece, and remains."""
        d = self.across
        kept = torch.ones(len(removed), d * d, device=removed.device).scatter(1, removed, 0).view(-1, d, d)
        rows, cols = (
            (torch.arange(size, device=removed.device) // (size // d)).clamp(max=d) for size in (height, width)
        )
        return F.pad(kept, (0, 1, 0, 1), value=1)[:, cols, rows[:, None]][:, None]


class AdapBlend(PoisonAttack):
    def __init__(self, shape, num_classes, poison_rate: float, cover_rate: float, alpha: float, test_alpha: float,
                 pieces=16, mask_rate=0.5, pattern="gaussian", pattern_seed=0, target=0, victims="all"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims, cover_rate=cover_rate)
        image = picture(pattern, shape, pattern_seed)
        facts = {"num_classes": num_classes, "target": target}
        self.trigger = PieceBlend(image, alpha, test_alpha, pieces, mask_rate, **facts)
