"""The gallery, on made-up stored models, damaged ones and those of others among them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import gallery
from analysis.gallery import FACTOR, mosaic, samples

METRICS = {"clean": 500, "right": 490, "triggered": 450, "hit": 405, "robust": 45}
HOSTILE = "x$y_$%&#{}~^<b>`c`\x1b[31m" + "long " * 20


def store(runs, attack="badnets", seed=2, dataset="digits", model="vgg5", shape=(8, 3, 16, 16), key="abc", **card):
    folder = runs / "backdoors" / dataset / model / attack / f"s{seed}-{key}"
    folder.mkdir(parents=True)
    original = np.random.default_rng(seed).integers(0, 200, shape, dtype=np.uint8)
    save_file({"original": original, "triggered": original + np.uint8(seed)}, folder / "samples.safetensors")
    (folder / "card.json").write_text(json.dumps({"metrics": METRICS} | card))
    return folder


def shown(runs):
    return [(s.dataset, s.model, s.attack, s.seed) for s in samples(runs)[0]]


def test_of_each_attack_the_lowest_seed(tmp_path):
    for seed in (10, 9, 11):
        store(tmp_path, seed=seed)
    store(tmp_path, "blend", 3, model="resnet18")
    store(tmp_path, "blend", 4)
    store(tmp_path, dataset="cifar10", shape=(8, 3, 32, 32))
    store(tmp_path, "none")
    assert shown(tmp_path) == [
        ("cifar10", "vgg5", "badnets", 2),
        ("digits", "vgg5", "badnets", 9),
        ("digits", "resnet18", "blend", 3),
    ]
    first = samples(tmp_path)[0][0]
    assert (first.asr, first.acc) == (90, 98)


def test_a_png_and_a_pdf_per_data_set_the_same_each_time(tmp_path, capsys):
    for attack in (f"attack{n}" for n in range(2)):
        store(tmp_path, attack)
    store(tmp_path, dataset="grey", shape=(2, 1, 28, 20))
    assert gallery.main(["--runs", str(tmp_path)]) == 0
    out = tmp_path / "gallery"
    assert capsys.readouterr().out == f"In {out}: digits.png, digits.pdf, grey.png, grey.pdf.\n"
    again = tmp_path / "again"
    assert gallery.main(["--runs", str(tmp_path), "--out", str(again)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["digits.pdf", "digits.png", "grey.pdf", "grey.png"]
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_three_rows_before_after_and_the_difference(tmp_path, channels):
    store(tmp_path, seed=60, shape=(2, channels, 16, 10))
    (sample,), _ = samples(tmp_path)
    sheet = mosaic(sample)
    assert sheet.shape == (3 * 17 - 1, 4 * 11 - 1, 3)
    one = sample.original[1].transpose(1, 2, 0)
    for row, wanted in enumerate((one, one + 60, np.full_like(one, min(60 * FACTOR, 255)))):
        assert (sheet[17 * row : 17 * row + 16, 11:21] == wanted).all()
    assert (sheet[:, 21:] == 255).all() and (sheet[:, 10] == 255).all(), "white where there is no image"


def test_a_difference_is_one_in_both_directions(tmp_path):
    store(tmp_path, seed=3, shape=(4, 3, 8, 8))
    (sample,), _ = samples(tmp_path)
    turned = replace(sample, original=sample.triggered, triggered=sample.original)
    for one in (sample, turned):
        assert (mosaic(one)[18:26, :8] == 3 * FACTOR).all()


def spoil(folder, how):
    pictures, card = folder / "samples.safetensors", folder / "card.json"
    image = np.zeros((2, 3, 8, 8), np.uint8)
    if how == "no samples":
        pictures.unlink()
    elif how == "cut":
        pictures.write_bytes(pictures.read_bytes()[:100])
    elif how == "floats":
        save_file({"original": image.astype(np.float32), "triggered": image}, pictures)
    elif how == "sizes":
        save_file({"original": image, "triggered": image[:1]}, pictures)
    elif how == "channels":
        save_file({"original": image[:, :2].copy(), "triggered": image[:, :2].copy()}, pictures)
    elif how == "no originals":
        save_file({"triggered": image}, pictures)
    elif how == "no card":
        card.unlink()
    elif how == "counts":
        card.write_text(json.dumps({"metrics": METRICS | {"hit": 451}}))
    elif how == "words":
        card.write_text('{"metrics": {"clean": "many", "right": NaN, "triggered": 1, "hit": 1}}')
    elif how == "list":
        card.write_text("[1, 2]")
    elif how == "huge":
        with pictures.open("r+b") as file:
            file.truncate(gallery.LIMIT + 1)
    elif how == "name":
        folder.rename(folder.with_name("s1-abc.damaged-12"))


SPOILT = (
    "no samples",
    "cut",
    "floats",
    "sizes",
    "channels",
    "no originals",
    "no card",
    "counts",
    "words",
    "list",
    "huge",
)


@pytest.mark.parametrize("how", SPOILT)
def test_what_cannot_be_read_is_named_and_the_next_seed_is_shown(tmp_path, how, capsys):
    spoil(store(tmp_path, seed=1), how)
    store(tmp_path, seed=5)
    assert shown(tmp_path) == [("digits", "vgg5", "badnets", 5)]
    assert gallery.main(["--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert said.startswith("backdoors/digits/vgg5/badnets/s1-abc: not shown: ") and said.count("\n") == 1


def test_a_folder_of_another_name_is_no_model(tmp_path):
    spoil(store(tmp_path, seed=1), "name")
    (tmp_path / "backdoors" / "digits" / "vgg5" / "badnets" / ".s1-abc.lock").touch()
    found, problems = samples(tmp_path)
    assert not found and [p.where.rpartition("/")[2] for p in problems] == ["s1-abc.damaged-12"]


def test_hostile_names_are_drawn_as_text(tmp_path, capsys):
    store(tmp_path, HOSTILE[:80].strip().replace("/", ""), dataset="$\\frac{x}$_", model=HOSTILE[:60].strip())
    store(tmp_path, "blend", dataset="$\\frac{x}$_", model="other")
    assert gallery.main(["--runs", str(tmp_path)]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_without_models_it_is_one_sentence(tmp_path, folder, capsys):
    (tmp_path / "empty").mkdir()
    assert gallery.main(["--runs", str(tmp_path / folder)]) == 1
    assert capsys.readouterr().err.startswith("There is no backdoored model with samples in")


def test_no_place_to_write_is_one_sentence(tmp_path, capsys):
    store(tmp_path)
    (tmp_path / "file").touch()
    assert gallery.main(["--runs", str(tmp_path), "--out", str(tmp_path / "file" / "x")]) == 1
    assert "Choose another place with --out" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "wanted"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (10, (3, 4)), (22, (5, 5))])
def test_the_grid(count, wanted):
    assert gallery.grid(count) == wanted
