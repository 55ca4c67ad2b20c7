"""Every data set there is a config for, from a miniature of its official layout: the right pixels, labels and parts."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
import torchvision
from cells import build, choices, composed, lesson
from hydra.errors import InstantiationException
from PIL import Image
from scipy.io import savemat

RNG = np.random.default_rng(0)
N = {"train": 30, "test": 20}


def images(count, *shape):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count, classes):
    return [i % classes for i in range(count)]


def cifar10(root):
    folder, made = root / "cifar-10-batches-py", {}
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        made[name] = images(20 if name == "test_batch" else 6, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": made[name], "labels": labels(len(made[name]), 10)}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return made["test_batch"].reshape(-1, 3, 32, 32), 10


def cifar100(root):
    folder, made = root / "cifar-100-python", {}
    folder.mkdir()
    for name in N:
        made[name] = images(N[name], 3072)
        (folder / name).write_bytes(pickle.dumps({"data": made[name], "fine_labels": labels(N[name], 15)}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    return made["test"].reshape(-1, 3, 32, 32), 15


def mnist(root, name="MNIST"):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        pixels = images(N[part], 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes()
        )
        y = np.array(labels(N[part], 10), np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(y)) + y.tobytes())
    return pixels[:, None], 10


def svhn(root):
    for part in N:
        pixels = images(N[part], 32, 32, 3)
        y = np.array([v or 10 for v in labels(N[part], 10)])[:, None]  # the file calls the digit 0 class 10
        savemat(root / f"{part}_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": y})
    return pixels.transpose(0, 3, 1, 2), 10


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    for part in N:
        pixels = images(N[part], 3, 96, 96)
        (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())  # columns first
        (folder / f"{part}_y.bin").write_bytes((np.array(labels(N[part], 10), np.uint8) + 1).tobytes())
    for name in ("unlabeled_X.bin", "class_names.txt", "fold_indices.txt"):
        (folder / name).write_text("\n".join("abcdefghij"))
    return pixels, 10


def gtsrb(root):
    train, test = (root / "gtsrb/GTSRB" / p for p in ("Training", "Final_Test/Images"))
    test.mkdir(parents=True)
    rows, pixels = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"], images(N["test"], 32, 32, 3)
    for i, y in enumerate(labels(N["train"], 5)):
        (train / f"{y:05d}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(1, 40, 37, 3)[0]).save(train / f"{y:05d}" / f"{i:05d}.ppm")
    for i, y in enumerate(labels(N["test"], 5)):
        Image.fromarray(pixels[i]).save(test / f"{i:05d}.ppm")
        rows.append(f"{i:05d}.ppm;32;32;1;1;2;2;{y}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows))
    return pixels.transpose(0, 3, 1, 2), 5


def tiny_imagenet(root):
    top = root / "tiny-imagenet-200"
    (top / "val/images").mkdir(parents=True)
    lines, pixels = [], images(N["test"], 64, 64, 3)
    for i, y in enumerate(labels(N["train"], 3)):
        (top / f"train/n{y}/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(1, 64, 64, 3)[0]).save(top / f"train/n{y}/images/n{y}_{i}.png")
    for i, y in enumerate(sorted(labels(N["test"], 3))):
        Image.fromarray(pixels[i]).save(top / f"val/images/val_{i:02d}.png")
        lines.append(f"val_{i:02d}.png\tn{y}\t0\t0\t62\t62")
    (top / "val/val_annotations.txt").write_text("\n".join(lines[::-1]) + "\n")
    return pixels.transpose(0, 3, 1, 2), 3


MADE = {
    "cifar10": cifar10, "cifar100": cifar100, "mnist": mnist, "fashionmnist": lambda root: mnist(root, "FashionMNIST"),
    "svhn": svhn, "stl10": stl10, "gtsrb": gtsrb, "tiny_imagenet": tiny_imagenet,
}  # fmt: skip


CLASSES = {"cifar100": 100, "gtsrb": 43, "tiny_imagenet": 3}  # where not 10; a miniature may lack some


@pytest.fixture
def unchecked(monkeypatch):
    """A miniature has other checksums than the archive."""
    monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda *_, **__: True)


def load(name, root, *more):
    words = (f"dataset={name}", f"dataset.root={root}", f"runs={root}/out", "dataset.heldout=5", *more)
    return build(composed(*words).dataset)


def test_no_config_is_left_out():
    folders = {"digits", "imagefolder", "cifar10_jpeg", "imagenet12"}  # tested in test_data.py
    assert set(choices("dataset")) == set(MADE) | folders


@pytest.mark.parametrize("name", MADE)
def test_official_layout(name, tmp_path, unchecked):
    expected, classes = MADE[name](tmp_path)
    data = load(name, tmp_path)
    assert data.num_classes == CLASSES.get(name, 10) and len(data.mean) == len(data.std) == data.shape[0]
    assert (len(data.train), len(data.heldout), len(data.test)) == (N["train"] - 5, 5, N["test"])
    assert data.test.x.numpy().tolist() == expected.tolist()
    wanted = sorted(labels(N["test"], classes)) if name == "tiny_imagenet" else labels(N["test"], classes)
    assert data.test.y.tolist() == wanted
    (kept,) = (tmp_path / "out/cache").iterdir()
    stamp = (kept / "arrays.safetensors").stat().st_mtime_ns
    assert load(name, tmp_path).digest == data.digest
    assert (kept / "arrays.safetensors").stat().st_mtime_ns == stamp
    lesson(name, data)
    half = load(name, tmp_path, "dataset.size=16")
    assert half.shape == (data.shape[0], 16, 16) and half.test.y.equal(data.test.y)


@pytest.mark.parametrize("name", sorted(MADE.keys() - {"tiny_imagenet"}))
def test_what_is_not_there_is_one_sentence(name, tmp_path):
    with pytest.raises(InstantiationException, match=r"is not in .*dataset\.download=true fetches it .*or put .* into"):
        load(name, tmp_path)
    assert not (tmp_path / "out").exists()


def test_tiny_imagenet_in_its_zip(tmp_path):
    tiny_imagenet(tmp_path)
    plain = load("tiny_imagenet", tmp_path)
    other = tmp_path / "zipped"
    other.mkdir()
    with zipfile.ZipFile(other / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted((tmp_path / "tiny-imagenet-200").rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    assert load("tiny_imagenet", other).digest == plain.digest
    content = (other / "tiny-imagenet-200.zip").read_bytes()
    (other / "tiny-imagenet-200.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InstantiationException, match=r"tiny-imagenet-200.zip cannot be read as an archive .*: fetch it again"
    ):
        load("tiny_imagenet", other)
    (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").write_text("")
    with pytest.raises(InstantiationException, match=r"val_annotations.txt names no image"):
        load("tiny_imagenet", tmp_path)
    with pytest.raises(InstantiationException, match=r"there is neither .* nor tiny-imagenet-200.zip"):
        load("tiny_imagenet", tmp_path / "nowhere")
