"""What is left of a suspicious model once it was purified, in files that anybody can read without this bench."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from safetensors.torch import save

from bench import files
from bench.chosen import Chosen


def leave(folder: Path, chosen: Chosen) -> None:
    """Writes the model at the operating point into a cell's folder, in place of what lies there.

    `purified.safetensors` and `purified.pt` hold the same weights under the network's own names, on the CPU; the second is a
    plain state dict for torch.load(..., weights_only=True). `pruned.csv` (layer, channel) says what was pruned; there is
    none of a defence that prunes nothing. Normalisation is not in them: the network takes images as the data set's mean
    and std make them. Raises OSError.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in chosen.model.state_dict().items()}
    files.write(folder / "purified.safetensors", save(weights))
    plain = io.BytesIO()
    torch.save(weights, plain)
    files.write(folder / "purified.pt", plain.getvalue())
    if chosen.mask is not None:
        rows = (
            f"{layer},{channel}" for layer, gone in chosen.mask.items() for channel in gone.nonzero().flatten().tolist()
        )
        files.write(folder / "pruned.csv", "\n".join(["layer,channel", *rows]) + "\n")
