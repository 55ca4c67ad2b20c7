"""The bench from Python: load a backdoored model, repair any model, measure it. docs/api.md has examples that run.

The same functions as behind `bench/run.py`, so the same settings and images give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import cli, config, metrics, stored
from bench.attacks.base import Trigger
from bench.chosen import Keeper
from bench.data import Augment, Dataset, Defender, ImageSet, stream
from bench.defenses.base import Defense
from bench.errors import UserError
from bench.metrics import Exam, Metrics
from bench.models import normalised
from bench.pruning import Mask, Scores
from bench.training import to_unit

__all__ = [
    "Augment",
    "Exam",
    "ImageSet",
    "Metrics",
    "Repair",
    "Victim",
    "evaluate",
    "load_backdoor",
    "normalised",
    "repair",
]

Images = ImageSet | tuple[Tensor, Tensor]
"""Images uint8 [N, C, H, W] and labels int64 [N], as an `ImageSet` or as a pair."""


@dataclass(frozen=True)
class Victim:
    """A stored backdoor. `model` takes images in [0, 1]; `exam`: clean and triggered test images; `metrics`: on its card."""

    model: nn.Module
    trigger: Trigger
    data: Dataset
    exam: Exam
    metrics: Metrics
    card: dict[str, Any]

    def clean_images(self, tune: int, select: int, seed: int = 2) -> tuple[ImageSet, ImageSet]:
        """What a defender holds: images for the defence, and others to choose the operating point. As a cell of that seed."""
        view, held_back = self.data.defender(tune, select, stream(seed, "defender"), needs="clean")
        return view.clean, held_back


@dataclass(frozen=True)
class Repair:
    """What came of a repair: the model at the operating point, what was pruned (layer -> bool per channel; None: no pruner).

    `curve`: a row for each point looked at: `at` (in the paper's unit), `pruned` (channels), `fixed` (whether it is the
    paper's own) and `select_acc` (percent, on the held-back images). `point`: the row of `model`. `scores`: of a pruner.
    """

    model: nn.Module
    mask: Mask | None
    point: dict[str, Any]
    curve: list[dict[str, Any]]
    scores: Scores | None


def load_backdoor(folder: str | Path, root: str | None = None, device: str = "auto") -> Victim:
    """The model stored in a folder of runs/backdoors, or the one behind a finished cell. Verified; nothing is trained.

    `root`: where its data set lies, if not in `data/`. Raises UserError.
    """
    stage = stored.open_scene(stored.find(folder, root, device))
    made = stage.backdoor
    return Victim(made.model, made.trigger, stage.data, stage.exam, stage.before, made.card)


def evaluate(model: nn.Module, on: Victim | Exam | Images) -> Metrics:
    """ACC, ASR and RA on a victim's or an exam's images; on plain images ACC alone (the others are None).

    `model` takes images in [0, 1] and is left in eval mode.
    """
    if isinstance(on, Victim | Exam):
        exam = on.exam if isinstance(on, Victim) else on
        _classes(model, exam.clean)
        return metrics.evaluate(model, exam)
    images = _images(on)
    _fit(images, _classes(model, images))
    nothing = images[torch.empty(0, dtype=torch.int64)]
    return metrics.evaluate(model, Exam(images, nothing, nothing.y))


def repair(
    model: nn.Module,
    defense: str | Defense,
    clean: Images,
    select: Images | None = None,
    *,
    settings: Sequence[str] = (),
    preset: str | None = None,
    rule: str | None = None,
    max_drop: float = 3.0,
    seed: int = 2,
    augment: Augment | None = None,
    poisoned: Images | None = None,
    trigger: Trigger | None = None,
) -> Repair:
    """Repairs a copy of the model, which is any classifier that takes images in [0, 1] (see `normalised`).

    `defense`: its name, with the paper's settings, or those for a data set by `preset` (such as digits); `settings` are words
    as on the command line (`defense.rule.at=2.5`, `then=ft`). Or a `Defense` of your own.
    `clean`: the defender's images. `select`: others that choose the operating point by the `rule` clean_drop (the largest
    pruning that loses at most `max_drop` points there); without them it is the paper's own (`fixed`).
    `poisoned`: for defences that need a poisoned mix (ep); `trigger`: for the one that cheats (oracle).

    Raises UserError for what does not fit together.
    """
    method = _defense(defense, settings, preset) if isinstance(defense, str) else defense
    images, held = _images(clean), None if select is None else _images(select)
    mix = None if poisoned is None else _images(poisoned)
    needs: dict[str, object] = {"poisoned": poisoned, "trigger": trigger}
    if needs.get(method.needs, True) is None:
        raise UserError(f"this defence needs {method.needs}: hand it over by that name.")
    if not (isinstance(max_drop, int | float) and 0 <= max_drop <= 100 and isinstance(seed, int) and seed >= 0):
        raise UserError(
            f"max_drop={max_drop} must be a number of points (0 to 100), seed={seed} a whole number, 0 or more."
        )
    rule = rule or ("fixed" if held is None else "clean_drop")
    if rule not in ("fixed", "clean_drop") or (held is None and rule != "fixed"):
        raise UserError(f"rule={rule} must be fixed, or clean_drop with images to `select` by.")
    classes = _classes(model, images)
    for part in (images, held, mix):
        if part is not None:
            _fit(part, classes, images)
    channels, height, width = images.x.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(stream(seed, "defense"))
        view = Defender(
            images if method.needs != "nothing" else images[torch.empty(0, dtype=torch.int64)],
            (channels, height, width),
            classes,
            augment or Augment(),
            stream(seed, "defender"),
            mix,
            trigger,
        )
        repaired = method.offer(model, view)
        before = 0.0 if held is None else metrics.accuracy(model, held)
        keeper = Keeper({"rule": rule, "max_drop": max_drop}, before, before)
        rows: list[dict[str, Any]] = []
        for candidate in repaired.candidates:
            row = {"at": candidate.at, "pruned": candidate.pruned, "fixed": candidate.fixed}
            rows.append(row | {"select_acc": None if held is None else metrics.accuracy(candidate.model, held)})
            keeper(rows, candidate)
    chosen = keeper.chosen
    assert chosen is not None, "a defence offers at least one model"
    return Repair(chosen.model.eval(), chosen.mask, dict(chosen.row), rows, repaired.scores)


def _defense(name: str, settings: Sequence[str], preset: str | None) -> Defense:
    from bench import run  # Hydra takes a second to load

    words = [f"dataset={preset}"] if preset else ["~preset@defense"]
    for word in settings:
        key = word.lstrip("+~").partition("=")[0]
        if not key.startswith("defense.") and key not in ("then", "experiment", "scale", "preset@defense"):
            raise UserError(
                f"settings: {word} is none of the defence's: these are defense.NAME=VALUE and then=NAME; seed, max_drop and "
                "images are arguments."
            )
    try:
        given = run.composed(f"defense={name}", *words, *settings)
        config.check(given)
        return run.build(given["defense"])
    except Exception as error:
        raise UserError(cli.sentence(error)) from error


def _images(given: Images) -> ImageSet:
    try:
        x, y = (given.x, given.y) if isinstance(given, ImageSet) else given
    except (TypeError, ValueError) as error:
        raise UserError("images must be an ImageSet, or a pair of images and labels.") from error
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise UserError(f"images and labels must be tensors, not {type(x).__name__} and {type(y).__name__}.")
    if x.dtype != torch.uint8 or x.ndim != 4 or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise UserError(
            f"images must be uint8 [N, C, H, W] with labels int64 [N], not {x.dtype} {list(x.shape)} with {y.dtype} "
            f"{list(y.shape)}; for floats in [0, 1] that is (255 * x).round().to(torch.uint8)."
        )
    return ImageSet(x, y)


@torch.no_grad()
def _classes(model: nn.Module, images: ImageSet) -> int:
    """How many logits the model makes of such images."""
    if len(images) == 0:
        raise UserError("there must be at least one clean image, if only to know their size.")
    try:
        logits = model.eval()(to_unit(images.x[:2]))
        classes = logits.shape[1]
        if logits.ndim != 2 or len(logits) != len(images.x[:2]):
            raise ValueError(f"its logits are {list(logits.shape)}, where [N, classes] is needed")
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the model cannot take images of {list(images.x.shape[1:])} and make logits of them: {why}"
        ) from error
    return int(classes)


def _fit(images: ImageSet, classes: int, like: ImageSet | None = None) -> None:
    """Raises UserError for no images, others than those that the model was tried with, or labels that it has no logits for."""
    if len(images) == 0:
        raise UserError("there must be at least one image, also to `select` by and among the `poisoned`.")
    if like is not None and images.x.shape[1:] != like.x.shape[1:]:
        raise UserError(f"images of {list(images.x.shape[1:])} do not go with clean ones of {list(like.x.shape[1:])}.")
    low, high = (int(bound) for bound in images.y.aminmax())
    if low < 0 or high >= classes:
        raise UserError(f"labels go from {low} to {high}, but the model has classes 0 to {classes - 1}.")
