"""Networks for which a processor's library would write past its buffers go without it in training."""

import pytest
import torch
from torch import nn

from bench.models import resnet18
from bench.training import careful


@pytest.mark.parametrize(
    ("width", "capability", "wanted"),
    [(4, "AVX2", False), (8, "AVX2", True), (4, "AVX512", True), (4, "DEFAULT", True)],
)
def test_narrow_shortcuts(width, capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    before = torch.backends.mkldnn.enabled
    with careful(resnet18(3, 1, width)):
        assert torch.backends.mkldnn.enabled is (wanted and before)
    with careful(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2))):
        assert torch.backends.mkldnn.enabled is before
    assert torch.backends.mkldnn.enabled is before
