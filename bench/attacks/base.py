"""What an attack is: it plants a trigger in a model's training. Everything downstream needs the model and the trigger only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bench.attacks.counts import check_rate, draw_mix, poison_count
from bench.data import Dataset, ImageSet, stream
from bench.errors import UserError


@dataclass(frozen=True)
class Lab:
    """What an attacker works with.

    `fit`: `bench.training.fit` with the run's plan, seed and augmentation filled in: fit(model, images, on_batch=…, …).
    All that its hooks draw from or change, besides the model, is named in `carry`, so that a training can be taken up.
    `seed`: of all else that is drawn. `clean`: a clean model of the same bench, trained on the same data by the same
    plan, in eval mode; do not change it. Always there for an attack that says `needs_clean`.
    """

    fit: Callable[..., Any]
    seed: int
    clean: nn.Module | None = None


class Permuter(Protocol):
    """Whatever can shuffle 0..n-1: a numpy Generator here, the authors' own generators in the conformance tests."""

    def permutation(self, n: int, /) -> Any: ...


class Trigger(nn.Module):
    """What the attacker does to an image at test time, and the class that is wanted then.

    Its tensors are buffers or parameters, so that `state_dict` is all there is to store. `dtype` is what images are
    computed in: float64 makes fixed patterns equal to the references to the last bit.
    """

    dtype: torch.dtype = torch.float64
    grows: ClassVar[tuple[str, ...]] = ()
    """Buffers whose size is only known once the attack is prepared; they take any size when loaded."""
    known: ClassVar[bool] = True
    """Whether there is anything to put on an image; not so for a stranger's model, whose trigger nobody knows."""
    identity: ClassVar[bool] = False
    """Whether nothing is put on an image: it is the trigger itself (an attack on chosen test images), or there is no attack."""
    at_once: ClassVar[int] = 2**24
    """How many pixel values `stamp` works on at a time: 5,461 images of 3x32x32, 111 of 3x224x224."""
    pointwise: ClassVar[bool] = False
    """Whether each value is computed by itself: then on the CPU only as many are taken at a time as its cache holds."""

    def __init__(self, num_classes: int, target: int = 0, labels: str = "all2one", rounding: str = "truncate") -> None:
        super().__init__()
        if not 0 <= target < num_classes:
            raise UserError(f"attack.target={target} does not exist: the data set has classes 0 to {num_classes - 1}.")
        if labels not in ("all2one", "all2all"):
            raise UserError(f"attack.labels={labels} is unknown: use all2one or all2all.")
        self.num_classes, self.target, self.labels, self.rounding = num_classes, target, labels, rounding

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of floats holding pixel values 0..255 -> the same, triggered. Here: unchanged."""
        return x

    def relabel(self, y: Tensor) -> Tensor:
        """The class wanted for a triggered image of class `y`."""
        return torch.full_like(y, self.target) if self.labels == "all2one" else (y + 1) % self.num_classes

    def counts(self, y: Tensor) -> Tensor:
        """Whether a test image of class `y` counts in ASR and RA: if its wanted class is not its own."""
        return self.relabel(y) != y

    def chosen(self, test: ImageSet) -> Tensor:
        """Which test images count in ASR and RA: bool [N]. By their class, unless an attack aims at certain images."""
        return self.counts(test.y)

    def on(self, test: ImageSet, index: Tensor) -> tuple[Tensor, Tensor]:
        """These test images with the trigger, and the classes wanted for them."""
        return self.stamp(test.x[index]), self.relabel(test.y[index])

    def load_state_dict(self, state_dict, *args, **kwargs):
        for name in self.grows:
            self.register_buffer(name, torch.empty_like(state_dict[name], device=self.get_buffer(name).device))
        return super().load_state_dict(state_dict, *args, **kwargs)

    def draw(self, count: int, seed: int) -> tuple[Tensor, ...]:
        """What chance makes of the trigger on `count` training images: tensors with a row for each, which `forward` takes
        after the images. Here: nothing, it is the same on all images and at test time."""
        return ()

    @torch.no_grad()
    def stamp(self, x: Tensor, *drawn: Tensor) -> Tensor:
        """uint8 images -> uint8 triggered images, as the attacker's image files hold them.

        Clipped, then truncated (as nearly every reference does) or rounded to `nearest`.
        """
        at_once = 2**17 if self.pointwise and x.device.type == "cpu" else self.at_once
        out, chunk = [], max(1, at_once // x.shape[1:].numel())
        for part, *rows in zip(*(t.to(x.device).split(chunk) for t in (x, *drawn)), strict=True):
            pixels = self(part.to(self.dtype), *rows).clamp(0, 255)
            if pixels.shape != part.shape:
                raise UserError(
                    f"{type(self).__name__} made {list(pixels.shape)} pixels of {list(part.shape)}: it must keep the size."
                )
            out.append((pixels.round() if self.rounding == "nearest" else pixels).to(torch.uint8))
        return torch.cat(out) if out else x.clone()


@dataclass
class Backdoor:
    """A backdoored model, its trigger, what the card beside them says, and a few test images before and after it."""

    model: nn.Module
    trigger: Trigger
    card: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    name: str = ""  # of the folder it is stored in


class Attack(ABC):
    """One published attack. Built from its config alone, so that stored weights load into `trigger`.

    `shape`: (channels, height, width) of the images.
    """

    elsewhere: ClassVar[bool] = False
    """Whether it trains nothing, and is about a model that somebody else made."""
    needs_clean: bool = False
    """Whether `prepare` or `inject` uses a clean model."""
    trigger: Trigger
    poison_rate: float = 0.0

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        self.shape, self.num_classes = shape, num_classes

    @property
    def learned(self) -> bool:
        """Whether the trigger is only made while the attack runs: then a model from elsewhere must bring its own."""
        return type(self).prepare is not Attack.prepare or any(True for _ in self.trigger.parameters())

    def check(self, train: ImageSet) -> None:  # noqa: B027 - most have nothing to check
        """Raises UserError if this training set cannot be poisoned as asked for. Called before anything is trained."""

    def prepare(self, data: Dataset, lab: Lab) -> None:  # noqa: B027 - most attacks have nothing to prepare
        """Makes the trigger ready before any image is poisoned: optimises a pattern, trains an encoder, crafts images.

        What comes of it goes into `trigger`, whose state is stored beside the model. Here: nothing.
        """

    @abstractmethod
    def inject(self, model: nn.Module, data: Dataset, lab: Lab) -> dict[str, Any]:
        """Prepares the trigger, trains `model` in place so that it works, and returns facts for the card.

        Facts: `poisoned` (images or draws), `poison_base` and `poison_rate` (of what, and the share), and more.
        """

    def mix(self, train: ImageSet, size: int, seed: int) -> ImageSet:
        """`size` training images as a defender finds them, poisoned ones among them, labelled as in training.

        `seed`: that of the lab `inject` was given. An attack that works inside the training leaves no poisoned set behind; for
        it the trigger is put on a share `poison_rate` of the images drawn, whatever their class. Used with the trigger
        as it is after `inject`.
        """
        drawn = train[draw_mix(len(train), size, seed).to(train.y.device)]
        count = poison_count(self.poison_rate, size)
        trigger = self.trigger.to(train.x.device)
        x = torch.cat([trigger.stamp(drawn.x[:count]), drawn.x[count:]])
        return ImageSet(x, torch.cat([trigger.relabel(drawn.y[:count]), drawn.y[count:]]))


class PoisonAttack(Attack):
    """An attack that only adds poisoned images to the training set: the trigger is fixed, the training ordinary.

    `poison_rate`: share of the whole training set. `victims`: `all` (images of any class, as BackdoorBench and RNP),
    `non_target` (as ANP) or `target` (clean-label). `base`: what the rate is a share of, `train` or `victims`.
    `cover_rate`: share of the whole training set that gets the trigger too, but keeps its labels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        poison_rate: float,
        victims: str = "all",
        base: str = "train",
        cover_rate: float = 0.0,
    ) -> None:
        super().__init__(shape, num_classes)
        check_rate("attack.poison_rate", poison_rate)
        if cover_rate != 0:
            check_rate("attack.cover_rate", cover_rate)
        if victims not in ("all", "non_target", "target"):
            raise UserError(f"attack.victims={victims} is unknown: use all, non_target or target.")
        if base not in ("train", "victims"):
            raise UserError(f"attack.base={base} is unknown: use train or victims.")
        self.poison_rate, self.victims, self.base, self.cover_rate = poison_rate, victims, base, cover_rate
        self.limit = f"attack.victims={victims}"  # what leaves too few images, in the words of the config

    def pools(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(images that may be poisoned, images that may be covers; None: those of the first that are left over)."""
        everyone, target = np.arange(len(labels)), self.trigger.target
        pools = {"all": everyone, "non_target": everyone[labels != target], "target": everyone[labels == target]}
        return pools[self.victims], None

    def check(self, train: ImageSet) -> None:
        self.split(train.y.cpu().numpy(), np.random.default_rng(0))

    def split(self, labels: np.ndarray, rng: Permuter) -> tuple[np.ndarray, np.ndarray]:
        """(indices of the images to poison, indices of the cover images), in the order drawn; no image is in both.

        Raises UserError if there are fewer candidates than a rate asks for, or if the first asks for none.
        """
        pool, others = self.pools(labels)
        base = len(labels) if self.base == "train" else len(pool)
        if (count := poison_count(self.poison_rate, base)) == 0:
            why = "raise it" if len(pool) else f"{self.limit} leaves none"
            raise UserError(f"attack.poison_rate={self.poison_rate} poisons no image of {base}: {why}.")
        covers = poison_count(self.cover_rate, len(labels))
        order = pool[np.asarray(rng.permutation(len(pool)))]
        rest = order[count:] if others is None or not covers else others[np.asarray(rng.permutation(len(others)))]
        for name, wanted, left in (("poison", count, len(pool)), ("cover", covers, len(rest))):
            if wanted > left:
                raise UserError(
                    f"attack.{name}_rate={getattr(self, f'{name}_rate')} asks for {wanted} images, but "
                    f"{self.limit} leaves only {left}: lower the rate."
                )
        return order[:count], rest[:covers]

    def canvas(self, x: Tensor) -> Tensor:
        """What the trigger is put on, of the images [B, C, H, W] to be poisoned, in order of their index. Here: themselves."""
        return x

    def poison(self, train: ImageSet, rng: Permuter, seed: int = 0) -> tuple[ImageSet, Tensor, Tensor]:
        """(the training set with the trigger on the chosen images and their new labels, their indices, the covers').

        Both sorted. `seed`: of what chance makes of the trigger on each image, if it does.
        """
        chosen = [np.sort(part) for part in self.split(train.y.cpu().numpy(), rng)]
        index, cover = (torch.from_numpy(part).to(train.x.device) for part in chosen)
        x, y, trigger = train.x.clone(), train.y.clone(), self.trigger.to(train.x.device)
        for name, part in (("poison", index), ("cover", cover)):
            under = self.canvas(x[part]) if name == "poison" else x[part]
            x[part] = trigger.stamp(under, *trigger.draw(len(part), stream(seed, name)))
        y[index] = trigger.relabel(y[index])
        return ImageSet(x, y), index, cover

    def inject(self, model: nn.Module, data: Dataset, lab: Lab) -> dict[str, Any]:
        self.prepare(data, lab)
        poisoned, index, cover = self.poison(data.train, np.random.default_rng(lab.seed), lab.seed)
        lab.fit(model, poisoned)
        facts = {"poisoned": len(index), "poison_base": len(data.train), "poison_rate": len(index) / len(data.train)}
        return facts | ({"cover": len(cover)} if self.cover_rate else {})

    def mix(self, train: ImageSet, size: int, seed: int) -> ImageSet:
        """A random sample of the very set that `inject` trained on: the same victims, rebuilt from the seed."""
        drawn = draw_mix(len(train), size, seed).to(train.y.device)
        return self.poison(train, np.random.default_rng(seed), seed)[0][drawn]
