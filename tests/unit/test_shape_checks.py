"""The checks under which unit tests run find wrong types and wrong shapes, of arguments and of results."""

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from shape_checks import CHECKED_CALLS, begin_test, checked
from torch import Tensor

WRONG = (BeartypeCallHintViolation, TypeCheckError)


@checked(typechecker=beartype)
def twice(n: int, *, as_text: bool = False) -> int:
    return str(2 * n) if as_text else 2 * n


@checked(typechecker=beartype)
def product(a: Float[Tensor, "b n"], b: list[Float[Tensor, "n m"]], *, cut: int = 0) -> Float[Tensor, "b m"] | None:
    return (a @ b[0])[cut:]


@checked(typechecker=beartype)
def gram(a: "Float[Tensor, 'b n']", cut: int = 0) -> "Float[Tensor, 'n n']":
    return (a.T @ a)[cut:]


def test_correct_calls_pass():
    assert twice(2) == 4
    assert product(torch.ones(2, 3), [torch.ones(3, 4)]).shape == (2, 4)
    assert product(torch.ones(5, 3), [torch.ones(3, 1)]).shape == (5, 1)  # sizes hold within a call only
    assert gram(torch.ones(2, 3)).shape == (3, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: twice("2"),
        lambda: twice(2, as_text=1),
        lambda: twice(2, as_text=True),
        lambda: product(torch.ones(2, 3, 1), [torch.ones(3, 4)]),
        lambda: product(torch.ones(2, 3).long(), [torch.ones(3, 4).long()]),
        lambda: product(torch.ones(2, 3), [torch.ones(4, 4)]),
        lambda: product(torch.ones(2, 3), [torch.ones(3, 4)], cut=1),
        lambda: gram(torch.ones(2)),
        lambda: gram(torch.ones(2, 3), 1),
    ],
)
def test_wrong_arguments_and_results_are_found(call):
    with pytest.raises(WRONG):
        call()


def test_the_first_calls_of_each_test_are_checked():
    for _ in range(CHECKED_CALLS):
        twice(2)
    assert twice("2") == "22"
    begin_test()
    with pytest.raises(WRONG):
        twice("2")
