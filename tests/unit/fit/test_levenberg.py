"""A step that fits worse is refused, and the minimum is reached from a start beyond which undamped steps diverge."""

import torch

from darklens.fit.levenberg import minimise
from darklens.fit.model import Model
from darklens.fit.noise import Noise


class Arctangent(Model):
    """One pixel of brightness arctan(p); Gauss-Newton steps towards zero diverge where |p| > 1.39."""

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


class LeastSquares(Noise):
    """Noise of 0.01 in the one pixel."""

    def __init__(self):
        pass

    def rows(self, rows):
        return self

    def deviance(self, images, model, gain):
        return ((images - model) / 0.01).square().sum((1, 2))

    def normal_equations(self, slopes, images, model, gain):
        slope, residual = slopes[:, :, 0, 0].double() / 0.01, (images - model)[:, :, 0].double() / 0.01
        return slope[:, :, None] * slope[:, None], slope * residual


def test_a_step_that_fits_worse_is_refused():
    start = torch.tensor([[3.0], [-5.0], [0.5]])
    images, noise = torch.zeros(3, 1, 1), LeastSquares()
    deviances = [noise.deviance(images, torch.atan(start)[:, :, None], torch.zeros(3, 2))]
    deviances += [minimise(Arctangent(), images, noise, start, steps=steps).deviance for steps in range(1, 6)]
    assert (torch.stack(deviances).diff(dim=0) <= 0).all()
    assert minimise(Arctangent(), images, noise, start, steps=50).parameters.abs().max() < 0.01
