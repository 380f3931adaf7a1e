"""A step that fits worse is refused, and the minimum is reached from a start beyond which undamped steps diverge."""

import pytest
import torch

from darklens.fit.levenberg import minimise
from darklens.fit.model import Model
from darklens.fit.noise import Noise


class Arctangent(Model):
    """One pixel of brightness arctan(p); Gauss-Newton steps towards zero diverge where |p| > 1.39."""

    n_smooth = 2

    def __init__(self):
        pass

    def gain(self, parameters):
        return torch.zeros(len(parameters), 2)

    def light(self, parameters):
        return torch.atan(parameters)[:, :, None]

    def expected(self, parameters):
        return self.light(parameters), (1 / (1 + parameters**2))[:, :, None, None]

    def apply_step(self, parameters, step):
        return parameters + step

    @property
    def goes_on_after_cut_steps(self):
        return True

    def blocked(self, parameters, step):
        return None


class LeastSquares(Noise):
    """Noise of 0.01 in the one pixel."""

    sky = None

    def __init__(self):
        pass

    def rows(self, rows):
        return self

    def deviance(self, images, model, gain):
        return ((images - model) / 0.01).square().sum((1, 2))

    def normal_equations(self, slopes, images, model, gain, *, rows=None):
        slopes = slopes if rows is None else slopes[rows]
        slope, residual = slopes[:, :, 0, 0].double() / 0.01, (images - model)[:, :, 0].double() / 0.01
        return slope[:, :, None] * slope[:, None], slope * residual


def test_a_step_that_fits_worse_is_refused():
    start = torch.tensor([[3.0], [-5.0], [0.5]])
    images, noise = torch.zeros(3, 1, 1), LeastSquares()
    deviances = [noise.deviance(images, torch.atan(start)[:, :, None], torch.zeros(3, 2))]
    deviances += [minimise(Arctangent(), images, noise, start, steps=steps).deviance for steps in range(1, 6)]
    assert (torch.stack(deviances).diff(dim=0) <= 0).all()
    assert minimise(Arctangent(), images, noise, start, steps=50).parameters.abs().max() < 0.01


class Valley(Arctangent):
    """A linear model of two nearly degenerate parameters, whose steps are cut to different lengths."""

    DIRECTIONS = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.99, 0.141], [0.0, 0.0]]])

    def light(self, parameters):
        return (parameters[:, :, None, None] * self.DIRECTIONS).sum(1)

    def expected(self, parameters):
        return self.light(parameters), self.DIRECTIONS.expand(len(parameters), -1, -1, -1)

    def apply_step(self, parameters, step):
        longest = torch.tensor([0.1, 1.0])
        return parameters + torch.maximum(torch.minimum(step, longest), -longest)


class SumOfSquares(LeastSquares):
    """Unit noise in all pixels."""

    def deviance(self, images, model, gain):
        return (images - model).square().sum((1, 2))

    def normal_equations(self, slopes, images, model, gain, *, rows=None):
        slopes = slopes if rows is None else slopes[rows]
        flat = slopes.flatten(2).double()
        return flat @ flat.mT, (flat @ (images - model).flatten(1).double()[:, :, None])[..., 0]


def test_a_fit_whose_step_is_cut_to_an_uphill_one_has_not_converged():
    start = torch.tensor([[25.4, -24.6]])  # the minimum is at zero
    fit = minimise(Valley(), torch.zeros(1, 2, 2), SumOfSquares(), start, steps=1)
    assert fit.predicted_reduction > 0.5 and fit.deviance > 0.1


class Quadratic(Arctangent):
    """One pixel of brightness 1 + p + p^2, whose derivative depends on p and vanishes at -1/2."""

    def light(self, parameters):
        return (1 + parameters + parameters**2)[:, :, None]

    def expected(self, parameters):
        return self.light(parameters), (1 + 2 * parameters)[:, :, None, None]


def test_derivatives_that_are_not_kept_cannot_be_reused():
    images, start = torch.zeros(1, 1, 1), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="cannot be reused"):
        minimise(Quadratic(), images, SumOfSquares(), start, steps=1, reuse_slopes_below=1.0, with_slopes=False)


@pytest.mark.parametrize("steps", range(1, 7))
def test_derivatives_and_curvature_are_those_of_the_returned_parameters(steps):
    """Images converge, or refuse a step, after different numbers of steps."""
    start = torch.tensor([[3.0], [-0.49], [0.0], [20.0]])
    fit = minimise(Quadratic(), torch.zeros(4, 1, 1), SumOfSquares(), start, steps=steps)
    light, slopes = Quadratic().expected(fit.parameters)
    assert torch.equal(fit.model, light) and torch.equal(fit.slopes, slopes)
    torch.testing.assert_close(fit.curvature, slopes.double().square().sum((2, 3))[:, :, None])
    without = minimise(Quadratic(), torch.zeros(4, 1, 1), SumOfSquares(), start, steps=steps, with_slopes=False)
    assert torch.equal(without.parameters, fit.parameters) and without.slopes.numel() == 0
