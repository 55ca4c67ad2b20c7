"""Settings that no cell can be run with are one sentence, before anything is trained; all that conf/ says is taken."""

import pytest
from cells import build, choices, composed

from bench import choices as chosen
from bench import cli, config
from bench.errors import UserError
from bench.run import composed as api_composed
from bench.run import plain

GROUPS = ("attack", "check", "dataset", "defense", "model", "tracker", "train")


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_conf_says_is_taken(group):
    for name in choices(group):
        more = ["model.name=x"] if name in ("timm", "torchvision") else []
        config.check(plain(composed(f"{group}={name}", *more)))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("selection.max_drop=null", "selection.max_drop=null must be a number"),
        ("clean.tune=null", "clean.tune=null must be a whole number"),
        ("gate.min_asr=null", "gate.min_asr=null must be a number"),
        ("attack.pattern=null", "attack.pattern=null must be a word"),
        ("attack.poison_rate=null", "attack.poison_rate=null must be a number"),
        ("train.lr=null", "train.lr=null must be a number"),
        ("dataset.augment=null", "dataset.augment=null must be given a value"),
        ("dataset.mean=0.5", "dataset.mean=0.5 must be a list"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("gate.max_drop=-1", "gate.max_drop=-1 must be at least 0"),
        ("threads=0", "threads=0 must be at least 1"),
        ("device=gpu", "device=gpu cannot be used here"),
        ("train.lr=inf", "train.lr=inf must be finite"),
        ("dataset.std=[1,1,nan]", r"dataset.std=\[1, 1, nan\] must be finite"),
        ("clean=null", "clean=null must be settings"),
        ("gate.min_asr=-5", "gate.min_asr=-5 must be at least 0"),
        ("clean.mix=-5", "clean.mix=-5 must be at least 0"),
        ("dataset.augment.shift=-1", "dataset.augment.shift=-1 must be at least 0"),
        ("~selection.stop", "selection.stop is missing"),
        ("allow=5", "allow=5 must be names of packages"),
    ],
)
def test_what_is_null_not_finite_or_out_of_range_is_said_at_once(word, says):
    with pytest.raises(UserError, match=says):
        config.check(plain(composed(word)))


@pytest.mark.parametrize(
    ("part", "words", "says"),
    [
        ("defense", ["defense=clp", "defense.pairing=typo"], "pairing=typo is unknown"),
        ("defense", ["defense=fmp", "defense.pairing=typo"], "pairing=typo is unknown"),
        ("defense", ["defense=anp", "defense.sweep.points=[0.1,2]"], "must be whole numbers of channels"),
        ("defense", ["defense=anp", "~preset@defense", "defense.sweep.points=[a]"], "must be numbers"),
        ("train", ["+train.iterations=0"], "iterations must be at least 1"),
        ("train", ["train.weight_decay=-1"], "weight_decay not negative"),
    ],
)
def test_what_is_wrong_is_said_when_a_part_is_built(part, words, says):
    """That is before anything is trained."""
    with pytest.raises(Exception, match="Error in call") as error:
        build(composed(*words)[part])
    assert says in cli.sentence(error.value)


@pytest.mark.parametrize(
    "word", ["selection.stop", "gate.max_drop", "threads", "checkpoint", "save", "train.iterations"]
)
def test_what_may_be_null(word):
    """As a default, a comment in conf/ or the class's own signature says."""
    config.check(plain(composed(f"{'' if word != 'train.iterations' else '+'}{word}=null")))


def test_nothing_is_a_choice_where_one_may_be_left_out():
    """`null` as in conf/config.yaml, or `none`; Hydra refuses the first with a sentence about lists."""
    bare = api_composed("defense=clp")
    for group in chosen.OPTIONAL:
        for word in (f"{group}=null", f"{group}=none", f"~{group}"):
            assert api_composed("defense=clp", word) == bare
    assert api_composed("defense=clp", "then=ft") != bare
    for word, says in (
        ("preset@defense=x", "looked up by name; ~preset@defense leaves it out"),
        ("+attack=null", "is no choice"),
    ):
        with pytest.raises(UserError, match=says):
            api_composed(word)
    with pytest.raises(UserError, match="scale=cpuu does not exist: did you mean 'cpu'"):
        api_composed("scale=cpuu")


def test_many_cells_may_be_asked_for_anywhere_in_a_command():
    assert cli.words(["run.py", "seed=2", "-m", "attack=sig"]) == ["run.py", "seed=2", "attack=sig", "-m"]
    typed = ["run.py", "-m", "dataset.root=D", "--cfg", "job", "seed=2"]
    assert cli.words(typed) == ["run.py", "dataset.root=D", "seed=2", "dataset=imagefolder", "-m", "--cfg", "job"]
