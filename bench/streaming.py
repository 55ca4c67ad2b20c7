"""Training images where the device has room for them: on it, or in main memory and sent there in chunks, one ahead.

Attacks and `fit` see no difference: `Streamed` stands where the tensor of the images would, takes the same indices and
gives tensors on the device. Test and held-out images always lie on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from bench.data import Dataset, ImageSet
from bench.errors import UserError

CHUNK = 2**26
"""Bytes sent at a time, rounded up to whole batches. At most three such chunks are on the device."""
COPIES = 3
"""How many times a device that holds a training set needs room for it: as it came, poisoned, and padded."""


class Streamed:
    """uint8 images [N, C, H, W] in main memory that are used as if they lay on `device`.

    What is taken by an index is a tensor there; what is written by one may come from there.
    """

    def __init__(self, host: Tensor, device: torch.device) -> None:
        self.host, self.device = host, device
        self.shape, self.dtype, self.ndim = host.shape, host.dtype, host.ndim

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, index: Any) -> Tensor:
        return self.host[_here(index)].to(self.device)

    def __setitem__(self, index: Any, value: Tensor) -> None:
        self.host[_here(index)] = value.cpu()

    def clone(self) -> Streamed:
        return Streamed(self.host.clone(), self.device)

    def cpu(self) -> Tensor:
        return self.host


def place(data: Dataset, device: torch.device, resident: object = "auto") -> Dataset:
    """The data set for work on `device`. `resident`: whether it holds the training images itself: true, false (they are
    streamed), or auto, which is true unless `COPIES` of them take more than half of a GPU's free memory.

    Raises UserError for another word.
    """
    word = str(resident).lower()
    if word not in ("auto", "true", "false"):
        raise UserError(f"resident={resident} is unknown: use auto, true or false.")
    if word == "auto":
        word = str(COPIES * data.train.x.nbytes <= room(device) / 2).lower()
    if word == "true":
        return data.to(device)
    train = ImageSet(cast(Tensor, Streamed(data.train.x, device)), data.train.y.to(device))
    return replace(data, train=train, heldout=data.heldout.to(device), test=data.test.to(device))


def room(device: torch.device) -> float:
    """Free bytes of a GPU; without end elsewhere, where there is no other memory to keep images in."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


class Feed:
    """One training set as batches. `pad`: what is done to images before they are cropped, see `Augment.pad`."""

    def __init__(self, data: ImageSet, batch_size: int, pad: Callable[[Tensor], Tensor]) -> None:
        self.data, self.size, self.pad = data, batch_size, pad
        self.device = data.x.device
        streamed = isinstance(data.x, Streamed)
        self.padded = None if streamed else pad(data.x)
        self.batches = -(-CHUNK // (batch_size * data.x.shape[1:].numel()))  # in a chunk
        self.side = torch.cuda.Stream(self.device) if streamed and self.device.type == "cuda" else None

    def start(self, order: Tensor) -> None:
        """From here on, images come in this order: int64, on the CPU."""
        self.ahead: Future[tuple[Tensor, Tensor, torch.cuda.Event | None]]
        self.order = order if self.padded is None else order.to(self.device)
        self.chunk, self.coming = -1, -1

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(padded images, which of them are the batch, their labels), all on the device. Steps are asked for in order, from
        any one on."""
        if self.padded is not None:
            index = self.order[step * self.size : (step + 1) * self.size]
            return self.padded, index, self.data.y[index]
        chunk, within = divmod(step, self.batches)
        if chunk != self.chunk:
            self._fetch(chunk)
        index = self.at[within * self.size : (within + 1) * self.size]
        return self.images, index, self.labels[index]

    def _fetch(self, chunk: int) -> None:
        """Waits for a chunk, and has the one after it sent."""
        coming = self.ahead if chunk == self.coming else _sender().submit(self._send, chunk)
        self.coming = chunk + 1
        self.ahead = _sender().submit(self._send, self.coming)
        images, self.labels, sent = coming.result()
        if sent is not None:
            torch.cuda.current_stream(self.device).wait_event(sent)
            for tensor in (images, self.labels):
                tensor.record_stream(torch.cuda.current_stream(self.device))
        self.images, self.chunk = self.pad(images), chunk
        self.at = torch.arange(len(images), device=self.device)

    def _send(self, chunk: int) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        """In another thread and, on a GPU, another stream: images, labels, and what to wait for before they are read."""
        span = self.batches * self.size
        rows = self.order[chunk * span : (chunk + 1) * span]
        host = cast(Streamed, self.data.x).host
        buffer = torch.empty(len(rows), *host.shape[1:], dtype=host.dtype, pin_memory=self.side is not None)
        torch.index_select(host, 0, rows, out=buffer)
        if self.side is None:
            return buffer.to(self.device), self.data.y[rows.to(self.device)], None
        with torch.cuda.stream(self.side):
            images = buffer.to(self.device, non_blocking=True)
            labels = self.data.y[rows.to(self.device)]
            return images, labels, self.side.record_event()


@cache
def _sender() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "images")


def _here(index: Any) -> Any:
    return index.cpu() if isinstance(index, Tensor) else index
