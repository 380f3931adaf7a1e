"""Scenes against lenstronomy: multipoles, pseudo-Jaffe, two-component lens light, a PSF image, sub-sampled pixels."""

import numpy as np
import pytest
import torch
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF as LenstronomyPSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Profiles.multipole import EllipticalMultipole
from lenstronomy.LensModel.Profiles.pseudo_jaffe import PseudoJaffe
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.LightModel.Profiles.shapelets import Shapelets

from darklens.physics import light
from darklens.physics.profiles import multipole, pseudo_jaffe
from darklens.scene import EPL, PSF, Detector, Multipole, Scene, Sersic, Shear

SCALE = 0.05


def tensor(value):
    return torch.as_tensor(value, dtype=torch.float64)


@pytest.fixture(scope="module")
def positions():
    generator = np.random.default_rng(0)
    return generator.uniform(-3, 3, 200), generator.uniform(-3, 3, 200)


@pytest.mark.parametrize("m", [1, 3, 4])
@pytest.mark.parametrize("q", [0.5, 0.8])
def test_elliptical_multipoles(positions, m, q):
    x, y = positions
    angle, amplitude, phase = 0.4, 0.03, 0.2
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = x * cos + y * sin, y * cos - x * sin  # lenstronomy's frame has the major axis along x
    reference = EllipticalMultipole()
    along, across = reference.derivatives(u, v, m, amplitude, phase, q)
    expected = np.stack([along * cos - across * sin, along * sin + across * cos])
    second = reference.hessian(u, v, m, amplitude, phase, q)
    e, absolute = (1 - q) / (1 + q), m * (phase + angle)
    values = {"a": amplitude * np.cos(absolute), "b": amplitude * np.sin(absolute)}
    values |= {"e1": e * np.cos(2 * angle), "e2": e * np.sin(2 * angle)}
    ours = {name: tensor(value) for name, value in values.items()}
    difference = np.stack(multipole.deflection(tensor(x), tensor(y), m=m, **ours)) - expected
    # A uniform deflection, which no image depends on, is a matter of convention for odd m.
    assert np.abs(difference - difference.mean(1, keepdims=True)).max() < 1e-9
    kappa = multipole.convergence(tensor(x), tensor(y), m=m, **ours).numpy()
    np.testing.assert_allclose(kappa, (second[0] + second[3]) / 2, atol=1e-12)


def test_pseudo_jaffe(positions):
    x, y = positions
    theta_E, R_a, R_s = 0.1, 0.05, 0.7
    expected = PseudoJaffe().derivatives(x, y, theta_E * (R_s - R_a) / (2 * R_a * R_s), R_a, R_s)
    ours = pseudo_jaffe.deflection(tensor(x), tensor(y), theta_E=tensor(theta_E), R_a=tensor(R_a), R_s=tensor(R_s))
    np.testing.assert_allclose(np.stack(ours), np.stack(expected), atol=1e-12)


def test_shapelets(positions):
    x, y = positions
    basis = light.shapelets(tensor(x)[None, None], tensor(y)[None, None], beta=tensor([[[0.6]]]), n_max=3)[0, :, 0]
    orders = [(n - k, k) for n in range(4) for k in range(n + 1)]
    for plane, (n1, n2) in zip(basis, orders, strict=True):
        expected = Shapelets(interpolation=False, precalc=False).function(x, y, 1.0, 0.6, n1, n2, 0, 0)
        inside = np.abs(expected) > 1e-12  # lenstronomy cuts them off far out, and leaves out 1 / beta
        np.testing.assert_allclose(plane.numpy()[inside], expected[inside] / 0.6, rtol=2e-6)


@pytest.mark.parametrize("supersample", [1, 3])
def test_an_image_with_multipole_lens_light_and_psf_image(supersample):
    n, generator = 50, np.random.default_rng(1)
    y, x = np.mgrid[-5:6, -5:6]
    kernel = np.exp(-0.5 * ((0.8 * x) ** 2 + (1.1 * y + 0.3 * x) ** 2) / 2.2) + 0.01 / (1 + x**2 + y**2)
    kernel *= 1 + 0.02 * generator.normal(size=kernel.shape)
    kernel /= kernel.sum()
    # lenstronomy evaluates elliptical multipoles in a frame whose x axis is the major axis, and does not turn it.
    e1, e2, theta_E = 0.11, 0.0, 0.8
    amplitude = complex(0.01, -0.004)
    phase = np.angle(amplitude) / 4 - np.arctan2(e2, e1) / 2
    lens = LensModel(["EPL_MULTIPOLE_M1M3M4_ELL", "SHEAR"])
    lens_values = [
        {"theta_E": theta_E, "gamma": 2.1, "e1": e1, "e2": e2, "center_x": 0.02, "center_y": -0.03}
        | {"a1_a": 0, "delta_phi_m1": 0, "a3_a": 0, "delta_phi_m3": 0}
        | {"a4_a": abs(amplitude) / theta_E, "delta_phi_m4": phase},
        {"gamma1": 0.03, "gamma2": -0.02, "ra_0": 0, "dec_0": 0},
    ]
    source = {"amp": 5.0, "R_sersic": 0.2, "n_sersic": 1.3, "e1": 0.1, "e2": 0.05, "center_x": 0.1, "center_y": -0.05}
    lights = [
        {"amp": 3.0, "R_sersic": 0.5, "n_sersic": 3.0, "e1": 0.05, "e2": 0.02, "center_x": 0.012, "center_y": 0.021},
        {"amp": 1.0, "R_sersic": 1.0, "n_sersic": 1.0, "e1": 0.1, "e2": 0.0, "center_x": 0.012, "center_y": 0.021},
    ]
    # lenstronomy has no light beyond the frame, so it renders a wider one, of which the centre is compared.
    wide = n + 10
    edge = -(wide - 1) / 2 * SCALE
    data = ImageData(np.zeros((wide, wide)), ra_at_xy_0=edge, dec_at_xy_0=edge, transform_pix2angle=np.eye(2) * SCALE)
    model = ImageModel(
        data,
        LenstronomyPSF("PIXEL", kernel_point_source=kernel),
        lens,
        LightModel(["SERSIC_ELLIPSE"]),
        LightModel(["SERSIC_ELLIPSE"] * 2),
        kwargs_numerics={"supersampling_factor": supersample, "supersampling_convolution": False},
    )
    expected = model.image(lens_values, [source], lights)[5:-5, 5:-5] / SCALE**2
    scene = Scene(
        [EPL(), Shear(), Multipole(4)],
        [Sersic(b_n="linear")],
        [Sersic(b_n="linear"), Sersic(b_n="linear", centre_x="light.centre_x", centre_y="light.centre_y")],
    )
    names = {"R_sersic": "R_e", "n_sersic": "n", "e1": "e1", "e2": "e2", "center_x": "centre_x", "center_y": "centre_y"}
    values = {"epl.theta_E": theta_E, "epl.slope": 2.1, "epl.e1": e1, "epl.e2": e2}
    values |= {"epl.centre_x": 0.02, "epl.centre_y": -0.03, "shear.gamma1": 0.03, "shear.gamma2": -0.02}
    values |= {"multipole4.a": amplitude.real, "multipole4.b": amplitude.imag}
    for component, profile in (("source", source), ("light", lights[0]), ("light2", lights[1])):
        values |= {f"{component}.{ours}": profile[theirs] for theirs, ours in names.items()}
    values = {name: values[name] for name in scene.names}  # without the shared centre of the second component
    detector = Detector((n, n), SCALE, PSF.image(kernel, pixel_scale=SCALE), supersample=supersample)
    ours = scene.render(scene.pack(values), tensor([[5.0, 3.0, 1.0]]), detector)[0].numpy()
    assert np.abs(ours - expected).max() < 1e-6 * expected.max()
