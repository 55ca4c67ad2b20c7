"""Every published table of conf/experiment/ composes into settings that the bench takes, for all its attacks and defences."""

import numpy as np
import pytest
from cells import ROOT, build, choices, composed
from omegaconf import OmegaConf

from bench import config, machine
from bench.parts import make
from bench.plan import Plan
from bench.pruning import MaskBelow, OneIn, Sweep, ZScore
from bench.run import plain


def cells() -> list[tuple[str, str, str, str]]:
    """(experiment, scale, attack, defence): all its attacks on two cores, all its defences as published."""
    found = []
    for experiment in choices("experiment"):
        file = OmegaConf.load(ROOT / "conf/experiment" / f"{experiment}.yaml")
        params = OmegaConf.select(file, "hydra.sweeper.params") or {"attack": "badnets", "defense": "rnp"}
        attacks, defenses = params["attack"].split(","), params["defense"].split(",")
        found += [(experiment, "cpu", attack, defenses[-1]) for attack in attacks]
        found += [(experiment, "full", attacks[0], defense) for defense in defenses]
    return found


@pytest.mark.parametrize(("experiment", "scale", "attack", "defense"), cells())
def test_a_published_table_composes(experiment, scale, attack, defense):
    chosen = plain(composed(f"experiment={experiment}", f"scale={scale}", f"attack={attack}", f"defense={defense}"))
    config.check(chosen)
    assert chosen["dataset"]["name"] == "CIFAR10"
    assert chosen["model"]["width"] == (16 if scale == "cpu" else 64)
    assert (chosen["train"]["epochs"] == 20) == (scale == "cpu")
    assert (chosen["selection"]["stop"] is not None) == (scale == "cpu")
    assert chosen["clean"]["tune"] in (500, 2500, 5000)


def test_an_experiment_may_say_more_about_one_attack_or_defence():
    table = "experiment=backdoorbench_cifar10"
    assert plain(composed(table, "attack=badnets"))["train"]["schedule"] == "cosine"
    assert plain(composed(table, "attack=wanet"))["train"]["schedule"] == "multistep"
    assert plain(composed(table, "defense=anp"))["defense"]["mask"]["lr"] == 0.01
    assert plain(composed("experiment=rnp_table1", "defense=anp"))["defense"]["mask"]["lr"] == 0.2
    assert plain(composed(table, "attack=inputaware"))["attack"]["zero_grad"] is False
    noise = plain(composed("experiment=ep_bnp", "attack=blend", "seed=7"))["attack"]
    assert (noise["pattern"], noise["pattern_seed"]) == ("sigmoid", 7)
    bpp = plain(composed("experiment=fmp_table1", "attack=bpp"))  # of the settings that it builds on, too
    assert (bpp["attack"]["negative_rate"], bpp["train"]["schedule"]) == (0.1, "multistep")
    assert plain(composed("experiment=fmp_table1", "defense=anp"))["defense"]["mask"]["lr"] == 0.01
    small = plain(composed("experiment=rnp_table1", "scale=cpu", "attack=lira"))
    assert (small["attack"]["generator"], small["model"]["width"]) == ("autoencoder", 16)
    quick = plain(composed("experiment=rnp_table1", "scale=cpu", "defense=anp"))["defense"]["mask"]
    assert (quick["precision"], quick["iterations"]) == (machine.precision("auto"), 2000)


@pytest.mark.parametrize(
    ("table", "attack", "poisoned"),
    [
        ("anp_table1", "badnets", 2025),  # of 45,000 images: a share of those of other classes
        ("anp_table1", "blend", 2025),
        ("anp_table1", "cl", 3600),  # four fifths of a class
        ("rnp_table1", "badnets", 5000),
        ("rnp_table1", "sig", 500),  # a tenth of a class
        ("rnp_table1", "cl", 500),
        ("backdoorbench_cifar10", "cl", 5000),
    ],
)
def test_a_published_table_poisons_as_many_images_as_its_code(table, attack, poisoned):
    """Of the training images that its code leaves: 45,000 in ANP, all 50,000 in RNP and BackdoorBench."""
    settings = plain(composed(f"experiment={table}", f"attack={attack}"))
    labels = np.arange(50_000 - round(50_000 * settings["dataset"]["heldout"])) % 10
    made = make(settings["attack"], shape=(3, 32, 32), num_classes=10)
    assert len(made.split(labels, np.random.default_rng(0))[0]) == poisoned


@pytest.mark.parametrize(
    ("flags", "fastest"), [("avx2 avx512f", "fp32"), ("avx512f avx512_bf16", "bf16"), ("asimd bf16", "bf16")]
)
def test_bfloat16_only_where_the_processor_computes_in_it(flags, fastest, monkeypatch):
    """Elsewhere it is imitated, ten times slower. What was typed is done, and what was chosen is part of the identity."""
    monkeypatch.setattr(machine, "flags", lambda: set(flags.split()))
    table = ["experiment=rnp_table1", "scale=cpu", "defense=anp", "device=cpu"]
    chosen = plain(composed(*table))
    assert (chosen["train"]["precision"], chosen["defense"]["mask"]["precision"]) == (fastest, fastest)
    typed = plain(composed(*table, f"train.precision={fastest}", f"defense.mask.precision={fastest}"))
    assert config.run_id(typed) == config.run_id(chosen)
    other = plain(composed(*table, "train.precision=bf16" if fastest == "fp32" else "train.precision=fp32"))
    assert other["train"]["precision"] != fastest and config.run_id(other) != config.run_id(chosen)


# -- the presets -------------------------------------------------------------------------------------------------------
TWENTIETHS = [step / 20 for step in range(19)]
TUNING = {"batch_size": 256, "lr": 0.01, "momentum": 0.9}
FT = Plan(epochs=100, weight_decay=5e-4, schedule="cosine", **TUNING)
IBM = {"lr": 0.01, "momentum": 0.9, "batch_size": 128, "schedule": "half_linear"}
OFFICIAL = {
    "anp": {"eps": 0.4, "steps": 1, "alpha": 0.2, "mask": Plan(iterations=2000, batch_size=128, lr=0.2, momentum=0.9),
            "rule": MaskBelow(0.2), "sweep": Sweep("at", TWENTIETHS), "zeroes": ("weight",)},
    "rnp": {"stop_acc": 0.2, "alpha": 0.2, "recover": Plan(epochs=20, batch_size=128, lr=0.2, momentum=0.9),
            "unlearn": Plan(epochs=21, batch_size=128, lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="multistep",
                            milestones=[10, 20]),
            "rule": MaskBelow(0.3), "sweep": Sweep("at", TWENTIETHS), "zeroes": ("weight",)},
    "clp": {"rule": ZScore(3.0), "zeroes": ("weight", "bias")},
    "ep": {"width": 0.01, "rule": ZScore(3.0), "zeroes": ("weight",)},
    "bnp": {"rule": ZScore(3.0), "zeroes": ("weight",)},
    "fmp": {"images": 32, "alpha": 0.02, "eps": 0.06, "rule": OneIn(64), "zeroes": ("weight",),
            "then": Plan(epochs=10, schedule="cosine", min_lr=1e-4, **TUNING)},
    "fp": {"then": FT},
    "ft": {"tune": FT},
    "ftsam": {"tune": FT, "rho": 2.0, "smoothing": 0.1},
    "mcr": {"t": 0.1, "decay": 1e-4, "tune": FT, "curve": Plan(epochs=100, **IBM)},
    "nad": {"betas": [500, 1000, 1000], "p": 2.0},
    "ibau": {"lr": 10.0, "decay": 0.001, "share": 0.01, "steps": 5, "rate": 0.1, "space": "normalised",
             "unlearn": Plan(epochs=5, batch_size=256, lr=1e-4, optimizer="adam", amsgrad=True, augment=False)},
}  # fmt: skip
"""What the papers' code has for CIFAR-10, as the docstring of each defence says where from."""


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_preset_is_what_the_official_code_has(name):
    made = vars(build(OmegaConf.load(ROOT / f"conf/defense/{name}.yaml")))
    assert {key: made[key] for key in OFFICIAL[name]} == OFFICIAL[name]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("badnets", {"poison_rate": 0.1, "alpha": 1.0}),
        ("blend", {"poison_rate": 0.1, "alpha": 0.2}),
        ("sig", {"delta": 40, "f": 6, "form": "sine", "victims": "target"}),
        ("cl", {"eps": 8, "step": 1.5, "steps": 100, "norm": "linf"}),
        (
            "trojan",
            {"neurons": 2, "goal": 100, "bound": 0.3 * 255, "step": 0.1 * 255, "steps": 1000, "tolerance": 1e-3},
        ),
        ("ablend", {"poison_rate": 0.003, "cover_rate": 0.003, "pieces": 16, "mask_rate": 0.5, "test_alpha": 0.2}),
        ("wanet", {"poison_rate": 0.1, "noise_ratio": 2, "k": 4, "s": 0.5, "grid_rescale": 1.0}),
        ("inputaware", {"poison_rate": 0.1, "lambda_div": 1, "lambda_norm": 100, "mask_density": 0.032}),
        ("lira", {"eps": 0.1, "inject_eps": 0.01, "alpha": 0.5}),
    ],
)
def test_the_preset_of_an_attack_too(name, settings):
    made = OmegaConf.load(ROOT / f"conf/attack/{name}.yaml")
    assert {key: made[key] for key in settings} == pytest.approx(settings)
