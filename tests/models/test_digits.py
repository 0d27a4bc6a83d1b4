"""The digits network: its layers, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from bitswitch.data import DIGITS_NORMALIZATION, MemoryLoader, load_digits
from bitswitch.models import DigitsCNN


def test_layers_between_first_and_last() -> None:
    model = DigitsCNN(width=8)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert list(convs) == ["stem", "block.conv1", "block.conv2", "down", "depthwise", "pointwise"]
    assert convs["depthwise"].groups == 16
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    # Layers this small lose more to waiting for threads than they gain, above all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    train, held_out = load_digits()
    model = DigitsCNN(width=16)
    loader = MemoryLoader(train, 32, train=True, normalization=DIGITS_NORMALIZATION)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 4 * len(loader))
    for epoch in range(4):
        for images, labels in loader.epoch(epoch):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in MemoryLoader(held_out, 100, train=False, normalization=DIGITS_NORMALIZATION):
            correct += int((model(images).argmax(1) == labels).sum())
    assert correct / len(held_out) > 0.95
