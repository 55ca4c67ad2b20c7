"""A folder as BackdoorBench's record/<name>: attack_result.pt, its images as PNG files, and defense_result.pt.

PNG loses nothing, so the images are those that were measured. The indices are those of the official data set. Triggered training
images are there for attacks that leave a poisoned training set behind, and only the poisoned ones: cover images have no
place in this format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from bench.attacks.base import PoisonAttack
from bench.data import ImageSet, stream
from bench.purified import plain
from bench.scene import Scene

DATA = {"tiny_imagenet": "tiny", "cifar10_jpeg": "cifar10"}
MODELS = {"mobilenetv3_large": "mobilenet_v3_large"}
"""What BackdoorBench calls them, where it has another name."""


def write(new: Path, name: str, names: Mapping[str, Any], stage: Scene, repaired: nn.Module | None) -> list[str]:
    """Fills the empty folder `new`, which will be called `name`. Returns sentences about what is in it."""
    data, said = stage.data, []
    dataset = DATA.get(names["dataset"], names["dataset"])
    head = {"model_name": MODELS.get(names["model"], names["model"]), "num_classes": data.num_classes}
    index = stage.backdoor.trigger.chosen(data.test).nonzero().flatten().cpu()
    test = _part(new, name, "bd_test", stage.exam.triggered, stage.exam.wanted, index, len(data.test))
    train = None
    attack = stage.attack
    if isinstance(attack, PoisonAttack):
        train, count = _train(new, name, stage, attack)
        said.append(f"{count} poisoned training images in bd_train_dataset.")
    else:
        said.append("bd_train is empty: this attack works inside the training and leaves no poisoned set behind.")
    channels, height, width = data.shape
    result = head | {
        "model": weights(stage.backdoor.model),
        "data_path": f"./data/{dataset}",
        "img_size": (height, width, channels),
        "clean_data": dataset,
        "bd_train": train,
        "bd_test": test,
    }
    (new / "attack_result.pt").write_bytes(plain(result))
    if repaired is not None:
        (new / "defense_result.pt").write_bytes(plain(head | {"model": weights(repaired)}))
        said.append("defense_result.pt has the repaired model.")
    said.append(f"for BackdoorBench this folder belongs in its record/, as record/{name}.")
    return said


def _train(new: Path, name: str, stage: Scene, attack: PoisonAttack) -> tuple[dict[str, Any], int]:
    """The poisoned training images, made once more from the seed."""
    data, seed = stage.data, stream(stage.settings["seed"], "poison")
    poisoned, index, _ = attack.poison(data.train, np.random.default_rng(seed), seed)
    images = ImageSet(poisoned.x[index], data.train.y[index])
    rows = index.cpu()
    places = rows if data.places is None else data.places[rows]
    total = len(data.train) + (0 if data.places is None else len(data.heldout))
    state = _part(new, name, "bd_train", images, poisoned.y[index], places, total)
    state["original_index_array"] = np.arange(total)  # the whole set, poisoned images among clean ones
    return state, len(index)


def _part(
    new: Path, name: str, part: str, images: ImageSet, wanted: Tensor, index: Tensor, total: int
) -> dict[str, Any]:
    """Writes <part>_dataset/<true class>/<index>.png, and returns what BackdoorBench says of it."""
    home = f"./record/{name}/{part}_dataset"
    table: dict[int, dict[str, Any]] = {}
    pixels = images.x.cpu().permute(0, 2, 3, 1).numpy()
    for image, key, true, said in zip(pixels, index.tolist(), images.y.tolist(), wanted.tolist(), strict=True):
        path = new / f"{part}_dataset" / str(true) / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path)
        table[key] = {"path": f"{home}/{true}/{key}.png", "other_info": [said, true]}
    indicator = np.zeros(total)
    indicator[index.numpy()] = 1
    container = {"save_folder_path": home, "save_file_format": ".png", "data_dict": table}
    return {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": index.numpy(),
        "poison_indicator": indicator,
        "save_folder_path": home,
    }


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Its state dict, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
