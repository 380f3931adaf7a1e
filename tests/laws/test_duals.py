"""Derivatives carried through laws equal those of PyTorch, and an operation without a rule is an error."""

import pytest
import torch
from torch.func import jacfwd

from darklens.physics import light
from darklens.physics.duals import Dual, slopes_of, value_of, variable
from darklens.physics.profiles import PROFILES

X, Y = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -1.1, 0.7], [0.9, 0.3, -1.3]))
VALUES = {
    "theta_E": 1.1,
    "mass": 0.2,
    "length": 0.8,
    "angle": 0.4,
    "alpha_Rs": 0.3,
    "R_s": 0.5,
    "r_t": 2.0,
    "R_a": 0.05,
    "slope": 2.2,
    "e1": 0.1,
    "e2": -0.07,
    "gamma1": 0.03,
    "gamma2": -0.05,
    "a": 0.02,
    "b": -0.01,
}


def compared(law, values):
    """Compare the slopes of each component of a law by its position and all parameters with PyTorch's."""
    names, primals = list(values), [torch.as_tensor(v, dtype=torch.float64) for v in values.values()]
    out = law(**{name: variable(name, primal) for name, primal in zip(names, primals, strict=True)})
    values_alone = law(**dict(zip(names, primals, strict=True)))
    for component, value in zip(out, values_alone, strict=True):
        torch.testing.assert_close(value_of(component), value, rtol=1e-13, atol=1e-13)
    for i, name in enumerate(names):

        def alone(v, i=i):
            return law(**dict(zip(names, [*primals[:i], v, *primals[i + 1 :]], strict=True)))

        for component, expected in zip(out, jacfwd(alone)(primals[i]), strict=True):
            expected = expected.diagonal() if primals[i].ndim else expected
            slope = torch.as_tensor(slopes_of(component).get(name, 0.0), dtype=torch.float64).expand(expected.shape)
            torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_slopes_of_a_deflection(name):
    profile = PROFILES[name]
    values = {"x": X, "y": Y} | {p.symbol: VALUES[p.symbol] for p in profile.parameters}
    compared(profile.deflection, values)


def test_slopes_of_sersic_light():
    def law(n, **values):
        return (light.sersic_of_ellipticity(n=n, b=light.sersic_b(n), **values),)

    compared(law, {"x": X, "y": Y, "amplitude": 2.0, "R_e": 0.4, "n": 1.7, "e1": 0.2, "e2": -0.1})


def test_slopes_of_shapelets():
    def law(x, y, beta):
        return light.shapelets(x[None, None], y[None, None], beta=beta.reshape(1, 1, 1), n_max=3).sum(1)[0, 0]

    x, y, beta = X, Y, torch.tensor(0.3, dtype=torch.float64)
    out = light.shapelets(
        variable("x", x[None, None]),
        variable("y", y[None, None]),
        beta=variable("beta", beta.reshape(1, 1, 1)),
        n_max=3,
    )
    assert set(slopes_of(out)) == {"x", "y", "beta"}
    for i, name in enumerate(("x", "y", "beta")):
        expected = jacfwd(law, argnums=i)(x, y, beta)
        expected = expected.diagonal() if i < 2 else expected
        torch.testing.assert_close(slopes_of(out)[name].sum(1)[0, 0], expected, rtol=1e-9, atol=1e-12)


def test_a_number_depends_only_on_what_entered_it():
    a, b = variable("a", torch.tensor(2.0)), variable("b", torch.tensor(3.0))
    assert set(slopes_of(a * 2 + 1)) == {"a"}
    assert set(slopes_of(a * b)) == {"a", "b"}
    assert isinstance(a, torch.Tensor) and isinstance(1 / a, Dual)


def test_an_operation_without_a_rule_is_an_error():
    with pytest.raises(NotImplementedError, match="erf has no rule"):
        torch.erf(variable("a", torch.tensor(2.0)))
