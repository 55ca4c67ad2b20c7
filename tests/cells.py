"""Composes the real config, as the command line would, and shrinks it so that tests take milliseconds."""

from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

ROOT = Path(__file__).parent.parent
build = partial(instantiate, _convert_="all")


def choices(group: str) -> list[str]:
    """All configs of a group: a new file is tested without touching any test."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def attacks() -> list[str]:
    """Those that train: the others are about a model from elsewhere."""
    return [name for name in choices("attack") if name not in ("imported", "unknown")]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*overrides])
    with open_dict(config.model) as model:  # it is no setting of a network
        del model["checkpoint"]
    return config


def shrink(node):
    """The same config with at most 2 epochs and 5 iterations wherever something is optimised."""
    for key, value in OmegaConf.to_container(node).items() if OmegaConf.is_dict(node) else ():
        if key == "epochs" and value > 2:
            node[key] = 2
        elif key == "iterations" and value is not None and value > 5:
            node[key] = 5
        elif isinstance(value, dict):
            shrink(node[key])
    return node
