"""The optimisers are PyTorch's to the bit, without its copies of gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from darklens.training.optimisers import Adam, AdamW


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 8, 5), nn.BatchNorm2d(8), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(72, 3)).to(memory_format=torch.channels_last)


def learn(net, optimiser, steps):
    images = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimiser.zero_grad()
        net(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize(("ours", "theirs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_weights_and_state_are_pytorchs(ours, theirs):
    net = network()
    other = copy.deepcopy(net)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    found, expected = ours(net.parameters(), **settings), theirs(other.parameters(), **settings)
    learn(net, found, 5), learn(other, expected, 5)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    for a, b in zip(found.state.values(), expected.state.values(), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    again = ours(net.parameters(), **settings)
    again.load_state_dict(expected.state_dict())  # a training goes on with either


def test_no_gradient_is_copied():
    weight = nn.Parameter(torch.randn(32, 16, 3, 3).contiguous(memory_format=torch.channels_last))
    weight.grad = torch.randn_like(weight)

    def copies(kind):
        optimiser = kind([weight], fused=True)
        optimiser.step()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            optimiser.step()
        return sum(event.name == "aten::clone" for event in profiled.events())

    assert copies(AdamW) == 0
    assert copies(torch.optim.AdamW) > 0  # else this module is no longer needed
