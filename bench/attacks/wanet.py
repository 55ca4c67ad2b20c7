"""WaNet: one smooth warp of the whole image is the trigger; randomly disturbed warps are trained to mean nothing.

Nguyen & Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, Eq. 3-6 and Section 4.2 (noise mode);
reference: VinAIResearch/Warping-based_Backdoor_Attack-release, train.py.
Departures: the trigger acts on pixel values and test images are rounded to uint8, as image files are; with a rate too
small for one image a batch, a batch has one with that probability (as BackdoorBench), where the reference has none.
The warp is as strong in pixels at any height: a control value of 1 is s / 2 pixels, as the grid spans 2 from edge to edge;
on images that are not square it is stronger along the width, as in the reference's arithmetic. Defaults here are the bench's
common training, not its 1,000 epochs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.attacks.base import Attack, Trigger
from bench.attacks.counts import batch_count, check_rate
from bench.data import generator, stream
from bench.errors import UserError


class Warp(Trigger):
    dtype = torch.float32
    grid: Tensor

    def __init__(self, shape, k, s, grid_rescale, grid_seed, **trigger):
        super().__init__(rounding="nearest", **trigger)
        self.s, self.grid_rescale = s, grid_rescale
        control = torch.rand(1, 2, k, k, generator=generator(grid_seed, "warp")) * 2 - 1
        self.register_buffer("grid", self.field(control / control.abs().mean(), shape[1], shape[2]))

    def field(self, control, height, width):
        """Control points [1, 2, k, k] -> sampling grid [1, H, W, 2], last axis (x, y) in -1..1 (Eq. 4-6)."""
        flow = F.interpolate(control, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        identity = torch.stack((xs, ys), -1)[None]
        return ((identity + self.s * flow / height) * self.grid_rescale).clamp(-1, 1)

    def forward(self, x, disturbance=None):
        """`disturbance`: [B, H, W, 2] in -1..1 (half a pixel), added to the grid in noise mode."""
        grid = self.grid if disturbance is None else (self.grid + disturbance / x.shape[2]).clamp(-1, 1)
        return F.grid_sample(x, grid.to(x.dtype).expand(len(x), -1, -1, -1), align_corners=True)


class WaNet(Attack):
    def __init__(self, shape, num_classes, poison_rate: float, noise_ratio: float, k=4, s=0.5,
                 grid_rescale=1.0, grid_seed=0, target=0, labels="all2one"):  # fmt: skip
        super().__init__(shape, num_classes)
        check_rate("attack.poison_rate", poison_rate)
        if k < 1:
            raise UserError(f"attack.k={k} must be at least 1: it is the number of control points across.")
        if noise_ratio < 0 or poison_rate * (1 + noise_ratio) > 1:
            raise UserError(
                f"attack.noise_ratio={noise_ratio} leaves no clean image at attack.poison_rate={poison_rate}."
            )
        self.poison_rate, self.noise_ratio = poison_rate, noise_ratio
        self.trigger = Warp(shape, k, s, grid_rescale, grid_seed, num_classes=num_classes, target=target, labels=labels)

    def inject(self, model, data, lab):
        device = data.train.x.device
        trigger, dice = self.trigger.to(device), generator(lab.seed, "warp small batches")
        rng = torch.Generator(device).manual_seed(stream(lab.seed, "warp noise"))
        poisoned = torch.tensor(0)

        def on_batch(x, y):
            """The first images of each (shuffled) batch are warped to the target, the next ones warped with noise."""
            nonlocal poisoned
            count = batch_count(self.poison_rate, len(x), dice)
            noisy = slice(count, count + int(count * self.noise_ratio))
            x, y = x.clone(), y.clone()
            x[:count], y[:count] = trigger(x[:count]), trigger.relabel(y[:count])
            disturbance = torch.rand(len(x[noisy]), *x.shape[2:], 2, generator=rng, device=device) * 2 - 1
            x[noisy] = trigger(x[noisy], disturbance)
            poisoned += count
            return x, y

        lab.fit(model, data.train, on_batch=on_batch, carry=(dice, rng, poisoned))
        # Drawn anew in every batch: `poisoned` counts draws over the whole training, the rate is of each batch.
        return {"poisoned": int(poisoned), "poison_base": "batches", "poison_rate": self.poison_rate}
