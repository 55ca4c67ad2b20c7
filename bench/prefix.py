"""Looks at one model again and again while it is pruned, computing only what comes after the first layer that changed.

torch.fx writes the network down as a list of steps. While images go through it, what is alive right before some of its
layers is kept. The next time, the network goes on from the last such place before which no parameter and no buffer has
another value than it had then: the same layers on the same tensors as in a whole pass, so the same numbers to the last bit.
A network that fx cannot write down, or whose steps do not answer as the network itself, is looked at in whole passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.metrics import batches, classes, predict

log = logging.getLogger(__name__)

CPU_LIMIT = 2**30
"""Bytes of activations that are kept on the CPU. On a GPU it is a quarter of what is free when the first are."""
TRIAL = 4
"""Images on which the steps are held against the network."""

Alive = dict[fx.Node, Any]
"""What later steps need of earlier ones."""


class Prefixes:
    """Looks at a defence's candidates, one after the other. Keeps activations of the last model met, no others."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit`: bytes of activations that may be kept; None: as `CPU_LIMIT` says."""
        self.limit = limit
        self.model: nn.Module | None = None
        self.steps: Steps | None = None
        self.looks: dict[int, Look] = {}

    def of(self, model: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
        """What tells this model's classes, as `bench.metrics.predict` does. A model met once may not come again, so
        activations are kept from the second time on."""
        if model is not self.model:
            self.model, self.steps, self.looks = model, None, {}
            return predict
        return self.predict

    @torch.no_grad()
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Classes of uint8 images [N, C, H, W], as `bench.metrics.predict` finds them: int64 [N]."""
        model.eval()
        if self.steps is None:
            self.steps = Steps(model, next(batches(x[:TRIAL])))
        if not self.steps.sound:
            return predict(model, x)
        if id(x) not in self.looks:
            self.looks[id(x)] = Look(self.steps, x, self._left(x.device))
        return self.looks[id(x)].classes()

    def _left(self, device: torch.device) -> int:
        if self.limit is None:
            self.limit = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CPU_LIMIT
        return self.limit - sum(look.size for look in self.looks.values())


class Steps(fx.Interpreter):
    """A network in eval mode as a list of steps. `sound`: whether they can be trusted; `first_reader`: parameter or buffer ->
    the first step that reads it; `alive`: place before which the network can be cut -> bytes alive there, by storage."""

    def __init__(self, model: nn.Module, trial: Tensor) -> None:
        """`trial`: some images in [0, 1]. Never fails; says in the log what it cannot follow."""
        self.model, self.sound = model, False
        self.first_reader: dict[str, int] = {}
        self.alive: dict[int, dict[int, int]] = {}
        if model._forward_hooks or model._forward_pre_hooks_with_kwargs:
            return
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:  # fx raises whatever the network's own code does when it is run without images
            log.debug("whole passes: fx cannot follow %s: %s", type(model).__name__, error)
            return
        super().__init__(model, graph=graph)
        self.nodes = list(graph.nodes)
        place = {node: number for number, node in enumerate(self.nodes)}
        self.last_reader = {node: max((place[user] for user in node.users), default=-1) for node in self.nodes}
        for name in state(model):
            # One that no step names may be read anywhere: in a hook before the first, as pixel_mean is.
            self.first_reader[name] = min((p for node, p in place.items() if reads(node, name)), default=0)
        logits, kept = self.walk(trial, keep=set(self.first_reader.values()) - {0})
        self.sound = logits.equal(model(trial))
        for number, (env, versions) in kept.items():
            now = [t._version for t in env.values() if isinstance(t, Tensor)]
            if versions == now:  # else a later step wrote into one
                self.alive[number] = storages(env.values())

    def walk(
        self, x: Tensor, start: int = 0, alive: Mapping[fx.Node, Any] | None = None, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, tuple[Alive, list[int]]]]:
        """What the network makes of `x`, going on at step `start` with what was alive there; and, for the places in `keep`
        from there on, what is alive, with the versions of those tensors."""
        for hook in self.model._forward_pre_hooks.values() if start == 0 else ():
            changed = hook(self.model, (x,))
            x = x if changed is None else changed[0] if isinstance(changed, tuple) else changed
        self.env, self.args_iter = dict(alive or {}), iter((x,))
        kept = {}
        for number, node in enumerate(self.nodes[start:], start):
            if number in keep:
                env = {n: value for n, value in self.env.items() if self.last_reader[n] >= number}
                kept[number] = env, [t._version for t in env.values() if isinstance(t, Tensor)]
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, ()):
                del self.env[dead]
        logits, self.env = self.env[node], {}
        return logits, kept


class Look:
    """One set of images and what is kept of its passes through one network. `size`: bytes that are kept, at most."""

    def __init__(self, steps: Steps, x: Tensor, limit: int) -> None:
        self.steps, self.x, self.size = steps, x, 0
        self.places: set[int] = set()
        self.known: dict[str, Tensor] = {}
        self.kept: list[dict[int, Alive]] = []
        self.found = torch.empty(0)
        counted: set[int] = set()
        for place in sorted(steps.alive, reverse=True):  # the later ones save more, and are smaller
            new = {key: size for key, size in steps.alive[place].items() if key not in counted}
            more = -(-sum(new.values()) * len(x) // min(TRIAL, len(x)))
            if self.size + more <= limit:
                self.places.add(place)
                self.size += more
                counted |= new.keys()

    def classes(self) -> Tensor:
        start = self._start()
        if start == len(self.steps.nodes):
            return self.found
        if start == 0:
            self.kept = []
        self.known = {}  # so that nothing is taken from a pass that was broken off
        parts = []
        if start == 0:
            for x in batches(self.x):
                logits, new = self.steps.walk(x, keep=self.places)
                self.kept.append({place: env for place, (env, _) in new.items()})
                parts.append(classes(logits))
        else:
            for old in self.kept:
                logits, new = self.steps.walk(self.x, start, old[start], self.places)
                old |= {place: env for place, (env, _) in new.items()}
                parts.append(classes(logits))
        self.known = {name: tensor.detach().clone() for name, tensor in state(self.steps.model).items()}
        self.found = torch.cat(parts)
        return self.found

    def _start(self) -> int:
        """The step to go on from; behind the last one if nothing changed."""
        now = state(self.steps.model)
        if self.known.keys() != now.keys():
            return 0
        changed = torch.stack([(now[name] != old).any() for name, old in self.known.items()]).tolist()
        readers = [self.steps.first_reader[name] for name, other in zip(self.known, changed, strict=True) if other]
        if not readers:
            return len(self.steps.nodes)
        return max((place for place in self.places if place <= min(readers)), default=0)


def state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that go by two names by both."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def reads(node: fx.Node, name: str) -> bool:
    """Whether a step reads the parameter or buffer of that name."""
    return node.op in ("call_module", "get_attr") and f"{name}.".startswith(f"{node.target}.")


def storages(values: Collection[Any]) -> dict[int, int]:
    """Address -> bytes of the memory behind the tensors among `values`; parameters are there anyway."""
    memory = [v.untyped_storage() for v in values if isinstance(v, Tensor) and not isinstance(v, nn.Parameter)]
    return {part.data_ptr(): part.nbytes() for part in memory}
