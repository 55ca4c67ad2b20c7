"""torch.compile around a network that is being trained; where that does not work, one line in the log and the network itself."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
PASSES = {False: 1, True: 3}
"""How often it is tried, by whether on a GPU: a CUDA graph is recorded the second time and replayed the third."""


def compiled(model: nn.Module, x: Tensor, mixed: torch.autocast) -> nn.Module:
    """`model` compiled for training on batches like `x` (in [0, 1]), with CUDA graphs on a GPU; `model` if that fails.

    It is tried on `x` first, forward and backward under `mixed`, which leaves parameters, buffers, gradients and the global
    generators as they were. Hooks that are put on layers afterwards may not run. Call `new_step` before each step.
    """
    mode = "reduce-overhead" if x.device.type == "cuda" else "default"
    buffers = [buffer.clone() for buffer in model.buffers()]
    gradients = [parameter.grad for parameter in model.parameters()]
    devices = [x.device] if x.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            made: Callable[[Tensor], Tensor] = torch.compile(model, mode=mode, dynamic=False)
            for _ in range(PASSES[x.device.type == "cuda"]):
                new_step()
                with mixed:
                    loss = made(x).float().square().mean()
                if loss.requires_grad:
                    loss.backward()
        found = made
    except Exception as error:  # compilers fail in all ways: no C++ compiler, an operation not known, no memory
        log.warning("train.compile: going on without, because %s", reason(error))
        found = model
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    return found  # type: ignore[return-value]


def new_step() -> None:
    """Lets CUDA graphs use again the memory of the last step's results."""
    torch.compiler.cudagraph_mark_step_begin()


def reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no more is said'])[0]}"
