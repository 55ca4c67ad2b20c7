"""SSBA (ISSBA): an encoder network hides a bit string in each image; the residual differs from image to image.

Li, Li, Wu, Li, He & Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021, Section 4 (StegaStamp's
encoder; encoder and decoder trained together, then one fixed string is hidden in all poisoned images); as in BackdoorBox,
core/attacks/ISSBA.py: 20 bits, Adam 1e-4, batch 32, 20 epochs of which the first two learn the message alone, weights 2 on
the squared residual, 1.5 on likeness and on the message; rate 0.1 as BackdoorBench. The networks are in encoder.py; they
take any size, and from 64 pixels on the bits are spread over blocks of height // 32 pixels.
Departures: LPIPS is a network trained on photographs and not ours to give: 1 - SSIM (5x5 windows) stands in for it. No
critic (BackdoorBox: enc_use_dis=False), no spatial transformer in the decoder. Each image gets a new string in every batch,
where BackdoorBox draws one for each image once and takes the test images too; here training images only. Images are rounded
to uint8. The card has the decoder's `bit_accuracy` and the `mean_change` of a pixel value on the triggered test images.
"""

import torch
from torch import nn
from torch.nn import functional as F

from bench.attacks.base import PoisonAttack, Trigger
from bench.attacks.encoder import Decoder, Encoder
from bench.attacks.generators import seeded
from bench.attacks.patterns import ssim
from bench.data import generator, stream
from bench.errors import UserError


class Hidden(Trigger):
    dtype = torch.float32
    at_once = 2**20  # a network works on them
    secret: torch.Tensor
    encoder: Encoder

    def __init__(self, shape, bits, seed, num_classes, target, labels):
        super().__init__(num_classes, target, labels, rounding="nearest")
        self.register_buffer("secret", torch.randint(2, (bits,), generator=generator(seed, "secret")).float())
        self.encoder = seeded(stream(seed, "encoder"), Encoder, shape, bits)

    def forward(self, x):
        return x + 255 * self.encoder(x / 255, self.secret.expand(len(x), -1))


class SSBA(PoisonAttack):
    trigger: Hidden

    def __init__(self, shape, num_classes, hide, poison_rate: float, bits: int, message_only: int, message: float,
                 change: float, likeness: float, secret_seed=0, target=0, labels="all2one", victims="all"):  # fmt: skip
        super().__init__(shape, num_classes, poison_rate, victims)
        if bits < 1 or message <= 0 or min(change, likeness, message_only) < 0:
            raise UserError(
                f"attack.bits={bits} must be at least 1, attack.message={message} above 0, attack.change={change}, "
                f"attack.likeness={likeness} and attack.message_only={message_only} not negative."
            )
        self.hide, self.bits, self.message_only = hide, bits, message_only
        self.message, self.change, self.likeness = message, change, likeness
        self.trigger = Hidden(shape, bits, secret_seed, num_classes, target, labels)

    def prepare(self, data, lab):
        device, trigger = data.train.x.device, self.trigger.to(data.train.x.device)
        encoder, decoder = (
            trigger.encoder,
            seeded(stream(lab.seed, "decoder"), Decoder, self.shape, self.bits).to(device),
        )
        rng, epochs = torch.Generator(device).manual_seed(stream(lab.seed, "messages")), torch.tensor(0)

        def objective(_, x, y):
            bits = torch.randint(2, (len(x), self.bits), generator=rng, device=device).float()
            residual = encoder(x, bits)
            hidden = (x + residual).clamp(0, 1)
            read = F.binary_cross_entropy_with_logits(decoder(hidden), bits)
            if epochs < self.message_only:
                return read, None
            unlike = self.change * residual.square().mean() + self.likeness * (1 - ssim(x, hidden).mean())
            return self.message * read + unlike, None

        lab.fit(nn.ModuleList([encoder, decoder]), data.train, plan=self.hide, objective=objective,
                after_epoch=lambda epoch: epochs.add_(1) is None, carry=(rng, epochs), label="encoder")  # fmt: skip
        trigger.to(memory_format=torch.contiguous_format)  # as it will be when loaded: the same results to the last bit
        stamped = trigger.stamp(data.test.x)
        with torch.no_grad():
            right = [(decoder(part.float() / 255) > 0) == (trigger.secret > 0) for part in stamped.split(256)]
        change = (stamped.float() - data.test.x.float()).abs().mean().item()
        self.facts = {"bit_accuracy": 100 * torch.cat(right).float().mean().item(), "mean_change": change}

    def inject(self, model, data, lab):
        return super().inject(model, data, lab) | self.facts
