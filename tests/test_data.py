"""Splits, augmentation, and folders of images."""

import hashlib
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from cells import build, composed, lesson
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from bench.attacks.counts import poison_count
from bench.data import Augment, Dataset, ImageSet, generator, hold_out, stratified, stream
from bench.datasets import handwritten
from bench.errors import UserError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_draws_by_class(labels, data):
    labels = np.array(labels)
    size = data.draw(st.integers(0, len(labels)))
    chosen, rest = stratified(labels, size, np.random.default_rng(0))
    assert len(chosen) == size and sorted([*chosen, *rest]) == list(range(len(labels)))
    for c in np.unique(labels):
        share = size * (labels == c).sum() / len(labels)
        assert abs((labels[chosen] == c).sum() - share) < 1


@given(st.integers(0, 3), st.booleans(), st.integers(1, 5))
def test_crop_is_pad_crop_flip(shift, flip, count):
    """One gather against the plain way, image by image."""
    x = torch.randint(256, (6, 3, 8, 10), dtype=torch.uint8)
    augment = Augment(shift, flip)
    index = torch.randint(6, (count,))
    moves = augment.draw(count, generator(0))
    assert moves[:, :2].min() >= 0 and moves[:, :2].max() <= 2 * shift and (flip or not moves[:, 2].any())
    got = augment.crop(augment.pad(x), index, moves)
    for image, i, (row, col, flipped) in zip(got, index, moves.tolist(), strict=True):
        plain = F.pad(x[i], (shift,) * 4)[:, row : row + 8, col : col + 10]
        assert image.equal(plain.flip(-1) if flipped else plain)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_streams_are_apart_and_stable():
    assert stream(2, "init") != stream(2, "poison") != stream(3, "poison")
    by_hand = int.from_bytes(hashlib.sha256(b"2/init").digest()[:8], "little") // 2
    assert stream(2, "init") == by_hand, "a change here changes every result: count PROTOCOL up"


@given(st.integers(1, 1000), st.integers(1, 5000))
def test_poison_count_has_no_binary_dust(permille, base):
    assert poison_count(permille / 1000, base) == permille * base // 1000


@pytest.mark.parametrize("source", ["heldout", "train"])
@pytest.mark.parametrize("balance", ["class", "uniform"])
def test_what_the_defender_is_given(source, balance):
    """From where and how it says, never an image twice; drawn by class, each class has its share."""
    data = build(composed().dataset)

    def rows(*parts):
        return {image.numpy().tobytes() for part in parts for image in part.x}

    defender, select = data.defender(60, 40, 3, "clean", source, balance)
    again, _ = data.defender(60, 40, 3, "clean", source, balance)
    assert again.clean.x.equal(defender.clean.x)
    assert len(rows(defender.clean, select)) == 100
    assert rows(defender.clean, select) <= rows(getattr(data, source))
    counts = torch.bincount(defender.clean.y, minlength=10)
    assert (int(counts.max() - counts.min()) <= 1) == (balance == "class")
    nothing, chosen = data.defender(60, 40, 3, "nothing", source, balance)
    assert len(nothing.clean) == 0 and chosen.x.equal(select.x)


@pytest.mark.parametrize("balance", ["class", "uniform"])
def test_chance_decides_which_images_a_defender_holds(balance):
    """Each of 40 is given to a quarter of the defenders and kept from as many for the operating point, whatever its place."""
    y = torch.arange(40) % 4
    part = ImageSet(torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1), y)
    data, drawn = Dataset(part, part, part, 4), ([], [])
    for seed in range(200):
        defender, select = data.defender(10, 10, seed, "clean", "heldout", balance)
        for found, images in zip(drawn, (defender.clean, select), strict=True):
            assert len(images) == 10 and images.y.equal(y[images.x.flatten().long()])
            found.append(images.x.flatten().long())
    for found in drawn:
        often = torch.cat(found).bincount(minlength=40)
        assert often.min() > 25 and often.max() < 80  # 50 each


def test_chance_decides_which_images_are_held_out():
    train = ImageSet(torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(40) % 4)
    often = torch.zeros(40)
    for seed in range(200):
        kept, held = hold_out(train, 0.25 if seed % 2 else 10, seed)
        places = held.x.flatten().long()
        assert sorted([*places.tolist(), *kept.x.flatten().tolist()]) == list(range(40)) and len(held) == 10
        assert held.y.equal(train.y[places]) and held.y.bincount(minlength=4).max() <= 3
        often[places] += 1
    assert often.min() > 25 and often.max() < 80
    assert [len(part) for part in hold_out(train, 0, 0)] == [40, 0]
    for size in (-1, -0.1, 0.001, 40, 40.0):
        with pytest.raises(UserError, match=f"dataset.heldout={size} must be 0 or leave images on both sides"):
            hold_out(train, size, 0)


def test_moves_are_as_likely_as_each_other():
    """Every shift down with every shift to the right, flipped or not: 80 of 4000 each."""
    moves = Augment(2, True).draw(4000, generator(0))
    often = (10 * moves[:, 0] + 2 * moves[:, 1] + moves[:, 2]).bincount(minlength=50)
    assert len(often) == 50 and often.min() > 40 and often.max() < 125


@pytest.fixture
def tree(tmp_path):
    """Two classes, images of odd sizes and modes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (8, 8) if i else (12, 9)
                mode = "L" if i == 1 else "RGB"
                pixels = rng.integers(0, 256, (*size[::-1], 3) if mode == "RGB" else size[::-1], dtype=np.uint8)
                Image.fromarray(pixels, mode).save(folder / f"{i}-{label}.png")
    return tmp_path


def folder_of(tree, *overrides):
    config = composed(
        "dataset=imagefolder", f"dataset.root={tree}", f"runs={tree}/out", "dataset.heldout=2", *overrides
    )
    return build(config.dataset)


@pytest.mark.parametrize(
    ("name", "test", "size"), [("imagefolder", "test", 32), ("cifar10_jpeg", "test", 32), ("imagenet12", "val", 224)]
)
def test_every_folder_of_images_is_attacked_and_pruned(name, test, size, tree):
    (tree / "test").rename(tree / test)
    data = build(composed(f"dataset={name}", f"dataset.root={tree}", f"runs={tree}/out", "dataset.heldout=4").dataset)
    assert data.shape == (3, size, size) and data.num_classes == 2 and len(data.test) == 6
    lesson(name, data)


def test_imagefolder(tree):
    data = folder_of(tree, "dataset.size=8")
    assert (len(data.train), len(data.heldout), len(data.test)) == (10, 2, 6)
    assert data.shape == (3, 8, 8) and data.num_classes == 2 and data.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    exact = np.asarray(Image.open(tree / "test/dog/2-1.png"))
    assert data.test.x[5].permute(1, 2, 0).numpy().tolist() == exact.tolist()
    again = folder_of(tree, "dataset.size=8")
    assert again.digest == data.digest and len(list((tree / "out/cache").iterdir())) == 1
    Image.new("RGB", (8, 8)).save(tree / "train/cat/new.png")
    assert folder_of(tree, "dataset.size=8").digest != data.digest, "a changed tree must be decoded anew"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: (t / "train/cat/2-0.png").write_bytes(b"no image"), "cannot be read as an image"),
        (lambda t: Image.new("I;16", (8, 8)).save(t / "train/cat/2-0.png"), "more than 8 bits in each pixel"),
        (lambda t: (t / "test/emu").mkdir() or Image.new("RGB", (8, 8)).save(t / "test/emu/x.png"), "lacks: emu"),
        (lambda t: (t / "test").rename(t / "validation"), "there is no folder"),
        (lambda t: (t / "train/bee").mkdir(), "bee holds no images"),  # dog would be class 1 or 2
        (
            lambda t: (t / "train/cat/more").symlink_to(t / "train/dog"),
            "a link to a folder whose images are counted already",
        ),
        (
            lambda t: (t / "train/cat/more").symlink_to(t / "train/cat"),
            "a link to a folder whose images are counted already",
        ),
        (lambda t: os.mkfifo(t / "train/cat/pipe.png"), "pipe.png is no file"),
        (lambda t: (t / "train/cat/gone.png").symlink_to(t / "nowhere"), "gone.png is no file"),
    ],
)
def test_a_bad_tree_is_one_sentence(tree, spoil, words):
    spoil(tree)
    with pytest.raises(Exception) as caught:
        folder_of(tree, "dataset.size=8")
    chain = [caught.value, caught.value.__cause__]
    assert any(isinstance(e, UserError) and words in str(e) for e in chain)
    assert not list(tree.glob("out/cache/*"))


def test_what_is_no_image_is_passed_over_and_said(tree, caplog):
    plain = folder_of(tree, "dataset.size=8")
    (tree / "train/.ipynb_checkpoints").mkdir()
    for name in ("._0-0.png", "notes.svg", "more.heic", "boxes.txt"):
        (tree / "train/cat" / name).write_bytes(b"no image")
    caplog.clear()
    assert folder_of(tree, "dataset.size=8").digest == plain.digest
    assert "train: files that are no images by their names are passed over: 1 with .heic, 1 with .svg." in caplog.text
    assert caplog.text.count("passed over") == 1
    Image.open(tree / "train/cat/2-0.png").save(tree / "train/cat/2-0.gif")
    assert len(folder_of(tree, "dataset.size=8").train) == 11


@pytest.mark.parametrize("above", ["", "mine/"], ids=["at its top", "in a folder"])
def test_a_folder_of_images_in_an_archive(above, tree, tmp_path_factory):
    place = tmp_path_factory.mktemp("archives")
    plain = folder_of(tree, "dataset.size=8")
    for name in ("images.zip", "images.tar.gz"):
        with zipfile.ZipFile(place / name, "w") if name.endswith("zip") else tarfile.open(place / name, "w:gz") as file:
            add = file.write if name.endswith("zip") else file.add
            if above == "" and name.endswith("gz"):
                file.add(tree / "train", ".", recursive=False)  # as `tar -C DIR .` does
            for path in sorted([*tree.glob("t*/**/*")]):
                add(path, f"{above}{path.relative_to(tree)}") if path.is_file() else None
        assert folder_of(place, f"dataset.root={place / name}", "dataset.size=8").digest == plain.digest
    with pytest.raises(Exception) as caught:
        folder_of(place, f"dataset.root={place / name}", "dataset.test=val")
    assert f"{place / name} holds no folder val" in str(caught.value.__cause__)


def test_digits_are_the_published_ones(monkeypatch):
    data = build(composed().dataset)
    assert (len(data.train), len(data.heldout), len(data.test)) == (1097, 200, 500)
    assert data.shape == (3, 16, 16) and data.train.x.dtype == torch.uint8
    images, labels = load_digits(return_X_y=True)
    parts = (data.train, data.heldout, data.test)
    assert torch.cat([p.y for p in parts]).bincount().tolist() == np.bincount(labels).tolist()
    mean = torch.cat([p.x for p in parts]).float().mean()
    assert mean == pytest.approx(images.mean() * 255 / 16, rel=0.02), "resizing keeps the ink"
    for elsewhere in False, True:
        if elsewhere:  # a release of scikit-learn that keeps its file at another place
            monkeypatch.setattr("bench.datasets.find_spec", lambda package: None)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(handwritten(), (images, labels), strict=True))
