"""The pretend device follows the rules of CUDA on mixing devices, and computes what the CPU computes."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretend_device import CUDA, PretendTensor, pretend_device
from torch import nn


@pytest.fixture
def device():
    with pretend_device() as device:
        yield device


REFUSED = {
    "a sum": lambda x, y: x + y,
    "a sum, CPU first": lambda x, y: y + x,
    "an in-place sum": lambda x, y: x.add_(y),
    "a matrix product": lambda x, y: x @ y,
    "torch.cat": lambda x, y: torch.cat([x, y]),
    "torch.stack of 0-dim tensors": lambda x, y: torch.stack([x[0, 0], y[0, 0]]),
    "a convolution": lambda x, y: F.conv2d(x[None, None], y[None, None]),
    "a bias": lambda x, y: F.linear(x, x, y[0]),
    "an in-place sum into a 0-dim CPU tensor": lambda x, y: torch.zeros(()).add_(x[0, 0]),
    "a tensor made without device=": lambda x, y: x * torch.arange(3),
    "gather with CPU indices": lambda x, y: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "index_select with CPU indices": lambda x, y: x.index_select(0, torch.tensor([1])),
    "scatter_add of CPU values": lambda x, y: x.scatter_add(0, torch.zeros_like(x, dtype=torch.long), y),
    "a CPU tensor with indices on the device": lambda x, y: y[torch.tensor([0], device="cuda")],
    "a CPU tensor with a mask on the device": lambda x, y: y[x > 0],
    "CPU values at indices": lambda x, y: x.__setitem__(torch.tensor([0]), y[:1]),
    "labels on the CPU": lambda x, y: F.cross_entropy(x, torch.tensor([0, 1, 2])),
    "a masked fill with a mask on the CPU": lambda x, y: x.masked_fill(y > 0, 0.0),
    "linalg.solve": lambda x, y: torch.linalg.solve(x, y),
    "a bucket search": lambda x, y: torch.searchsorted(x, y),
    "a CPU generator": lambda x, y: torch.rand(3, device="cuda", generator=torch.Generator()),
    "a CPU generator for Poisson counts": lambda x, y: torch.poisson(x, generator=torch.Generator()),
    "a device's generator on the CPU": lambda x, y: torch.randn(3, generator=torch.Generator("cuda")),
    "a module on the CPU": lambda x, y: nn.Linear(3, 2)(x),
    "a module on the device": lambda x, y: nn.Linear(3, 2).to("cuda")(y),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cuda_refuses_is_refused(device, case):
    with pytest.raises(RuntimeError, match=r"device|generator"):
        REFUSED[case](torch.rand(3, 3, device="cuda"), torch.rand(3, 3))


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray, np.sqrt, lambda x: x.data_ptr()])
def test_values_are_read_only_from_a_copy_on_the_cpu(device, read):
    x = torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match=r"Use Tensor.cpu\(\)"):
        read(x)
    assert x.cpu().numpy().tolist() == x.tolist() == [1, 1, 1]


ALLOWED = {
    "a 0-dim CPU tensor": lambda x: x * torch.tensor(2.0) + torch.ones(()),
    "a 0-dim CPU tensor first": lambda x: torch.tensor(2.0) - x,
    "0-dim CPU tensors in where": lambda x: torch.where(x > 0.5, torch.tensor(1.0), x),
    "CPU indices": lambda x: x[torch.tensor([2, 0])],
    "a CPU mask": lambda x: x[torch.tensor([True, False, True])],
    "a 0-dim value at indices": lambda x: x.index_put((torch.tensor([0]),), torch.tensor(1.0)),
    "a slice from the CPU": lambda x: _assigned(x.clone(), slice(0, 2), torch.ones(2, 3)),
    "copy_": lambda x: torch.empty(3, 3, device="cuda").copy_(torch.ones(3, 3)),
    "numbers": lambda x: (x + 1) ** 2,
    "an item": lambda x: x * float(x.sum()) + x[0, 0].item(),
    "new tensors": lambda x: x.new_zeros(3) + torch.ones_like(x) + torch.arange(3, device=x.device),
    "iteration": lambda x: torch.cat(list(x)),
    "max": lambda x: x.max(0).values,
    "its generator": lambda x: torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(3)),
    "a module": lambda x: _seeded(lambda: nn.Linear(3, 2)).to(x.device)(x),
}


def _assigned(x, index, value):
    x[index] = value
    return x


def _seeded(build):
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("case", ALLOWED)
def test_what_cuda_allows_gives_the_values_of_the_cpu_on_the_device(case):
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    with pretend_device():
        result = ALLOWED[case](x.to("cuda"))
        assert result.device == CUDA and result.is_cuda and isinstance(result, PretendTensor)
        result = result.cpu()
    cases = ("its generator", "copy_")
    expected = {
        "its generator": lambda _: torch.rand(3, generator=torch.Generator().manual_seed(3)),
        "copy_": torch.ones_like,
    }
    assert torch.equal(result, (expected[case] if case in cases else ALLOWED[case])(x))


def test_a_training_of_a_network_is_bit_identical(device):
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    on_cpu = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    on_gpu = copy.deepcopy(on_cpu).to("cuda")
    assert all(p.device == CUDA and isinstance(p, nn.Parameter) for p in on_gpu.parameters())
    for network, name in ((on_cpu, "cpu"), (on_gpu, "cuda")):
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(network(images.to(name)), labels.to(name)).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    copied = copy.deepcopy(on_gpu)
    for key, value in on_cpu.state_dict().items():
        assert torch.equal(value, on_gpu.state_dict()[key].cpu()) and torch.equal(value, copied.state_dict()[key].cpu())


def test_uploads_are_counted(device):
    x = torch.ones(3).to("cuda")
    assert device.uploads == 1
    x = x.to("cuda") + torch.zeros(3, device="cuda") * torch.tensor(2.0)
    assert device.uploads == 1
    (
        torch.tensor([1.0], device="cuda"),
        torch.as_tensor(np.ones(2), device="cuda"),
        x[torch.tensor([0, 1])],
        x[[0, 1]],
        x[x > 0],
    )
    assert device.uploads == 5


def test_the_cpu_is_left_alone(device):
    x = torch.rand(3)
    assert type(x + 1) is torch.Tensor and x.to("cpu") is x and x.numpy() is not None
    assert type(x.to("cuda").cpu()) is torch.Tensor
