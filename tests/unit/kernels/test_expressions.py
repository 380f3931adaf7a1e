"""Recording expressions of single numbers from functions of tensors."""

import pytest
import torch

from darklens.kernels import expressions
from darklens.kernels.expressions import record, verify

A, B = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]])


def evaluate(function, *arguments):
    """The recorded expressions, evaluated one by one."""
    recorded, outputs = record(function, arguments)
    verify(function, arguments, recorded, outputs)
    values = recorded.values(arguments)
    return torch.tensor([values[index] for index in outputs])


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * b - a / b,
        lambda a, b: torch.rsub(a, b) + (1 - a) * 2,
        lambda a, b: torch.addcmul(a, a, b) + torch.addcmul(a, a, b, value=-1) * b,
        lambda a, b: torch.rsqrt(a) + a.square() + b**2.5 + b**-1 + a**b + b.clamp_min(6.0),
        lambda a, b: torch.where(a > 2.5, a, b) + (b < 6).to(a.dtype) + (~(a <= 2)).to(a.dtype) + (b >= 7).to(a.dtype),
        lambda a, b: a @ b.mT,
        lambda a, b: torch.cat([a, b], 1).flip(1)[:, 1:],
        lambda a, b: torch.stack([a, b]).sum((0, 2)) + torch.stack([a, b], 2).sum(-1, keepdim=True)[..., 0],
        lambda a, b: torch.cumprod(a, 1) + torch.cumsum(b, 1) + torch.arange(2.0) + torch.zeros_like(a),
        lambda a, b: a[:, :, None].expand(1, 2, 2) * b.unbind(1)[1] + torch.tensor([1.0, 10.0]),
        lambda a, b: torch.exp(-a) + torch.log(b) + torch.maximum(a, b) + torch.sign(-a) + torch.abs(-b),
        lambda a, b: torch.sin(a) + torch.cos(b) + torch.atan(a) + torch.atan2(a, b) + torch.hypot(a, b),
        lambda a, b: torch.log1p(a) + torch.atanh(1 / b) + torch.addcmul(a, a, b, value=0.3) + (b > 6).float(),
    ],
)
def test_expressions_have_the_values_of_the_function(function):
    torch.testing.assert_close(evaluate(function, A, B), function(A, B).flatten())


def test_equal_expressions_occur_once():
    recorded, outputs = record(lambda a, b: torch.cat([a * b + a, a + b * a], 1), (A, B))
    assert outputs[:2] == outputs[2:]
    assert [item.operation for item in recorded.items].count("mul") == 2


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (lambda a: a * 1 + 0, lambda a: a),
        (lambda a: (-a).neg() - 0, lambda a: a),
        (lambda a: 0 - a * 1, lambda a: -a),
        (lambda a: a * -1, lambda a: -a),
        (lambda a: a / 2, lambda a: a * 0.5),
        (lambda a: a * torch.zeros(2), lambda a: torch.zeros_like(a)),
        (lambda a: torch.where(torch.tensor([True, True]), a, a * a), lambda a: a),
        (lambda a: a**2, lambda a: a * a),
        (lambda a: a * a + (-a), lambda a: a * a - a),
    ],
)
def test_expressions_are_simplified(function, same):
    both, outputs = record(lambda a: torch.cat([function(a), same(a)], 1), (A,))
    assert outputs[:2] == outputs[2:], both.items


def test_one_tensor_can_stand_for_two_arguments():
    assert evaluate(lambda a, b: a - b, A, A).tolist() == [0.0, 0.0]
    assert len(set(record(lambda a, b: torch.cat([a, b], 1), (A, A))[1])) == 4


def test_expressions_can_be_recorded_in_inference_mode():
    with torch.inference_mode():
        assert len(record(lambda a: (a.reshape(2, 1) * a).sum(1), (torch.ones(1, 2),))[1]) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda a: torch.erf(a),
        lambda a: a * float(a.sum()),
        lambda a: a.sort().values,
        lambda a: a.clone().add_(1),
        lambda a: torch.add(a, a, alpha=2),
        lambda a: a.long() * 1.0,
    ],
)
def test_an_operation_without_a_rule_is_an_error(function):
    with pytest.raises(NotImplementedError, match=r"has no rule for expressions"):
        record(function, (A,))


def test_a_wrong_rule_is_noticed(monkeypatch):
    monkeypatch.setitem(expressions._POINTWISE, torch.ops.aten.sin, "cos")
    with pytest.raises(RuntimeError, match="is wrong"):
        verify(torch.sin, (A,), *record(torch.sin, (A,)))
