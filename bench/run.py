"""The bench, on one page: compose -> data -> load or train the backdoor -> repair -> evaluate -> record.

python bench/run.py attack=badnets defense=clp                       one cell
python bench/run.py -m attack=badnets,blend defense=anp,rnp,clp      a sweep
python bench/run.py --help                                           what can be chosen
"""

import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra.plugins.sweeper
from hydra._internal.config_loader_impl import ConfigLoaderImpl, ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from analysis import fingerprints
from bench import cell, choices, cli, config, sweep, trust
from bench.turn import Busy, turn

log = logging.getLogger(__name__)
build, compose = partial(instantiate, _convert_="all"), ConfigLoaderImpl.load_configuration


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> dict[str, str]:
    """One cell: passed over if it is finished, else run; what goes wrong is said in a sentence and kept in its folder.

    A failure is handed back, not raised: no launcher stops a sweep's other cells for it, nor does Hydra print its own line."""
    folder, job = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get()
    note = {"name": cli.name(job.runtime.choices, cfg.seed), "folder": str(folder)}
    settings = plain(cfg)
    wanted = ["purified.safetensors"] if config.saves(settings) else []
    try:
        if done := cell.finished(folder, wanted, settings["dataset"], config.run_id(settings)):
            config.check_own(settings)
            log.info("done already: %s%s", cli.one_cell(done), cli.since(fingerprints.suspect(done), folder))
            return note | {"state": "passed"}
        with cell.failures(folder, settings["retry"]), turn(folder, "running this cell"):
            config.check(settings)
            config.check_workers(settings["workers"], job.runtime.choices["launcher"])
            result = cell.read(folder, True, wanted) or run(cfg, settings, folder, job.runtime.choices)
    except Busy:
        return note | {"state": "put off"}
    except Exception as error:
        return note | cli.failure(error, alone=job.mode == RunMode.RUN)
    log.info(cli.one_cell(result))
    if job.mode == RunMode.RUN:
        cli.show(result, folder)
    return note | {"state": "done"}


def run(cfg: DictConfig, settings: dict, folder: Path, names: Mapping) -> dict:
    """The pipeline. `settings`: cfg as plain data; `names`: what was chosen for each config group. Returns the record."""
    from bench import dense, machine, purified, record  # these take seconds to load; a finished cell needs none of them
    from bench.scene import repair, scene

    # compose: every part that can be wrong is built before anything is trained
    identity = {key: names[key] for key in ("dataset", "model", "attack", "defense")} | cell.stamp(settings["dataset"])
    identity |= {"seed": cfg.seed, "id": config.run_id(settings), "fingerprints": fingerprints.stated(settings)}
    defense, tracker, check = (build(cfg.get(part)) for part in ("defense", "tracker", "check"))

    # data; load or train the backdoor, and the clean model that it is compared with
    stage = scene(settings, identity, build, defense)
    before, backdoor = stage.before, stage.backdoor

    # repair, and evaluate every model it offers; keep the one at the operating point where there is more to do with it
    if check:
        check.fits(stage)
    dense.fits(backdoor.model, stage.data.shape, cfg.make_dense)
    made = repair(stage, defense, keep=bool(check or cfg.make_dense or config.saves(settings)))

    # record
    result = identity | {"data": stage.data.digest, "backdoor": backdoor.name, "needs": defense.needs}
    result |= record.before(before, made.select_before) | record.gate(names["attack"], before, stage.clean, cfg.gate)
    result |= record.points(made.rows, before, made.select_before, cfg.selection)
    result |= made.images | backdoor.card["poison"] | {"seconds_backdoor": backdoor.card["made"]["seconds"]}
    result |= record.cost(made.scores, made.seconds, made.total) | machine.environment(stage.device)
    result |= record.origin(stage, identity["fingerprints"])
    if made.chosen:
        result |= purified.leave(folder, made.chosen, stage, cfg.make_dense, config.saves(settings))
        result |= check.columns(stage, made.chosen) if check else {}
    record.write(folder, result, made.rows, made.scores)
    tracker.log(folder, settings, result, made.rows, made.scores)
    return result


def composed(*words: str) -> dict:
    """The settings that these words make on the command line, as plain data; for `bench.api`, in a program of Hydra's too."""
    theirs, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize(config_path="../conf", version_base="1.3"):
            make = partial(hydra.compose, "config", return_hydra_config=True)
            return plain(choices.compose(make, words, GlobalHydra.instance().config_loader().get_group_options))
    finally:
        GlobalHydra.instance().hydra = theirs


def plain(cfg: DictConfig) -> dict:
    """The composed settings as plain data, without Hydra's own node (which refers back to them)."""
    nodes = {key: cfg[key] for key in cfg if key != "hydra"}
    found = {str(k): OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}
    config.settle(found, partial(OmegaConf.update, cfg))  # in cfg too: Hydra writes that down once the cell is named
    return found


def guarded(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], **more: Any) -> DictConfig:
    """What Hydra composes for the sweep and for each of its cells is looked at before anything that it names is built."""
    cfg = choices.compose(partial(compose, self, config_name, **more), overrides, self.get_group_options)
    config.check_composed(OmegaConf.to_container(cfg), sys.argv[1:])  # type: ignore[arg-type]
    return cfg


def cells(root: DictConfig) -> int | None:
    """How many cells Hydra's own sweeper makes of the command line and the experiment; None of another sweeper."""
    sweeper = root.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return None
    words = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *root.hydra.overrides.task]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return sum(map(len, BasicSweeper.split_arguments(parser.parse_overrides(words), None)))


if __name__ == "__main__":
    OmegaConf.register_new_resolver("run_id", lambda *, _root_: config.run_id(plain(_root_)))
    OmegaConf.register_new_resolver("cells", lambda *, _root_: cells(_root_))
    OmegaConf.register_new_resolver("shared_cores", sweep.shared_cores)
    trust.forbid(OmegaConf.register_new_resolver)
    ConfigLoaderImpl.load_configuration = guarded  # type: ignore[assignment, method-assign]
    sweep.compose_once(hydra.plugins.sweeper.Sweeper, ConfigLoaderImpl)
    sweep.read_once(ConfigRepository)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors on, so that `explain` can say them in one sentence
    cli.stoppable()
    trouble: BaseException | None = None
    sys.argv = cli.words(sys.argv)
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        trouble = error
    sys.exit(cli.close(trouble, sweep.Sweep.now.close() if sweep.Sweep.now else []))
