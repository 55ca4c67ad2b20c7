"""Bad settings of every attack: one sentence that names the setting, before anything is trained."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import attacks, build, composed

from bench.attacks.base import PoisonAttack
from bench.errors import UserError

SHAPE, CLASSES = (3, 16, 16), 10
ATTACKS = [name for name in attacks() if name != "none"]


def takes(setting):
    """The attacks that have this setting."""
    return [name for name in ATTACKS if setting in composed(f"attack={name}").attack]


def cases():
    """(attack, overrides, what the sentence must say)"""
    for name in ATTACKS:
        yield name, ["target=10"], r"attack\.target=10"
        yield name, ["target=-1"], r"attack\.target=-1"
    for setting in ("poison_rate", "cover_rate"):
        for name in takes(setting):
            for rate in (-0.1, 1.5, "lots") + ((0,) if setting == "poison_rate" else ()):
                yield name, [f"{setting}={rate}"], rf"attack\.{setting}={rate}"
    for setting in ("labels", "victims", "base"):
        for name in takes(setting):
            yield name, [f"{setting}=odd"], rf"attack\.{setting}=odd"
    yield "cl", ["pattern=odd"], r"attack\.pattern=odd checker4 or checker1"
    for name in sorted(set(takes("pattern")) - {"cl"}):
        yield name, ["pattern=SMALL"], r"attack\.pattern=.*8x8 pixels.*16x16"
        yield name, ["pattern=MISSING"], r"attack\.pattern=.*neither a known pattern nor an image file"
        yield name, ["pattern=CORRUPT"], r"attack\.pattern=.*cannot be read as an image"
    for name in takes("distance"):
        for distance in (-1, 14):
            pattern = "random" if name in ("tact", "trojan") else "square"
            yield name, [f"pattern={pattern}", f"distance={distance}"], rf"attack\.distance={distance}"
    for name in takes("source_class"):
        for number in (-1, 10, 0):  # 0 is the target
            yield name, [f"source_class={number}"], rf"attack\.source_class={number}"
    for name, setting, values in (
        ("blend", "alpha", (0, 1.5)),
        ("badnets", "alpha", (0, 1.5)),
        ("tact", "alpha", (0, 1.5)),
        ("tact", "cover_classes", ("[1]", "[0]", "[12]")),
        ("ablend", "alpha", (0, 1.5)),
        ("ablend", "test_alpha", (0,)),
        ("ablend", "pieces", (0, 15, 400)),
        ("ablend", "mask_rate", (-0.1, 0.97, 1)),
        ("adappatch", "opacities", ("[0.5]", "[0.5, 0.2, 0.5, 2]")),
        ("ftrojan", "positions", ("[]", "[[15]]", "[[32, 1]]", "[3, 4]")),
        ("ftrojan", "channels", ("[]", "[3]")),
        ("ftrojan", "magnitude", (0,)),
        ("refool", "alpha", (0, 1)),
        ("refool", "ghost_rate", (-0.1, 1.1)),
        ("refool", "reflections", (0,)),
        ("refool", "folder", ("MISSING",)),
        ("sig", "delta", (0, 300)),
        ("sig", "f", (0,)),
        ("sig", "form", ("odd",)),
        ("wanet", "noise_ratio", (-1, 20)),
        ("wanet", "k", (0,)),
        ("awp", "eps", (0,)),
        ("awp", "alpha", (0, 1)),
        ("fc", "training", ("odd",)),
        ("fc", "targets", (0,)),
        ("fc", "watermark", (1, -0.1)),
        ("fc", "beta", (-1,)),
        ("fc", "lr", (-1,)),
        ("fc", "iterations", (0,)),
        ("ssba", "bits", (0,)),
        ("ssba", "message", (0,)),
        ("ssba", "change", (-1,)),
    ):
        for value in values:
            yield name, [f"{setting}={value}"], rf"attack\.{setting}\b"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The user's files that the cases speak of."""
    from torchvision.io import write_png

    folder = tmp_path_factory.mktemp("files")
    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(folder / "small.png"))
    (folder / "corrupt.png").write_bytes(b"not an image")
    return {name: folder / f"{name.lower()}.png" for name in ("SMALL", "CORRUPT", "MISSING")}


def attack_of(name, overrides, files: dict[str, Path]):
    words = [f"attack={name}", "dataset=cifar10", *(f"attack.{o}" for o in overrides)]
    for key, path in files.items():
        words = [word.replace(key, str(path)) for word in words]
    return build(composed(*words).attack, shape=SHAPE, num_classes=CLASSES)


@pytest.mark.parametrize(
    ("name", "overrides", "says"), list(cases()), ids=lambda v: " ".join(v) if isinstance(v, list) else v
)
def test_a_setting_out_of_range_is_named_when_the_attack_is_built(name, overrides, says, files):
    with pytest.raises(Exception) as caught:
        attack_of(name, overrides, files)
    errors = [error for error in (caught.value, caught.value.__cause__) if isinstance(error, UserError)]
    assert errors, f"no sentence, but {caught.value!r}"
    assert re.search(says, str(errors[0])), str(errors[0])


@pytest.mark.parametrize("name", sorted(set(takes("pattern")) - {"cl"}))
def test_a_pattern_may_be_a_users_picture(name, tmp_path):
    """Hydra hands the images' shape on as a list."""
    from torchvision.io import write_png

    image = torch.randint(256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_png(image, str(tmp_path / "mine.png"))
    attack = attack_of(name, [f"pattern={tmp_path}/mine.png"], {})
    if name in ("badnets", "blend"):
        assert attack.trigger.pattern.equal(image.double())


@pytest.mark.parametrize("name", ATTACKS)
def test_rates_that_the_data_cannot_fill_are_named_by_split(name, files):
    """Too many images for the class (clean-label, source class), too few for one; nothing is trained for that."""
    attack = attack_of(name, [], files)
    if not isinstance(attack, PoisonAttack):
        pytest.skip("poisons batches or nothing, not a set")
    labels = np.arange(50) % CLASSES
    none = attack_of(name, ["poison_rate=0.001"], files)
    few, _ = attack.pools(labels)
    base = 50 if attack.base == "train" else len(few)
    with pytest.raises(UserError, match=rf"attack\.poison_rate=0\.001 poisons no image of {base}:"):
        none.split(labels, np.random.default_rng(0))
    if attack.base == "victims":
        with pytest.raises(UserError, match=r"poisons no image of 0: .* leaves none"):
            attack.split(np.full(50, attack.trigger.target + 1), np.random.default_rng(0))
    if len(few) < 50:
        with pytest.raises(UserError, match=r"attack\.poison_rate=0\.5 asks for 25 images, but .* leaves only"):
            whole = ["base=train"] if attack.base == "victims" else []
            attack_of(name, ["poison_rate=0.5", *whole], files).split(labels, np.random.default_rng(0))
