"""SSBA: bits that an encoder hides can be read again, the string is one, the residual differs; SSIM against its definition."""

from functools import partial

import pytest
import torch
from cells import build, composed
from torch import nn
from torch.nn import functional as F

from bench.attacks.base import Lab
from bench.attacks.encoder import Decoder, Encoder
from bench.attacks.generators import seeded
from bench.data import Dataset, ImageSet
from bench.training import fit


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 23), (1, 28, 28), (3, 64, 96), (3, 224, 224)], ids=str)
def test_any_size_goes_through_and_both_the_image_and_the_bits_count(shape):
    encoder, decoder = seeded(1, Encoder, shape, 5), seeded(1, Decoder, shape, 5)
    state = torch.get_rng_state()
    again = seeded(1, Encoder, shape, 5)
    assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([[0.0, 1, 0, 1, 1]]).expand(2, -1)
    with torch.no_grad():
        residual = encoder(x, bits)
        assert residual.shape == x.shape and decoder(x + residual).shape == (2, 5)
        assert not residual.allclose(encoder(x, 1 - bits)) and not residual[0].allclose(residual[1])


def test_bits_are_learnt_at_once_then_the_image_counts():
    """First the message alone, then all three losses; the trained encoder is the trigger's, the decoder is not kept."""
    rng = torch.Generator().manual_seed(0)
    x = (255 * F.interpolate(torch.rand(64, 3, 3, 3, generator=rng), size=8)).to(torch.uint8)
    images = ImageSet(x, torch.arange(64) % 4)
    data, seen = Dataset(images, images, images, 4), []
    overrides = ("bits=2", "hide.epochs=3", "message_only=2", "hide.lr=1e-3", "likeness=0.5", "change=4")
    config = composed("attack=ssba", "~preset@attack", *(f"attack.{o}" for o in overrides)).attack
    attack = build(config, shape=data.shape, num_classes=4)
    before = {name: value.clone() for name, value in attack.trigger.state_dict().items()}

    def learn(model, images, *, objective, **how):
        def watched(model, x, y):
            loss, logits = objective(model, x, y)
            seen.append(float(loss.detach()))
            return loss, logits

        return fit(model, images, objective=watched, seed=1, **how)

    attack.prepare(data, Lab(learn, 3))
    assert len(seen) == 6 and all(abs(loss - 0.693) < 0.05 for loss in seen[:4])
    assert all(loss > 1.5 * 0.6 for loss in seen[4:])
    after = attack.trigger.state_dict()
    assert before.keys() == after.keys() and not any("decoder" in name for name in after)
    assert after["secret"].equal(before["secret"]) and not after["encoder.residual.weight"].equal(
        before["encoder.residual.weight"]
    )
    assert isinstance(attack.trigger.encoder, nn.Module) and set(attack.facts) == {"bit_accuracy", "mean_change"}
    stamped = attack.trigger.stamp(data.test.x).float()
    assert attack.facts["mean_change"] == pytest.approx(float((stamped - data.test.x.float()).abs().mean()), abs=1e-5)


def test_the_message_can_be_read_after_some_training():
    """Two bits on 8x8 images, the message alone: read from the stamped uint8 files, by the decoder, better than by chance."""
    rng = torch.Generator().manual_seed(0)
    x = (255 * F.interpolate(torch.rand(64, 1, 2, 2, generator=rng), size=8, mode="bilinear")).to(torch.uint8)
    images = ImageSet(x, torch.arange(64) % 4)
    overrides = ("bits=2", "hide.epochs=20", "message_only=20", "hide.lr=2e-3", "hide.batch_size=32")
    config = composed("attack=ssba", "~preset@attack", *(f"attack.{o}" for o in overrides)).attack
    attack = build(config, shape=(1, 8, 8), num_classes=4)
    attack.prepare(Dataset(images, images, images, 4), Lab(partial(fit, seed=1), 3))
    assert attack.facts["bit_accuracy"] > 95
