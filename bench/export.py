"""Writes what others read: python -m bench.export RUN --format backdoorbench|safetensors|torch|onnx [--into DIR]

RUN is a folder of runs/: a finished cell (its repaired model at the operating point is written, and with `backdoorbench` the
backdoored one too), or a stored backdoor of runs/backdoors. docs/api.md says what is in each format.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bench import backdoorbench, config, stored
from bench.backdoorbench import weights
from bench.errors import UserError
from bench.metrics import Metrics, evaluate
from bench.purified import names, plain
from bench.scene import Scene

SMALL = 1_000_000
"""Parameters up to which an ONNX file is computed through with onnx's own reference, which takes seconds an image."""


def export(run: str | Path, form: str, into: str | Path | None = None, root: str | None = None) -> list[str]:
    """Writes the folder `into` (None: below runs/exports), which must not be there, and returns sentences about it."""
    if form not in FORMATS:
        raise UserError(f"--format {form} is unknown: use {', '.join(FORMATS)}.")
    found = stored.find(run, root)
    folder = Path(into) if into else _place(found, form)
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: choose another with --into, or remove it.")
    stage = stored.open_scene(found)
    chosen = stored.run_again(found, stage).chosen if found.record else None
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex[:16]}")
    try:
        temporary.mkdir(parents=True)
        said = FORMATS[form](temporary, folder, found, stage, chosen.model if chosen else None)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}: choose another with --into."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", *said]


def _place(found: stored.Found, form: str) -> Path:
    """Below runs/exports; for BackdoorBench under `record`, which its code looks for in the path."""
    exports = Path(found.settings["runs"], "exports")
    return exports / "record" / "_".join(found.name.parts) if form == "backdoorbench" else exports / found.name / form


def _safetensors(new: Path, to: Path, found: stored.Found, stage: Scene, repaired: nn.Module | None) -> list[str]:
    model = repaired or stage.backdoor.model
    (new / "model.safetensors").write_bytes(save(weights(model)))
    return _describe(new, found, stage, model, names(model, stage.backdoor.model))


def _torch(new: Path, to: Path, found: stored.Found, stage: Scene, repaired: nn.Module | None) -> list[str]:
    model = repaired or stage.backdoor.model
    (new / "model.pt").write_bytes(plain(weights(model)))
    return _describe(new, found, stage, model, names(model, stage.backdoor.model))


def _onnx(new: Path, to: Path, found: stored.Found, stage: Scene, repaired: nn.Module | None) -> list[str]:
    model = (repaired or stage.backdoor.model).cpu().eval().to(memory_format=torch.contiguous_format)
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UserError("--format onnx needs onnx and onnxscript: pip install 'backprune[onnx]'.") from error
    images = stage.data.test.x[:2].cpu().float() / 255
    program = torch.onnx.export(
        Whole(model).eval(), (images,), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )  # fmt: skip
    assert program is not None
    program.save(new / "model.onnx")
    onnx.checker.check_model(new / "model.onnx", full_check=True)
    with torch.no_grad():
        wanted = model(images)
    compared = _computed(new / "model.onnx", images, sum(p.numel() for p in model.parameters()))
    said = _describe(new, found, stage, model)
    if compared is None:
        return [
            *said,
            "the ONNX file passed onnx.checker; its logits were not compared (no onnxruntime, and a large network).",
        ]
    by, logits = compared
    off = (logits - wanted).abs().max().item()
    if not off <= 1e-3 * max(1.0, wanted.abs().max().item()):
        raise UserError(f"the ONNX file gives other logits than the network (by up to {off:.3g}): nothing was written.")
    return [*said, f"the ONNX file passed onnx.checker; {by} gives the same logits (largest difference {off:.1g})."]


class Whole(nn.Module):
    """The network with its normalisation, which is a hook: from images in [0, 1] to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def _computed(path: Path, images: Tensor, parameters: int) -> tuple[str, Tensor] | None:
    """(who computed them, logits); None if nobody here can in reasonable time."""
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        if parameters > SMALL:
            return None
        from onnx.reference import ReferenceEvaluator

        (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
        return "onnx.reference", torch.from_numpy(logits)
    (logits,) = InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})
    return "onnxruntime", torch.from_numpy(logits)


def _describe(
    new: Path, found: stored.Found, stage: Scene, model: nn.Module, named: Mapping[str, Any] | None = None
) -> list[str]:
    """model.json: what one must know to use the weights. Returns a sentence with the metrics.

    `named`: what `bench.purified.names` says of them, where they are to be loaded by their names.
    """
    metrics = evaluate(model.to(stage.device), stage.exam)
    data = stage.data
    facts: dict[str, Any] = {
        "from": str(found.name),
        "network": config.network(found.settings),
        "num_classes": data.num_classes,
        "shape": list(data.shape),
        "input": "images in [0, 1]; the network itself wants (images - mean) / std",
        "mean": list(data.mean),
        "std": list(data.std),
        "metrics": vars(metrics),
        **(named or {}),
    }
    (new / "model.json").write_text(json.dumps(facts, indent=1) + "\n")
    return [_sentence("the model", metrics), *([f"model.json says more: {named['note']}"] if named else [])]


def _sentence(what: str, metrics: Metrics) -> str:
    said = [f"ACC {metrics.acc:.1f}"]
    if metrics.triggered:
        said += [f"ASR {metrics.asr:.1f}", f"RA {metrics.ra:.1f}"]
    return f"{what}: {', '.join(said)}."


def _backdoorbench(new: Path, to: Path, found: stored.Found, stage: Scene, repaired: nn.Module | None) -> list[str]:
    if repaired is not None and names(repaired, stage.backdoor.model):
        raise UserError(
            f"{found.names['defense']} put layers into the network, which defense_result.pt cannot hold: take "
            "--format safetensors, or export the stored backdoor itself."
        )
    said = backdoorbench.write(new, to.name, found.names, stage, repaired)
    return [_sentence("the backdoored model", stage.before), *said]


FORMATS: dict[str, Callable[[Path, Path, stored.Found, Scene, nn.Module | None], list[str]]] = {
    "backdoorbench": _backdoorbench,
    "safetensors": _safetensors,
    "torch": _torch,
    "onnx": _onnx,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.export", description="Writes a model of runs/ in a form that others read."
    )
    parser.add_argument(
        "run", metavar="RUN", help="a finished cell's folder, or a stored backdoor's (runs/backdoors/...)"
    )
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="what to write")
    parser.add_argument("--into", metavar="DIR", help="where to (default: below runs/exports); must not exist")
    parser.add_argument(
        "--root", metavar="DIR", help="where the data set lies, if not where the model was made with it"
    )
    typed = parser.parse_args(words)
    try:
        for line in export(typed.run, typed.format, typed.into, typed.root):
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
