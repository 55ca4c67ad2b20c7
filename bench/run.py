"""The bench, on one page: compose -> data -> load or train the backdoor -> repair -> evaluate -> record.

    python bench/run.py attack=badnets defense=clp                       one cell
    python bench/run.py -m attack=badnets,blend defense=anp,rnp,clp      a sweep

`python bench/run.py --help` says what can be chosen.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bench import cell, cli, config

log = logging.getLogger(__name__)
build = partial(instantiate, _convert_="all")


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One cell: passed over if it is finished, else run; what goes wrong is said in a sentence and kept in its folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if done := cell.read(folder):
        log.info("done already: %s", cli.one_cell(done))
        return
    settings = plain(cfg)
    config.check(settings)
    with cell.failures(folder):
        result = run(cfg, settings, folder, HydraConfig.get().runtime.choices)
    log.info(cli.one_cell(result))
    if HydraConfig.get().mode == RunMode.RUN:
        cli.show(result, folder)


def run(cfg: DictConfig, settings: dict, folder: Path, names: Mapping) -> dict:
    """The pipeline. `settings`: cfg as plain data; `names`: what was chosen for each config group. Returns the record."""
    import torch  # these take seconds to load, and a finished cell needs none of them

    from bench import curve, machine, record, store
    from bench.attacks.base import Backdoor
    from bench.data import stream
    from bench.metrics import Exam, Metrics, accuracy, evaluate
    from bench.models import normalised
    from bench.training import fit

    # compose: every part that can be wrong is built before anything is trained
    identity = {key: names[key] for key in ("dataset", "model", "attack", "defense")}
    identity |= {"seed": cfg.seed, "id": config.run_id(settings)}
    device = machine.device(cfg.device, cfg.threads)
    plan, defense, tracker = build(cfg.train), build(cfg.defense), build(cfg.tracker)

    # data
    data = build(cfg.dataset).to(device)
    defender, select = data.defender(cfg.clean.tune, cfg.clean.select, stream(cfg.seed, "defender"), defense.needs)
    attack = build(cfg.attack, shape=data.shape, num_classes=data.num_classes)

    # load or train the backdoor
    torch.manual_seed(stream(cfg.seed, "init"))
    model = build(cfg.model, num_classes=data.num_classes, channels=data.shape[0])
    blank = Backdoor(normalised(model, data.mean, data.std).to(device), attack.trigger.to(device))
    material = config.backdoor_material(settings, data.digest)

    def train(new: Backdoor) -> dict:
        started = time.perf_counter()
        learn = partial(fit, plan=plan, seed=stream(cfg.seed, "training"), augment=data.augment)
        facts = attack.inject(new.model, data, learn, stream(cfg.seed, "poison"))
        metrics = vars(evaluate(new.model, Exam.of(data.test, new.trigger)))
        made = {"seconds": time.perf_counter() - started} | machine.environment(device)
        return {"metrics": metrics, "poison": facts, "made": made, "from": material}

    place = store.folder_for(cfg.runs, identity, material)
    backdoor = store.load_or_make(place, blank, train)
    exam = Exam.of(data.test, backdoor.trigger)
    before, select_before = Metrics(**backdoor.card["metrics"]), accuracy(backdoor.model, select)

    # repair: the defence sees the model and its own images, nothing else
    if defense.needs == "poisoned":
        defender = replace(defender, poisoned=attack.mix(data.train, cfg.clean.mix, stream(cfg.seed, "poison")))
    torch.manual_seed(stream(cfg.seed, "defense"))
    started = time.perf_counter()
    repaired = defense.repair(backdoor.model, defender)
    seconds = time.perf_counter() - started

    # evaluate every model it offers
    rows = curve.trace(repaired, exam, select, before, select_before, cfg.selection.stop)

    # record
    result = identity | {"data": data.digest, "backdoor": place.name, "needs": defense.needs}
    result |= record.before(before, select_before) | record.points(rows, before, select_before, cfg.selection)
    result |= {"clean_tune": len(defender.clean), "clean_select": len(select), "mix": len(defender.poisoned or ())}
    result |= backdoor.card["poison"]
    result |= record.cost(repaired.scores, seconds, time.perf_counter() - started) | machine.environment(device)
    record.write(folder, result, rows, repaired.scores)
    tracker.log(folder, settings, result, rows)
    return result


def plain(cfg: DictConfig) -> dict:
    """The composed settings as plain data, without Hydra's own node (which refers back to them)."""
    nodes = {key: cfg[key] for key in cfg if key != "hydra"}
    return {key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in nodes.items()}


if __name__ == "__main__":
    OmegaConf.register_new_resolver("run_id", lambda *, _root_: config.run_id(plain(_root_)))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors on, so that `explain` can say them in one sentence
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(cli.explain(error, sweep=bool({"-m", "--multirun"} & set(sys.argv))))
