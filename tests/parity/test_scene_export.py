"""Exports of fits: lenstronomy renders the same image, and COOLEST's definitions give the same lens and light."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF as LenstronomyPSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from darklens.errors import ConfigError
from darklens.fit.fit_result import FitResult
from darklens.scene import (
    EPL,
    NFW,
    PSF,
    SIE,
    SIS,
    TNFW,
    Detector,
    LineMass,
    MultiGaussian,
    Multipole,
    Observation,
    PointMass,
    PseudoJaffe,
    Scene,
    Sersic,
    Shapelets,
    Shear,
    SourceGrid,
)

SCALE, N, WIDE = 0.05, 50, 60
CENTRE = {"centre_x": 0.0, "centre_y": 0.0}
KERNEL = np.exp(-0.5 * (np.mgrid[-5:6, -5:6] ** 2).sum(0) / 1.4**2)
KERNEL /= KERNEL.sum()
LENS = EPL(theta_E=0.8, slope=2.1, e1=0.08, e2=-0.12, centre_x=0.02, centre_y=-0.03)
SHEAR = Shear(gamma1=0.03, gamma2=-0.05)
SOURCE = Sersic(R_e=0.2, n=1.3, e1=0.1, e2=0.05, centre_x=0.1, centre_y=-0.05)
LIGHT = [
    Sersic(R_e=0.4, n=2.5, e1=0.05, e2=0.02, centre_x=0.012, centre_y=0.021),
    Sersic(R_e=1.0, n=1.0, e1=0.1, e2=0.0, centre_x="light.centre_x", centre_y="light.centre_y"),
]


def fitted(scene, amplitudes):
    """Return the result of a fit in which all parameters have the values that the scene fixes."""
    psf = PSF.image(KERNEL, pixel_scale=SCALE)
    weights = torch.tensor([list(amplitudes)], dtype=torch.float64)
    model = scene.render(torch.zeros(1, 0, dtype=torch.float64), weights, Detector((N, N), SCALE, psf))[0].numpy()
    return FitResult(
        scene=scene,
        observation=Observation(model, np.ones_like(model), SCALE, psf, np.ones_like(model, dtype=bool)),
        parameters={},
        errors={},
        amplitudes=dict(zip(scene.amplitude_names, amplitudes, strict=True)),
        model=model,
        chi2=1.0,
        n_pixels=N * N,
        converged=True,
        at_bounds=(),
        steps=1,
        seconds=1.0,
        covariance=np.zeros((0, 0)),
        effective_amplitudes=1.0,
    )


def rendered(exported):
    """Return the image that lenstronomy renders, the centre of a wider frame."""
    edge = -(WIDE - 1) / 2 * SCALE
    model = ImageModel(
        ImageData(np.zeros((WIDE, WIDE)), ra_at_xy_0=edge, dec_at_xy_0=edge, transform_pix2angle=np.eye(2) * SCALE),
        LenstronomyPSF("PIXEL", kernel_point_source=KERNEL),
        LensModel(exported["lens_model_list"]),
        LightModel(exported["source_light_model_list"]),
        LightModel(exported["lens_light_model_list"]),
    )
    arguments = (exported[f"kwargs_{role}"] for role in ("lens", "source", "lens_light"))
    return model.image(*arguments)[5:-5, 5:-5]


@pytest.mark.parametrize(
    ("scene", "tolerance"),
    [
        (Scene([LENS, SHEAR], [SOURCE], LIGHT), 1e-6),
        (Scene([SIE(theta_E=0.8, e1=0.1, e2=0.1, **CENTRE), SHEAR], [SOURCE]), 1e-6),
        (
            Scene(
                [
                    SIS(theta_E=0.7, centre_x=0.01, centre_y=0.02),
                    NFW(alpha_Rs=0.02, R_s=0.2, centre_x=0.5, centre_y=0.4),
                    TNFW(alpha_Rs=0.03, R_s=0.15, r_t=0.4, centre_x=-0.5, centre_y=0.4),
                    PseudoJaffe(theta_E=0.05, R_a=0.01, R_s=0.3, centre_x=0.3, centre_y=-0.6),
                    PointMass(theta_E=0.05, centre_x=-0.4, centre_y=-0.5),
                ],
                [SOURCE],
            ),
            1e-6,
        ),
        (
            Scene(
                [
                    EPL(theta_E=0.8, slope=2.0, e1=0.12, e2=0.0, centre_x=0.0, centre_y=0.0),
                    Multipole(4, a=0.01, b=-0.004),
                ],
                [SOURCE],
            ),
            1e-6,
        ),
        (Scene([LENS], [MultiGaussian(4, smallest=0.05, largest=0.3, e1=0.1, e2=-0.1, **CENTRE)]), 1e-6),
        (Scene([LENS], [Shapelets(3, beta=0.1, centre_x=0.05, centre_y=0.0)]), 1e-5),
    ],
    ids=["epl", "sie", "perturbers", "multipole", "gaussians", "shapelets"],
)
def test_lenstronomy_renders_the_image_of_a_fit(scene, tolerance):
    generator = np.random.default_rng(0)
    amplitudes = (
        [3.0, 0.7, 0.4] if len(scene.amplitude_names) == 3 else generator.uniform(1, 2, len(scene.amplitude_names))
    )
    result = fitted(scene, [float(value) for value in amplitudes])
    difference = np.abs(rendered(result.to_lenstronomy()) - result.model)
    assert difference.max() < tolerance * np.abs(result.model).max()


def fitted_with_grid(*, moves, core):
    """Return the result of a fit with a source grid."""
    angle = torch.arange(20, dtype=torch.float64)
    rays = torch.stack([0.85 * angle.cos(), 0.8 * angle.sin(), torch.full_like(angle, 1 / 20)])
    options = {"rays": rays, "reference": (0.03, -0.02, 0.15)} if moves else {}
    grid = SourceGrid(10, half_width=0.4, core=core, name="source", centre_x=0.02, centre_y=0.01, **options)
    bumps = np.exp(-((np.arange(10) - 4.5) ** 2) / 6)
    amplitudes = np.outer(bumps, bumps) + 0.3 * np.random.default_rng(1).random((10, 10))
    return fitted(Scene([LENS, SHEAR], grid), [float(value) for value in amplitudes.ravel()])


@pytest.mark.parametrize("moves", [False, True], ids=["fixed", "moved with the arcs"])
@pytest.mark.parametrize("core", [None, 0.1])
def test_lenstronomy_renders_a_source_grid_as_an_image(moves, core):
    result = fitted_with_grid(moves=moves, core=core)
    difference = np.abs(rendered(result.to_lenstronomy()) - result.model)
    assert difference.max() < 3e-3 * np.abs(result.model).max()


@pytest.mark.parametrize("moves", [False, True], ids=["fixed", "moved with the arcs"])
def test_coolest_has_a_source_grid_as_an_image(moves, tmp_path):
    """The image of its FITS file, at the positions that its field of view gives the pixels, lensed by lenstronomy."""
    result = fitted_with_grid(moves=moves, core=None)
    template = result.to_coolest(tmp_path / "lens.json")
    (profile,) = template["lensing_entities"][-1]["light_model"]
    pixels = profile["parameters"]["pixels"]
    image = fits.getdata(tmp_path / pixels["fits_file"]["path"])
    assert profile["type"] == "PixelatedRegularGrid" and image.shape == (pixels["num_pix_y"], pixels["num_pix_x"])
    (left, right), (bottom, top) = pixels["field_of_view_x"], pixels["field_of_view_y"]
    exported = result.to_lenstronomy()
    exported["kwargs_source"] = [
        {
            "image": image / SCALE**2,
            "amp": 1.0,
            "center_x": (left + right) / 2,
            "center_y": (bottom + top) / 2,
            "phi_G": 0.0,
            "scale": (right - left) / pixels["num_pix_x"],
        }
    ]
    difference = np.abs(rendered(exported) - result.model)
    assert difference.max() < 3e-3 * np.abs(result.model).max()
    assert json.loads((tmp_path / "lens.json").read_text()) == template


def test_profiles_that_cannot_be_exported_are_named():
    line = LineMass(mass=0.01, length=1.0, angle=0.0, centre_x=0.0, centre_y=0.0)
    with pytest.raises(ConfigError, match="lenstronomy has no profile for line"):
        fitted(Scene([LENS, line], [SOURCE]), [1.0]).to_lenstronomy()
    result = fitted(Scene([LENS, Multipole(4, a=0.01, b=0.0)], [SOURCE]), [1.0])
    with pytest.raises(ConfigError, match="does not rotate elliptical multipoles"):
        result.to_lenstronomy()
    with pytest.raises(ConfigError, match="COOLEST has no profile for multipole4"):
        result.to_coolest()


def values(profile):
    return {name: parameter["point_estimate"]["value"] for name, parameter in profile["parameters"].items()}


def axes(x, y, v):
    """Return positions along the major axis and across it; COOLEST counts phi from y towards negative x."""
    angle = np.radians(v["phi"] + 90)
    u, w = x - v["center_x"], y - v["center_y"]
    return u * np.cos(angle) + w * np.sin(angle), w * np.cos(angle) - u * np.sin(angle)


def test_coolest_describes_the_same_lens_and_light():
    scene = Scene([LENS, SHEAR], [SOURCE], LIGHT)
    result = fitted(scene, [3.0, 0.7, 0.4])
    template = json.loads(json.dumps(result.to_coolest(z_lens=0.3, z_source=0.9)))
    assert template["standard"] == "COOLEST" and template["mode"] == "MAP"
    field, lens, source = template["lensing_entities"]
    assert (field["type"], lens["redshift"], source["redshift"]) == ("MassField", 0.3, 0.9)
    assert lens["mass_model"][0]["id"] == "1-galaxy-mass-0-PEMD"
    generator = np.random.default_rng(1)
    x, y = generator.uniform(-1, 1, (2, 50))
    mass = values(lens["mass_model"][0])
    u, w = axes(x, y, mass)
    kappa = (
        (3 - mass["gamma"])
        / 2
        * (mass["theta_E"] / np.sqrt(mass["q"] * u**2 + w**2 / mass["q"])) ** (mass["gamma"] - 1)
    )
    ours = {k: torch.tensor(v, dtype=torch.float64) for k, v in scene.values_of("epl", {}).items()}
    at = (torch.from_numpy(x) - ours.pop("centre_x"), torch.from_numpy(y) - ours.pop("centre_y"))
    np.testing.assert_allclose(kappa, LENS.physics.convergence(*at, **ours), rtol=1e-10)
    shear = values(field["mass_model"][0])
    angle = 2 * np.radians(shear["phi_ext"] + 90)
    assert shear["gamma_ext"] * np.cos(angle) == pytest.approx(0.03)
    assert shear["gamma_ext"] * np.sin(angle) == pytest.approx(-0.05)
    for entity, components in ((source, ["source"]), (lens, ["light", "light2"])):
        for profile, name in zip(entity["light_model"], components, strict=True):
            v = values(profile)
            u, w = axes(x, y, v)
            radius = np.sqrt(v["q"] * u**2 + w**2 / v["q"])
            exponent = (1.9992 * v["n"] - 0.3271) * ((radius / v["theta_eff"]) ** (1 / v["n"]) - 1)
            expected = v["I_eff"] * np.exp(-exponent) * SCALE**2
            inside = {
                k: torch.full((1, 1, 1), value, dtype=torch.float64) for k, value in scene.values_of(name, {}).items()
            }
            position = [torch.from_numpy(p)[None, None] - inside.pop(f"centre_{k}") for p, k in ((x, "x"), (y, "y"))]
            basis = scene.profiles[name].basis(*position, **inside)[0, 0, 0].numpy()
            np.testing.assert_allclose(expected, basis * result.amplitudes[f"{name}.amplitude"], rtol=1e-6)


def test_redshifts_are_empty_unless_known():
    result = fitted(
        Scene([SIS(theta_E=1.0, centre_x=0.0, centre_y=0.0)], [Shapelets(1, beta=0.1, centre_x=0.0, centre_y=0.0)]),
        [1.0] * 3,
    )
    lens, source = result.to_coolest()["lensing_entities"]
    assert lens["redshift"] is source["redshift"] is None
    assert values(lens["mass_model"][0])["q"] == 1 and len(values(source["light_model"][0])["amps"]) == 3


def test_a_coolest_template_refers_to_the_files_beside_it(tmp_path):
    result = fitted(Scene([LENS], [SOURCE]), [1.0])
    template = result.to_coolest(tmp_path / "lens.json")
    assert json.loads((tmp_path / "lens.json").read_text()) == template
    grids = [template["observation"]["pixels"], template["observation"]["noise"]["noise_map"]]
    grids.append(template["instrument"]["psf"]["pixels"])
    expected = [result.observation.image, result.observation.noise_map, KERNEL]
    for grid, array in zip(grids, expected, strict=True):
        np.testing.assert_array_equal(fits.getdata(tmp_path / grid["fits_file"]["path"]), array)
        assert (grid["num_pix_y"], grid["num_pix_x"]) == array.shape
        assert grid["field_of_view_x"] == pytest.approx([-array.shape[1] * SCALE / 2, array.shape[1] * SCALE / 2])


def test_a_result_draws_itself(tmp_path):
    result = fitted(Scene([LENS], [SOURCE]), [1.0])
    replace(result, observation=replace(result.observation, used=result.model > 0.1)).plot(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
