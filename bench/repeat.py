"""Does this machine give the same bits twice? Asked of each cell's own network, where and as it runs."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor, nn

from bench.attacks.base import Attack, Backdoor, PoisonAttack
from bench.attacks.none import NoAttack
from bench.data import ImageSet
from bench.training import careful, cross_entropy, to_unit

IMAGES = 8


def verdict(attack: Attack, backdoor: Backdoor, images: ImageSet, precision: str) -> str:
    """`bitwise`: this cell, run again on such a machine with as many threads, gives the same bits; else `tolerance`.

    Checked: two passes through the very network, here and now; and that its training was not begun on another device or with
    another number of threads. Not checked, and therefore `tolerance`: on a GPU, what an attack with a training of its own
    computes besides (interpolation and the like add up in any order there).
    """
    ordinary = images.x.device.type == "cpu" or type(attack).inject in (PoisonAttack.inject, NoAttack.inject)
    exact = backdoor.card["made"].get("exact", True)
    return "bitwise" if ordinary and exact and repeats(backdoor.model, images, precision) else "tolerance"


def repeats(model: nn.Module, images: ImageSet, precision: str = "fp32") -> bool:
    """Whether two passes forward and back through copies of the model, in train mode, give equal outputs and gradients."""
    return len({passage(model, images, precision) for _ in range(2)}) == 1


def passage(model: nn.Module, images: ImageSet, precision: str) -> str:
    device = images.x.device
    twin = copy.deepcopy(model).train().requires_grad_()
    x = to_unit(images.x[:IMAGES]).contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), careful(twin):
        torch.manual_seed(0)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, logits = cross_entropy(twin, x, images.y[:IMAGES])
        loss.backward()
    slopes = [weight.grad for weight in twin.parameters() if weight.grad is not None]
    return fingerprint(logits, *slopes, *twin.buffers())


def fingerprint(*tensors: Tensor) -> str:
    """sha256 of the values, in order."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
