"""Triggers that come with somebody's model: read from the file itself, or from what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.attacks.base import Attack, Trigger
from bench.attacks.patterns import Overlay
from bench.checkpoints import Checkpoint, checkpoint, read
from bench.companions import ANP, CARD, OURS, PICTURES, beside
from bench.data import ImageSet
from bench.errors import UserError
from bench.naming import pour
from bench.parts import make

CARD_LIMIT = 1 << 20
Facts = dict[str, Any]


class Pictures(Trigger):
    """Triggered test images one by one, as BackdoorBench leaves them: nobody says how they were made.

    `images`: uint8 [N, C, H, W]; `index`: which test images they are; `labels_before`, `labels_after`: their true classes, and
    the wanted ones.
    """

    grows = ("images", "index", "labels_before", "labels_after")
    images: Tensor
    index: Tensor
    labels_before: Tensor
    labels_after: Tensor

    def __init__(self, images: Tensor, index: Tensor, before: Tensor, after: Tensor, num_classes: int) -> None:
        if (
            min(int(index.min()), int(before.min()), int(after.min())) < 0
            or max(int(before.max()), int(after.max())) >= num_classes
        ):
            raise UserError(
                f"the triggered images beside model.checkpoint have classes outside 0 to {num_classes - 1}."
            )
        super().__init__(num_classes, int(after.mode().values))
        for name, tensor in zip(self.grows, (images, index, before, after), strict=True):
            self.register_buffer(name, tensor)

    def chosen(self, test: ImageSet) -> Tensor:
        if int(self.index.max()) >= len(test) or not test.y[self.index].equal(self.labels_before):
            raise UserError(
                "the triggered images beside model.checkpoint are of other test images than the data set's (or of another "
                "order): choose the data set that they were made from, in its official layout."
            )
        chosen = torch.zeros(len(test), dtype=torch.bool, device=test.y.device)
        chosen[self.index[self.labels_after != self.labels_before]] = True
        return chosen

    def rows(self, index: Tensor) -> Tensor:
        """Which of its rows these test images are."""
        order = self.index.argsort()
        return order[torch.searchsorted(self.index[order], index)]

    def on(self, test: ImageSet, index: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows(index)
        return self.images[rows], self.labels_after[rows]

    def stamp(self, x: Tensor, *drawn: Tensor) -> Tensor:
        raise UserError(
            "this trigger is only known as pictures of certain test images, so it cannot be put on others: name the attack "
            "(attack=badnets ...) to use the bench's own trigger."
        )


def adopt(file: str, model: nn.Module, attack: Attack, width: int | None) -> None:
    """Puts the weights of a file into the model, and the trigger that lies beside it into the attack. Both in place.

    An attack whose trigger is fixed by its settings needs none beside it. Raises UserError.
    """
    pour(checkpoint(file).weights, model, file, width)
    if attack.elsewhere:
        return
    if stored := beside(file, OURS):
        load(attack, stored)
    elif attack.learned:
        raise UserError(
            f"the trigger of {type(attack).__name__} is learned while it attacks, so {file} must have its own beside it "
            f"({OURS}); without one use attack=unknown."
        )


def found(
    file: Checkpoint,
    shape: tuple[int, int, int],
    num_classes: int,
    target: int | None,
    alpha: float | None,
    corners: bool,
) -> tuple[Trigger, Facts, Attack | None]:
    """The trigger that comes with a model, facts about the poisoning, and the attack, where it is one of the bench's.

    See `bench.attacks.imported`. Raises UserError.
    """
    path = str(file.path)
    if beside(path, OURS) and beside(path, CARD):
        attack, facts = of_card(file.path.parent / CARD, shape, num_classes)
        load(attack, file.path.parent / OURS)
        return attack.trigger, facts, attack
    if anp := beside(path, ANP):
        return of_anp(read(anp), str(anp), shape, num_classes, alpha), {}, None
    if "bd_test" in file.rest:
        return *of_backdoorbench(file, shape, num_classes), None
    if isinstance(corner := file.rest.get("trigger"), Tensor):
        return of_corner(corner, path, shape, num_classes, target or 0, alpha, corners), {}, None
    raise UserError(
        f"{path} comes without a trigger ({OURS} with {CARD}, {ANP}, or a trigger inside): name the attack that was used "
        "(attack=badnets ...), or say attack=unknown."
    )


def load(attack: Attack, path: Path) -> None:
    """Puts a trigger that the bench stored into the same attack's own. Raises UserError if it is of another."""
    try:
        state = load_file(path)
        attack.trigger.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is not a trigger of {type(attack).__name__} with these settings: {line}") from error


def of_card(path: Path, shape: tuple[int, int, int], num_classes: int) -> tuple[Attack, Facts]:
    """The attack that a stored model's card names, one of the bench's, and the share of poisoned images.

    A card is data, and may be somebody else's.
    """
    try:
        if path.stat().st_size > CARD_LIMIT:
            raise ValueError("it is too large")
        card = json.loads(path.read_text())
        node, said = dict(card["from"]["attack"]), dict(card.get("poison", {}))
        attack = (
            None
            if str(node.get("_target_")).endswith(".Imported")
            else make(node, shape=shape, num_classes=num_classes)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} names no attack ({type(error).__name__}: {error}).") from error
    if attack is None:
        raise UserError(f"{path} is of a model that was itself imported: give the file that it came from.")
    if not isinstance(attack, Attack):
        raise UserError(f"{path} names a {type(attack).__name__}, which is no attack.")
    return attack, {key: said[key] for key in ("poisoned", "poison_base", "poison_rate") if key in said}


def of_anp(info: Any, path: str, shape: tuple[int, int, int], num_classes: int, alpha: float | None) -> Trigger:
    """ANP's trigger_info.th: pixels of a pattern and a mask [1, H, W, channels], alpha, and the target class."""
    try:
        pattern, mask = (torch.from_numpy(np.asarray(info[f"trigger_{part}"]))[0] for part in ("pattern", "mask"))
        pattern, mask = pattern.permute(2, 0, 1).double(), mask.permute(2, 0, 1).double()
        pattern = pattern.expand(shape)
        Overlay(pattern, mask, 1.0, num_classes, 0, "all2one")(torch.zeros(1, *shape, dtype=torch.float64))
        (target,) = np.asarray(info["poison_target"]).ravel().tolist()
        opaque = float(info["trigger_alpha"]) if alpha is None else alpha
    except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
        size = "x".join(map(str, shape))
        raise UserError(f"{path} holds no trigger for images of {size} as ANP's code writes it ({error}).") from error
    if not ((mask >= 0) & (mask <= 1)).all() or not mask.any():
        raise UserError(f"{path} has a mask with values outside 0 and 1, or of nothing but zeros.")
    if not ((pattern >= 0) & (pattern <= 255)).all():
        raise UserError(f"{path} has a pattern with values outside 0 and 255.")
    return Overlay(pattern.contiguous(), mask, opaque, num_classes, int(target), "all2one")


def of_corner(
    corner: Tensor,
    path: str,
    shape: tuple[int, int, int],
    num_classes: int,
    target: int,
    alpha: float | None,
    corners: bool,
) -> Trigger:
    """EP's and CLP's trigger: floats [C, s, s] in 0..1, put over the bottom right corner (`corners`: over all four)."""
    channels, height, width = shape
    size = corner.shape[-1] if corner.ndim == 3 else 0
    if tuple(corner.shape) != (channels, size, size) or not 0 < size <= min(height, width):
        raise UserError(
            f"{path} has a trigger of {tuple(corner.shape)} numbers, which is no square for images of {shape}."
        )
    if not (corner.is_floating_point() and ((corner >= 0) & (corner <= 1)).all()):
        raise UserError(f"{path} has a trigger with values outside 0 and 1.")
    pattern, mask = torch.zeros(shape, dtype=torch.float64), torch.zeros(1, height, width, dtype=torch.float64)
    ends = (slice(0, size), slice(-size, None))
    for rows, cols in [(r, c) for r in ends for c in ends] if corners else [(ends[1], ends[1])]:
        pattern[:, rows, cols], mask[:, rows, cols] = 255 * corner.double(), 1
    trigger = Overlay(pattern, mask, 1.0 if alpha is None else alpha, num_classes, target, "all2one")
    trigger.rounding = "nearest"
    return trigger


def of_backdoorbench(file: Checkpoint, shape: tuple[int, int, int], num_classes: int) -> tuple[Trigger, Facts]:
    """The pictures in bd_test_dataset/<true class>/<index>.png beside attack_result.pt, and what was poisoned."""
    folder = beside(str(file.path), PICTURES[0])
    index, before, after = rows(file, "bd_test")
    if folder is None or not index:
        raise UserError(
            f"{file.path} has its triggered images in {PICTURES[0]}/, which is not beside it: put it there, or name the "
            "attack (attack=badnets ...) to use the bench's own trigger."
        )
    at, true, wanted = (torch.tensor(numbers) for numbers in (index, before, after))
    pictures = Pictures(images(folder, index, before, shape), at, true, wanted, num_classes)
    if not (train := file.rest.get("bd_train")):
        return pictures, {}
    try:
        indicator = np.asarray(train["poison_indicator"])
        if not np.isin(indicator, (0, 1)).all():
            raise ValueError("its poison_indicator holds more than 0 and 1")
    except (KeyError, TypeError, ValueError) as error:
        raise other_version(file, "bd_train", error) from error
    if not (count := int(indicator.sum())):
        return pictures, {}
    return pictures, {"poisoned": count, "poison_base": len(indicator), "poison_rate": count / len(indicator)}


def rows(file: Checkpoint, part: str) -> tuple[list[int], list[int], list[int]]:
    """(index in the official set, true class, class wanted) of the poisoned images of bd_test or bd_train."""
    try:
        said = file.rest[part]
        table, indicator = said["bd_data_container"]["data_dict"], np.asarray(said["poison_indicator"])
        keys = [int(key) for key in np.asarray(said["original_index_array"]).ravel() if indicator[int(key)] == 1]
        labels: list[Mapping[Any, Any]] = [table[key]["other_info"] for key in keys]
        return keys, [int(label[1]) for label in labels], [int(label[0]) for label in labels]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise other_version(file, part, error) from error


def other_version(file: Checkpoint, part: str, error: Exception) -> UserError:
    return UserError(
        f"{file.path} has no {part} as BackdoorBench's second version writes it ({type(error).__name__}: {error})."
    )


def images(folder: Path, index: list[int], classes: list[int], shape: tuple[int, int, int]) -> Tensor:
    """uint8 [N, C, H, W]. The names are made here from numbers, never taken from a file."""
    paths = [folder / str(label) / f"{key}.png" for key, label in zip(index, classes, strict=True)]
    out = torch.empty(len(paths), *shape, dtype=torch.uint8)
    for row, path in enumerate(paths):
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is missing: {folder.name} is not complete.")
        try:
            with Image.open(path) as file:
                pixels = np.array(file.convert("L" if shape[0] == 1 else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} cannot be read as an image: {error}.") from error
        if pixels.shape[:2] != tuple(shape)[1:]:
            raise UserError(f"{path} has {pixels.shape[:2]} pixels, and the data set's images have {tuple(shape)[1:]}.")
        out[row] = torch.from_numpy(pixels.reshape(*pixels.shape[:2], shape[0])).permute(2, 0, 1)
    return out
