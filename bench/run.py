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

    from bench import curve, machine, record
    from bench.attacks.base import draw_mix
    from bench.data import stream
    from bench.metrics import Exam, Metrics, accuracy
    from bench.victim import Bench

    # compose: every part that can be wrong is built before anything is trained
    identity = {key: names[key] for key in ("dataset", "model", "attack", "defense")}
    identity |= {"seed": cfg.seed, "id": config.run_id(settings)}
    device = machine.device(cfg.device, cfg.threads)
    plan, defense, tracker = build(cfg.train), build(cfg.defense), build(cfg.tracker)

    # data
    data = build(cfg.dataset).to(device)
    drawn = {key: cfg.clean[key] for key in ("tune", "select", "source", "balance")}
    defender, select = data.defender(**drawn, seed=stream(cfg.seed, "defender"), needs=defense.needs)
    if defense.needs == "poisoned":
        draw_mix(len(data.train), cfg.clean.mix, cfg.seed)
    attack = build(cfg.attack, shape=data.shape, num_classes=data.num_classes)
    attack.check(data.train)

    # load or train the backdoor, and the clean model that it is compared with
    facts = {"num_classes": data.num_classes, "channels": data.shape[0], "size": data.shape[1]}
    network = partial(build, cfg.model, **config.asked_for(cfg.model._target_, facts))
    workshop = Bench(data, network, plan, settings, identity, device)
    clean = workshop.clean() if attack.needs_clean or cfg.gate.max_drop is not None else None
    backdoor = workshop.victim(attack, clean)
    exam = Exam.of(data.test, backdoor.trigger)
    before, select_before = Metrics(**backdoor.card["metrics"]), accuracy(backdoor.model, select)

    # repair: the defence sees the model and its own images, nothing else; one that cheats says so in what it needs
    if defense.needs == "poisoned":
        defender = replace(defender, poisoned=attack.mix(data.train, cfg.clean.mix, stream(cfg.seed, "poison")))
    elif defense.needs == "trigger":
        defender = replace(defender, trigger=backdoor.trigger)
    torch.manual_seed(stream(cfg.seed, "defense"))
    machine.forget_peak(device)
    started = time.perf_counter()
    repaired = defense.repair(backdoor.model, defender)
    seconds = time.perf_counter() - started

    # evaluate every model it offers
    rows = curve.trace(repaired, exam, select, before, select_before, cfg.selection.stop)

    # record
    result = identity | {"data": data.digest, "backdoor": backdoor.name, "needs": defense.needs}
    result |= record.before(before, select_before) | record.gate(names["attack"], before, clean, cfg.gate)
    result |= record.points(rows, before, select_before, cfg.selection)
    result |= {"clean_tune": len(defender.clean), "clean_select": len(select), "mix": len(defender.poisoned or ())}
    result |= backdoor.card["poison"] | {"seconds_backdoor": backdoor.card["made"]["seconds"]}
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
