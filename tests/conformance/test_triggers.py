"""Triggered images against those of the peers' own code."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.attacks.ablend import PieceBlend
from bench.attacks.adapkway import dots
from bench.attacks.adappatch import Patches
from bench.attacks.badnets import patch
from bench.attacks.base import Trigger
from bench.attacks.bpp import Quantised, negative
from bench.attacks.cl import Marks
from bench.attacks.ftrojan import Frequencies
from bench.attacks.inputaware import InputAware, diversity
from bench.attacks.lira import LIRA
from bench.attacks.patterns import Additive, Injector, Overlay
from bench.attacks.refool import Reflection
from bench.attacks.sig import SIG
from bench.attacks.tact import TaCT
from bench.attacks.trojan import Wrapping
from bench.attacks.wanet import Warp

from .learned import fill, statistics, unit
from .vectors import CLASSES, SHAPE, chw

NAMED = {"trigger_image.png": "white3", "checkerboard_1corner": "checker1", "checkerboard_4corner": "checker4"}
"""What the peers call a pattern -> what the bench calls it."""


def overlay(pattern, mask, alpha=1.0):
    """`pattern` in 0..255 and `mask` in 0..1: arrays or tensors [C, H, W], [1, H, W] or [H, W]."""
    pattern, mask = (torch.as_tensor(image).expand(SHAPE) for image in (pattern, mask))
    return Overlay(pattern, mask, alpha, CLASSES, 0, "all2one")


def named(pattern, distance=0):
    return overlay(*patch(pattern, SHAPE, distance, 0))


def block(rows, cols):
    """A mask that is 1 there."""
    mask = torch.zeros(SHAPE)
    mask[:, rows, cols] = 1
    return mask


@dataclass
class Case:
    """What is compared, our trigger (or one for each image), the stored images, and what else is to be known."""

    what: str
    trigger: Trigger | list[Trigger]
    stored: np.ndarray
    drawn: tuple = ()
    """What else the trigger is given: what the peer drew for each image."""
    white: float = 1.0
    """What white is in stored floats."""
    flips: float = 0.0
    """The share of stored floats that may be anything: where a rounding error decides which way a scan goes on."""
    images: torch.Tensor | None = None
    """Pixel values, if they are not the first of the folder's images."""


def badnets_backdoorbench(entry, a):
    """Pixels above 0 of the trigger file replace."""
    trigger = chw(a["trigger"])
    yield Case("stored pattern", overlay(trigger, trigger > 0), a["out"])
    name = NAMED.get(Path(entry.params["trigger_file"]).name)
    if name:
        yield Case(name, named(name), a["out"])


def badnets_rnp_nad_abl(entry, a):
    square = entry.params["square"]
    width, height, distance = square["trig_w"], square["trig_h"], square["distance"]
    rows, cols = (slice(32 - distance - size, 32 - distance) for size in (width, height))
    yield Case("rectangle", overlay(block(rows, cols) * 255, block(rows, cols)), a["square"])
    if width == height:
        yield Case("square", overlay(*patch("square", SHAPE, distance, 0, width)), a["square"])
    for out in ("grid", "cl_train", "cl_test"):
        yield Case(out, named("checker1"), a[out])
    yield Case("four_corner", named("four_corner"), a["fourcorner"])
    row, col, value = map(int, re.findall(r"\d+", entry.info["meaning"]["onepixel"]))
    pixel = block(slice(row, row + 1), slice(col, col + 1))
    yield Case("one pixel", overlay(pixel * value, pixel), a["onepixel"])


def anp(entry, a):
    alpha = float(entry.params["trigger_alpha"])
    for out in ("out_train", "out_test"):
        yield Case(f"stored pattern, {out}", overlay(chw(a["pattern"]), chw(a["mask"]), alpha), a[out])
        name = NAMED.get(entry.params["trigger_type"])
        if name:
            yield Case(f"{name}, {out}", overlay(*patch(name, SHAPE, 0, 0), alpha), a[out])


def toolbox(entry, a):
    mask = a.get("mask", np.ones(SHAPE[1:]))
    yield Case("out", overlay(a["trigger"] * np.float64(255), mask, float(entry.params["alpha"])), a["out"])


def badnets_backdoorbox(entry, a):
    """The peer's arithmetic is that of its float32 weights."""
    trigger = overlay(a["pattern"], a["weight"])
    trigger.dtype = torch.float32
    yield Case("out", trigger, a["out"])


def badnets_mcr(entry, a):
    """The peer counts its distance from one past the corner."""
    image, mask = patch("square", SHAPE, entry.params["distance"] - 1, 0)
    yield Case("out", overlay(image / 255 * entry.params["pixel_value"], mask), a["out"])


def clp_ep_triggers(entry, a):
    size = a["trigger"].shape[-1]
    ends = (slice(0, size), slice(32 - size, 32))
    image = torch.zeros(SHAPE, dtype=torch.float64)
    for rows in ends:
        for cols in ends:
            image[:, rows, cols] = torch.tensor(a["trigger"]) * 255.0
    corner = block(ends[1], ends[1])
    corners = sum(block(rows, cols) for rows in ends for cols in ends)
    alpha = float(re.search(r"([\d.]+) mix", entry.info["meaning"]["out_blended"]).group(1))
    yield Case("badnets", overlay(image, corner), a["out_badnets"])
    yield Case("blended", overlay(image, corner, alpha), a["out_blended"])
    yield Case("cla", overlay(image, corners), a["out_cla"])


def blend_backdoorbench(entry, a):
    """The peer multiplies its float32 pattern with the rate in float32, and only the sum is float64; so do we."""
    for alpha in entry.params["alpha"]:
        yield Case(f"alpha {alpha}", overlay(chw(a["pattern"]), torch.ones(1), alpha), a[f"out_{alpha}"])


def blend_rnp_randompixel(entry, a):
    """The peer draws a new image for every sample, so there is a trigger for each."""
    yield Case("out", [overlay(mask, torch.ones(1), entry.params["alpha"]) for mask in a["mask"]], a["out"])


def warp(entry, control):
    p = entry.params
    trigger = Warp(SHAPE, p["k"], p["s"], p["grid_rescale"], 0, num_classes=CLASSES, target=0)
    trigger.grid.copy_(trigger.field(control, *SHAPE[1:]))
    return trigger


def wanet(entry, a):
    trigger, truncating = (warp(entry, torch.tensor(a["ins"])) for _ in range(2))
    truncating.rounding = "truncate"
    torch.testing.assert_close(trigger.grid, torch.tensor(a["grid"]), rtol=0, atol=1e-5)
    numbers = re.findall(r"\d*\.?\d+", entry.params["normalisation"]) or [0, 1]  # GTSRB has none
    mean, std = np.array(numbers, np.float32).reshape(2, 1, -1, 1, 1)
    yield Case("warped", trigger, a["warped01"])
    yield Case("warped_norm", trigger, a["warped_norm"] * std + mean)
    yield Case("noise mode", trigger, a["cross01"], (torch.tensor(a["cross_ins"]),))
    yield Case("BackdoorBox rounds", trigger, a["u8_backdoorbox_round"])
    yield Case("BackdoorBench truncates", truncating, a["u8_backdoorbench_trunc"])


def wanet_rnp(entry, a):
    """The peer draws a new warp for every image."""
    triggers = []
    for drawn in torch.tensor(a["rand"]) * 2 - 1:
        triggers.append(warp(entry, drawn[None] / drawn.abs().mean()))
        triggers[-1].rounding = "truncate"
    yield Case("out", triggers, a["out"])


def sig(entry, a):
    """`bb_out_D_f` is in pixel values, the toolbox's pattern in 0..1."""
    for out in (name for name in a if name.startswith("bb_out_")):
        delta, f = map(float, out.removeprefix("bb_out_").split("_"))
        yield Case(out, SIG(SHAPE, CLASSES, 0.1, delta, f).trigger, a[out])
    p = entry.params["toolbox"]
    trigger = SIG(SHAPE, CLASSES, 0.1, p["delta"] * 255, p["f"]).trigger
    np.testing.assert_allclose(trigger.pattern.expand(SHAPE)[0] / 255, a["toolbox_pattern"], rtol=0, atol=1e-6)
    yield Case("toolbox", trigger, a["toolbox_out"])
    alpha = entry.params["rnp"]["alpha"]
    yield Case("stored mask", overlay(torch.tensor(a["rnp_mask"]).double(), torch.ones(1), alpha), a["rnp_out"])
    drawn = SIG(SHAPE, CLASSES, 0.1, 20, 0, form="rnp", alpha=alpha).trigger
    np.testing.assert_array_equal(drawn.pattern[0], a["rnp_mask"])
    yield Case("our mask", drawn, a["rnp_out"])


def ablend(entry, a):
    p = entry.params
    parts = (torch.tensor(a["trigger"]).double() * 255, p["alpha"], p["test_alpha"], p["pieces"], p["mask_rate"])
    trigger = PieceBlend(*parts, num_classes=CLASSES, target=0)
    removed = torch.tensor(a["removed_pieces"])
    assert trigger.draw(len(removed), 0)[0].shape == removed.shape
    np.testing.assert_array_equal(trigger.kept(removed, *SHAPE[1:])[:, 0], a["masks"])
    yield Case("train", trigger, a["out_train"], (removed,))
    yield Case("test", trigger, a["out_test"])


def tact(entry, a):
    yield Case("out", overlay(torch.tensor(a["trigger"]).double() * 255, a["mask"]), a["out"])
    p = entry.params
    attack = TaCT(SHAPE, 10, 0.1, 0.1, p["source_class"], p["cover_classes"], target=p["target_class"])
    counted = attack.trigger.counts(torch.arange(10)).nonzero().flatten().tolist()
    assert counted == [p["source_class"]]


def ftrojan(entry, a):
    """The peer works with bytes on the way, so its floats are whole numbers."""
    p = entry.params
    parts = (p["channel_list"], p["window_size"], p["magnitude"], p["pos_list"])
    trigger = Frequencies(SHAPE, *parts, CLASSES, 0, "all2one")
    np.testing.assert_array_equal(a["out"].clip(0, 255).astype(np.uint8), a["u8"])
    yield Case("u8", trigger, a["u8"])


def adappatch(entry, a):
    """The peer puts each of its triggers on the first images."""
    opacities, test_opacities = ([share for _, share in entry.params[when]] for when in ("train", "test"))
    layers = []
    for prefix, shares in (("", opacities), ("test_", test_opacities)):
        patterns, masks = (torch.tensor(a[f"{prefix}{name}"]).double() for name in ("triggers", "masks"))
        layers.append((patterns * 255, masks[:, None] * torch.tensor(shares, dtype=torch.float64).view(-1, 1, 1, 1)))
    trigger = Patches(*layers, CLASSES, 0)
    few = a["out_train"].shape[0]
    for number in range(len(opacities)):
        which = torch.full((few,), number)
        yield Case(f"train {number}", trigger, a["out_train"][:, number], (which,))
    yield Case("test", trigger, a["out_test"])


def adapkway(entry, a):
    both = dots(a["pixel_locs"].tolist(), (a["pixel_vals"] * 255).tolist(), SHAPE)
    yield Case("test", Patches(both, both, CLASSES, 0), a["out_test"])


def cl(entry, a):
    """BackdoorBench's bytes, and MadryLab's floats of the same marks in 0..255."""
    named = {"all-corners": "checker4", "bottom-right": "checker1"}
    for out, p in entry.params.items():
        amplitude = 255.0 * p["reduced_amplitude"]
        trigger = Marks(named[p["trigger"]], SHAPE, amplitude, amplitude, CLASSES, 0)
        yield Case(out, trigger, a[out])
        yield Case(f"{out} in training", trigger, a[out], trigger.draw(len(a[out]), 0))
        floats = trigger(entry.images.to(trigger.dtype)).clamp(0, 255)
        np.testing.assert_allclose(floats, chw(a[f"madry_{out}"]), rtol=0, atol=1e-4, err_msg=f"madry_{out}")


def lf(entry, a):
    yield Case("out", Additive(chw(a["pattern"]), CLASSES, 0, "all2one"), a["out"])


def refool(entry, a):
    """The peer has one reflection for all images and draws the attenuation for each."""
    p, count = entry.params, len(a["out_ghost"])
    trigger = Reflection(chw(a["reflection"])[None], p["alpha_t"], 0.5, 0, CLASSES, 0, "all2one")
    fixed = [torch.full((count,), float(v)) for v in (*p["offset"], p["ghost_alpha"], p["sigma"])]
    which = torch.zeros(count, dtype=torch.int64)
    for ghostly, out in ((True, "out_ghost"), (False, "out_focal")):
        drawn = (which, torch.full((count,), ghostly), *(f.double() for f in fixed), torch.tensor(a["att"]))
        assert [d.shape for d in drawn] == [d.shape for d in trigger.draw(count, 0)]
        yield Case(out, trigger, a[out], drawn)


def trojan(entry, a):
    """The peers wrap; what saturates was computed for the vectors."""
    for pattern, out, form in (
        ("trigger", "out", Wrapping),
        ("trigger", "out_saturating", Additive),
        ("bb_trigger", "bb_out", Wrapping),
    ):
        yield Case(out, form(chw(a[pattern]), CLASSES, 0, "all2one"), a[out])


def bpp(entry, a):
    """Levels per colour are in the arrays' names; BackdoorBench truncates what it stores."""
    p, x = entry.params, entry.images.float()
    dithering = p["dithering"]
    mean, std = torch.tensor([[0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]]).view(2, 3, 1, 1)  # the peer's CIFAR-10
    for levels in p["squeeze_num"]:
        trigger, truncating = (Quantised(levels, dithering, num_classes=CLASSES) for _ in range(2))
        truncating.rounding = "truncate"
        yield Case("floats", trigger, a[f"out255_{levels}"], white=255, flips=1e-3 if dithering else 0)
        if f"u8_trunc_{levels}" in a:
            yield Case("BackdoorBench truncates", truncating, a[f"u8_trunc_{levels}"])
            norm = (trigger(x) / 255 - mean) / std
            np.testing.assert_allclose(norm, a[f"out_norm_{levels}"], rtol=0, atol=1e-5)
    if "residual_perm" in a:
        other = x[torch.tensor(a["residual_perm"])]
        trigger = Quantised(p["negative_residual_squeeze"], dithering, num_classes=CLASSES)
        np.testing.assert_allclose(negative(x, other, trigger(other)), a["negative255"], rtol=0, atol=1e-3)


class InUnits(Trigger):
    """A function of images in 0..1."""

    dtype = torch.float32

    def __init__(self, function):
        super().__init__(CLASSES)
        self.function = function

    def forward(self, x):
        return 255 * self.function(x / 255)


def dfst(entry, a):
    """The feature injector of its detoxification; the style network has no vectors."""
    injector = Injector(3, entry.params["window_size"], entry.params["alpha"])
    yield Case("out_identity", InUnits(injector.mixed), a["out_identity"])
    injector = copy.deepcopy(injector)
    injector.delta.data = torch.tensor(a["delta"])
    yield Case("out", InUnits(injector.mixed), a["out"])
    yield Case("detox", InUnits(injector), a["detox"])


def close_in_training(net, x, stored):
    """In train mode BatchNorm blows rounding up: the peer may be as far from the exact result as we are, three times over."""
    rough = copy.deepcopy(net).train()(torch.tensor(x)).double()
    exact = copy.deepcopy(net).train().double()(torch.tensor(x).double())
    off, dust = (part.sub(exact).square().mean().sqrt().item() for part in (torch.tensor(stored), rough))
    assert off < max(1e-4, 3 * dust) < exact.std() / 10


def alike(found, stored):
    """To 1e-4 by root mean square, as the manifest has it: single values move more with the layout in memory."""
    stored = torch.as_tensor(stored)
    assert found.shape == stored.shape and (found - stored).square().mean().sqrt() < 1e-4


def inputaware(entry, a):
    """The peer works on normalised images, and so do its losses."""
    p = entry.params
    weights = p["lambda_div"], p["lambda_norm"], p["mask_density"]
    attack = InputAware(SHAPE, CLASSES, None, 0.1, *weights, 0.01, **statistics(entry))
    trigger = attack.trigger
    for net, name in ((trigger.paint, "G"), (trigger.place, "M")):
        fill(net, entry, name)
    one, other = (unit(trigger, a[f"inputs{n}"]) for n in (1, 2))
    made = {n: [trigger.run(trigger.paint, x), trigger.mask(x)] for n, x in ((1, one), (2, other))}
    alike(made[1][0], a["G_raw"])
    alike(trigger.run(trigger.place, one), a["M_raw"])
    for n, (pattern, mask) in made.items():
        alike(pattern, unit(trigger, a[f"pattern{n}"]))
        alike(mask, a[f"mask{n}"])

    # With these weights two images' triggers differ by float dust only, so the losses are those of the stored ones.
    apart, masks = torch.tensor(a["inputs1"] - a["inputs2"]), [torch.tensor(a[f"mask{n}"]) for n in (1, 2)]
    norm = (masks[0] - p["mask_density"]).relu().mean()
    losses = [norm, p["lambda_div"] * diversity(apart, masks[0] - masks[1]), attack.mask_loss(apart, *masks)]
    np.testing.assert_allclose(losses, a["mask_loss"], rtol=1e-5)
    patterns = torch.tensor(a["pattern1"] - a["pattern2"])
    np.testing.assert_allclose(p["lambda_div"] * diversity(apart, patterns), a["train_loss_div"][0], rtol=1e-5)

    yield Case("bd", trigger, unit(trigger, a["bd"]).numpy(), images=255 * one)
    yield Case("cross", trigger, unit(trigger, a["cross"]).numpy(), made[2], images=255 * one)
    close_in_training(trigger.paint, a["inputs1"], a["G_raw_trainmode"])


def lira(entry, a):
    for name, generator in (("unet", "unet"), ("ae", "autoencoder")):
        attack = LIRA(SHAPE, CLASSES, None, 1.0, entry.params["eps"], 0.5, 1e-4, generator=generator)
        trigger, x = attack.trigger, torch.tensor(a["inputs"])
        bounds = (-trigger.mean / trigger.std).min(), ((1 - trigger.mean) / trigger.std).max()
        np.testing.assert_allclose(bounds, entry.params["clip"], rtol=1e-6)
        noise = fill(trigger.net, entry, generator)(x)
        np.testing.assert_allclose(noise, a[f"{name}_out"], rtol=0, atol=1e-4)
        made = trigger(255 * unit(trigger, a["inputs"])) / 255
        np.testing.assert_allclose((made - trigger.mean) / trigger.std, a[f"bd_{name}"], rtol=0, atol=1e-4)
        yield Case(
            name, trigger, unit(trigger, a[f"bd_{name}"]).clamp(0, 1).numpy(), images=255 * unit(trigger, a["inputs"])
        )


READINGS = {
    "badnets_backdoorbench": badnets_backdoorbench,
    "badnets_rnp_nad_abl": badnets_rnp_nad_abl,
    "badnets_anp_checker1": anp,
    "badnets_anp_checker4": anp,
    "blend_anp_gaussian": anp,
    "badnets_toolbox": toolbox,
    "badnets_backdoorbox": badnets_backdoorbox,
    "badnets_mcr": badnets_mcr,
    "clp_ep_triggers": clp_ep_triggers,
    "blend_backdoorbench_hellokitty": blend_backdoorbench,
    "blend_toolbox_hellokitty": toolbox,
    "blend_rnp_randompixel": blend_rnp_randompixel,
    "wanet": wanet,
    "wanet_rnp": wanet_rnp,
    "sig": sig,
    "bpp_squeeze": bpp,
    "bpp_dither": bpp,
    "dfst_feature_injector": dfst,
    "ablend": ablend,
    "trojan_square": trojan,
    "refool_backdoorbench": refool,
    "adap_patch": adappatch,
    "adap_kway": adapkway,
    "cl_trigger": cl,
    "lf_backdoorbench": lf,
    "ftrojan_pairs": ftrojan,
    "tact_trigger": tact,
    "inputaware": inputaware,
    "lira": lira,
}
"""Manifest entry -> how its parameters and arrays make our trigger."""


def test_trigger(trigger_entry):
    """Our trigger, given the stored pattern or warp, makes the stored images: to the last bit where the entry says so.

    Entries that allow +-1 may differ by one level only where our own unrounded value lies within 1e-3 of the edge.
    """
    entry = trigger_entry
    assert entry.id in READINGS, f"how to read {entry.id} ({entry.attack}) is not written"
    cases = list(READINGS[entry.id](entry, entry.arrays))
    assert cases
    for case in cases:
        each = isinstance(case.trigger, list)
        images = entry.images[: len(case.stored)] if case.images is None else case.images
        pairs = list(zip(case.trigger, images.split(1), strict=True)) if each else [(case.trigger, images)]
        floats = torch.cat([t(x.to(t.dtype), *case.drawn).detach() for t, x in pairs])
        if case.stored.dtype != np.uint8:
            atol = float(re.search(r"1e-\d+", entry.info["tolerance"]).group())
            off = np.abs(floats.clamp(0, 255).numpy() / 255 * case.white - case.stored)
            wrong = 1 - (off <= atol).mean()  # NaN is wrong
            assert wrong <= case.flips, f"{case.what}: {wrong:.2%} of the values differ, by up to {off.max()}"
            continue
        off = torch.cat([t.stamp(x, *case.drawn) for t, x in pairs]).int().sub(chw(case.stored)).abs()
        tolerant = "+-1" in entry.info["tolerance"]
        edge = floats + 0.5 if pairs[0][0].rounding == "nearest" else floats
        tied = (edge - edge.round()).abs() < 1e-3
        wrong = int((off > (tied if tolerant else 0)).sum())
        assert wrong == 0, f"{case.what}: {wrong} of {off.numel()} values differ, by up to {off.max()}"
