"""The only training loop: backdoors, fine-tuning, unlearning and mask search all run through `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.compiling import compiled, new_step
from bench.data import Augment, ImageSet, generator
from bench.errors import UserError
from bench.plan import SCHEDULES, Plan
from bench.progress import progress
from bench.resume import Keep, Part
from bench.streaming import Feed

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(model, x in [0, 1], y) -> (loss to descend, logits whose hits are counted, or None)."""


@dataclass(frozen=True)
class Epoch:
    """Means over one pass, of predictions made during it (each before its own update)."""

    loss: float
    accuracy: float


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x)
    return F.cross_entropy(logits, y), logits


def ascent(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Unlearning: the same loss, to be climbed."""
    loss, logits = cross_entropy(model, x, y)
    return -loss, logits


def to_unit(x: Tensor) -> Tensor:
    """Pixel values 0..255 -> float32 in [0, 1], keeping the memory format."""
    return x.float().div_(255)


def careful(model: nn.Module) -> AbstractContextManager[None]:
    """For passes forward and back: without oneDNN where it would destroy memory, which is seldom; else nothing.

    On a processor with AVX2 and no AVX-512, oneDNN 3.13 (in torch 2.15) writes past its buffer on the way back through a 1x1
    convolution with a stride and fewer than 8 channels to read, as ResNets narrower than 8 have. glibc's malloc check shows it.
    """
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.device.type == "cpu"]
    narrow = any(m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8 for m in convs)
    unsafe = narrow and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.backends.mkldnn.flags(enabled=False) if unsafe else nullcontext()


def epoch_order(count: int, plan: Plan, seed: int, epoch: int) -> Tensor:
    """Which images, in which order: depends on the seed and the epoch alone, so that a run can be taken up at any epoch."""
    rng = generator(seed, f"order/{epoch}")
    if plan.iterations is not None:
        return torch.randint(count, (plan.iterations * plan.batch_size,), generator=rng)
    return torch.randperm(count, generator=rng)


@torch.no_grad()
def sound(model: nn.Module, label: str) -> None:
    """Raises UserError, naming the tensor, if a weight or a statistic of the model is not finite."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    # A sum with one term that is not finite is not finite, and quickly made. It may overflow too: then each term is looked at.
    finite = torch.stack([tensor.sum().isfinite() for tensor in tensors.values()]).tolist() if tensors else []
    for (name, tensor), good in zip(tensors.items(), finite, strict=True):
        if not good and not tensor.isfinite().all():
            raise UserError(f"{label}: the model's {name} is not finite; was its training sound? Train it again.")


@contextmanager
def enough_for_statistics(label: str, images: int) -> Iterator[None]:
    """Says in a sentence what torch says of BatchNorm when a batch leaves one value per channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{label}: a batch of {images} image is too small for this network's BatchNorm, which sees one value of each "
            f"channel; change batch_size or the number of images (clean.tune, for a defence) so that none is left alone."
        ) from error


def fit(
    model: nn.Module,
    data: ImageSet,
    plan: Plan,
    *,
    seed: int,
    augment: Augment | None = None,
    objective: Objective = cross_entropy,
    parameters: Iterable[Tensor] | None = None,
    on_batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[Epoch], bool | None] | None = None,
    moving_statistics: bool = True,
    label: str = "training",
    carry: tuple[Any, ...] = (),
    keep: Keep | None = None,
) -> list[Epoch]:
    """Optimises `model` in place (in train mode; left in eval mode) and returns the epochs' losses and accuracies.

    `parameters`: what to optimise (default: all of the model's). `on_batch(x in [0, 1], y)` may replace a batch before
    it is augmented, `objective` sees it afterwards: training-controlled attacks work in either. Logits may be None where
    no accuracy is meant. `after_step()` runs after each update: mask clamping, a generator's own optimiser.
    `after_epoch(epoch)` may look at or change the model, and ends the training if it returns true.
    `moving_statistics=False` trains in eval mode: BatchNorm uses its running statistics and leaves them as they are.
    `keep` lets an interrupted training go on where it was; `carry` is then all that the hooks draw from or change besides
    the model: generators, modules, optimisers, tensors that count (changed in place).

    Raises UserError if the set is empty, if all weights are frozen, if the model is not finite to begin with, if a batch is
    too small for BatchNorm, or if the loss stops being finite.
    """
    if len(data) == 0:
        raise UserError(f"{label}: there are no images to train on.")
    sound(model, label)
    device = data.x.device
    moved = augment if augment is not None and plan.augment else Augment()
    still = Augment()
    feed = Feed(data, plan.batch_size, (still if on_batch else moved).pad)
    chosen = list(model.parameters() if parameters is None else parameters)
    if not any(parameter.requires_grad for parameter in chosen):
        raise UserError(
            f"{label}: all weights are frozen (requires_grad), so none can be trained: model.requires_grad_()."
        )
    optimizer = plan.optimise(chosen)
    draws = len(data) if plan.iterations is None else plan.iterations * plan.batch_size
    drop = plan.drop_last and draws > plan.batch_size
    steps = draws // plan.batch_size if drop else -(-draws // plan.batch_size)
    passes = plan.epochs if plan.iterations is None else 1
    scheduler = SCHEDULES[plan.schedule](optimizer, plan, max(steps * passes, 1))
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16")
    layout = torch.channels_last if plan.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    learner = model
    if plan.compile:
        model.train(moving_statistics)
        example = torch.zeros(min(plan.batch_size, draws), *data.x.shape[1:], device=device)
        learner = compiled(model, example.contiguous(memory_format=layout), mixed)

    history: list[Epoch] = []
    part = Part(keep, model=model, optimizer=optimizer, schedule=scheduler, carry=carry)
    with part, careful(model), progress(label, steps * passes) as advance:
        begun = part.load() or {"epoch": 0, "step": 0, "history": []}
        history += [Epoch(*means) for means in begun["history"]]
        for _ in range(begun["epoch"] * steps + begun["step"]):
            advance()
        for epoch in range(begun["epoch"], passes):
            # The whole epoch's chance is drawn at once on the CPU: the same on every device, and no transfer in the loop.
            model.train(moving_statistics)
            order = epoch_order(len(data), plan, seed, epoch)
            moves = moved.draw(len(order), generator(seed, f"augment/{epoch}")).to(device)
            feed.start(order)
            loss_sum = torch.zeros((), device=device)
            hits = torch.zeros((), device=device, dtype=torch.int64)
            seen, first = 0, 0
            if epoch == begun["epoch"] and begun["step"]:
                first, seen = begun["step"], begun["seen"]
                loss_sum += begun["loss_sum"].to(device)
                hits += begun["hits"].to(device)
            for step in range(first, steps):
                batch = slice(step * plan.batch_size, (step + 1) * plan.batch_size)
                padded, index, y = feed.batch(step)
                if on_batch is None:
                    x = to_unit(moved.crop(padded, index, moves[batch]))
                else:
                    x, y = on_batch(to_unit(padded[index].permute(0, 3, 1, 2)), y)
                    x = moved.crop(moved.pad(x), torch.arange(len(x), device=device), moves[batch])
                if plan.compile:
                    new_step()
                with mixed, enough_for_statistics(label, len(y)):
                    loss, logits = objective(learner, x.contiguous(memory_format=layout), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                if after_step is not None:
                    after_step()
                loss_sum += loss.detach().float() * len(y)
                if logits is not None:
                    hits += (logits.detach().argmax(1) == y).sum()
                seen += len(y)
                advance()
                if part.due():
                    sums = {"loss_sum": loss_sum, "hits": hits, "seen": seen}
                    part.save({"epoch": epoch, "step": step + 1, "history": [astuple(e) for e in history]} | sums)
            history.append(Epoch(float(loss_sum) / seen, int(hits) / seen))
            if not torch.isfinite(loss_sum):
                raise UserError(
                    f"{label} diverged: the loss is {history[-1].loss} in epoch {epoch + 1}, at learning rate {plan.lr}; "
                    f"lower the learning rate."
                )
            if after_epoch is not None and after_epoch(history[-1]):
                break
        if begun["epoch"] < passes:
            part.finish({"epoch": passes, "step": 0, "history": [astuple(e) for e in history]})
    model.eval()
    return history
