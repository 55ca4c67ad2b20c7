"""Images sent in chunks train the very same models as images on the device; all attacks: `test_attack` in test_contract.py."""

import pytest
import torch

from bench import streaming
from bench.data import Augment, Dataset, ImageSet
from bench.errors import UserError
from bench.models import normalised, vgg
from bench.streaming import Feed, Streamed, place
from bench.training import Plan, fit

CPU = torch.device("cpu")


def images(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return ImageSet(torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=rng), torch.arange(count) % 4)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 3 * 8 * 8 * 5)  # two batches of 4


@pytest.mark.parametrize("plan", [{"epochs": 3}, {"epochs": 2, "drop_last": True}, {"iterations": 9}], ids=str)
@pytest.mark.parametrize("changing", [False, True])
def test_the_same_training_to_the_last_bit(plan, changing, small_chunks):
    data = Dataset(images(23), images(4), images(4), 4)
    learnt = []
    for resident in (True, False):
        torch.manual_seed(0)
        model = normalised(vgg([4], 4, 3), (0.5,) * 3, (0.2,) * 3)
        train = place(data, CPU, resident).train
        fit(model, train, Plan(batch_size=4, **plan), seed=1, augment=Augment(1, True),
            on_batch=(lambda x, y: (1 - x, y)) if changing else None)  # fmt: skip
        learnt.append(list(model.state_dict().values()))
        assert isinstance(train.x, Streamed) is not resident
    assert all(a.equal(b) for a, b in zip(*learnt, strict=True))


def test_a_feed_goes_on_anywhere_and_sends_no_more_than_chunks(small_chunks, monkeypatch):
    data, sent = images(23), []
    send = Feed._send
    monkeypatch.setattr(Feed, "_send", lambda self, chunk: sent.append(chunk) or send(self, chunk))
    streamed = place(Dataset(data, data, data, 4), CPU, "false").train
    for start in (0, 3, 5):
        order = torch.randperm(23, generator=torch.Generator().manual_seed(start))
        feeds = [Feed(part, 4, Augment(1).pad) for part in (data, streamed)]
        for feed in feeds:
            feed.start(order)
        for step in range(start, 6):
            one, other = ((padded[index], y) for padded, index, y in (feed.batch(step) for feed in feeds))
            assert one[0].equal(other[0]) and one[1].equal(other[1]) and len(one[1]) == (4 if step < 5 else 3)
        assert len(feeds[1].images) <= 8
    assert sent == [0, 1, 2, 3, 1, 2, 3, 2, 3]


def test_auto_streams_what_would_take_half_of_a_gpu(monkeypatch):
    data = Dataset(images(20), images(4), images(4), 4)
    need = 3 * data.train.x.nbytes
    for free, streamed in ((2 * need, False), (2 * need - 2, True)):
        monkeypatch.setattr(streaming, "room", lambda device, free=free: free)
        assert isinstance(place(data, CPU).train.x, Streamed) is streamed
    assert not isinstance(place(data, CPU, "true").train.x, Streamed)
    assert place(data, CPU, False).digest == data.digest
    with pytest.raises(UserError, match="resident=maybe"):
        place(data, CPU, "maybe")


def test_streamed_images_take_indices_and_leave_the_originals():
    data = images(10)
    streamed = Streamed(data.x.clone(), CPU)
    copy, index = streamed.clone(), torch.tensor([3, 1])
    copy[index] = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert streamed.cpu().equal(data.x) and streamed[data.y == 1].equal(data.x[data.y == 1])
    assert copy[index].sum() == 0 and copy[2:3].equal(data.x[2:3]) and len(copy) == 10 and copy.shape == data.x.shape
