"""Sources from a user's cut-outs of galaxies."""

import copy

import numpy as np
import pytest
import torch
from astropy.io import fits
from scene_population import TREE, survey

from darklens import populations
from darklens.errors import ConfigError
from darklens.fit.scene_lens import SceneLens
from darklens.populations import galaxies
from darklens.populations.population import Population
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import draw


def blob(side=41, sigma=4.0, at=(0.0, 0.0), noise=0.0, sky=0.0):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    image = np.exp(-0.5 * ((x - at[0]) ** 2 + (y - at[1]) ** 2) / sigma**2)
    return image + sky + noise * np.random.default_rng(0).normal(size=image.shape)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "galaxies"
    path.mkdir()
    fits.PrimaryHDU(blob(noise=0.01, sky=3.0)).writeto(path / "a.fits")
    np.save(path / "b.npy", blob(side=31, at=(3, -2)).astype(np.float32))
    return path


def population(folder, *overrides):
    source = (
        f"source={{kind: images, folder: {folder}, pixel_scale: 0.03, magnitude: 22, angle: {{kind: uniform, low: 0, "
        "high: 360}, position: {kind: polar, radius: {kind: uniform, low: 0, high: 0.2}}}"
    )
    return populations.get("realistic-hst", [source, "field.n_pixels=64", *overrides])


def test_images_are_simulated_from_the_galaxies(folder):
    chosen = population(folder)
    images, truth = simulate_batch(chosen, 0, range(12))
    assert np.isfinite(images).all() and set(truth["source_galaxy"]) == {0.0, 1.0}
    assert chosen.source.sha256 == galaxies.digest(sorted(folder.iterdir()))
    alone, _ = simulate_batch(chosen, 0, [7])
    assert alone[0].tobytes() == images[7].tobytes()


def test_an_unlensed_galaxy_keeps_its_brightness_place_and_orientation(folder):
    chosen = population(
        folder,
        "source.first=0.5",
        "source.angle=90",
        "source.position={kind: cartesian, x: 0.4, y: 0}",
        "source.size=2",
        "lens.theta_E=1.0e-9",
        "lens.gamma=0",
        "lens_light=null",
        "conserve_mass=false",
    )
    rate = render(chosen, draw(chosen, 0, [0]), dtype=torch.float64)[0].numpy()
    assert rate.sum() == pytest.approx(chosen.noise.instrument.rate(22.0), rel=0.01)
    axis = (np.arange(64) - 31.5) * 0.08
    x, y = (rate.sum(0) * axis).sum() / rate.sum(), (rate.sum(1) * axis).sum() / rate.sum()
    # The blob lies at (3, -2) pixels; twice the size, turned by 90 degrees: (2, 3) pixels of 0.06 arcsec.
    assert (x, y) == (pytest.approx(0.4 + 2 * 0.06, abs=0.01), pytest.approx(3 * 0.06, abs=0.01))


CUTOUT = {
    "kind": "images",
    "pixel_scale": 0.02,
    "amplitude": 500,
    "first": 0.5,
    "size": {"kind": "uniform", "low": 1, "high": 2},
    "angle": 0,
    "position": {"kind": "cartesian", "x": 0.1, "y": {"kind": "uniform", "low": -0.1, "high": 0.1}},
}


def scene_with(section, light, **lights):
    """The scene of the tests with one component of light in a section, and other lights in the other sections."""
    return copy.deepcopy(TREE["scene"]) | {"source": {}, "lens_light": {}} | {section: {"galaxy": light}} | lights


def test_a_galaxy_is_a_source_of_any_scene(folder, tmp_path):
    """A Gaussian cut-out and a Gaussian profile (Sersic index 0.5) have the same arcs."""
    np.save(folder / "b.npy", blob(side=81, sigma=8.0))
    chosen = survey(tmp_path, scene=scene_with("source", CUTOUT | {"folder": str(folder)}))
    truth = draw(chosen, 1, range(4))
    assert set(truth) >= {"galaxy.size", "galaxy.galaxy", "galaxy.y", "galaxy.amplitude", "epl.slope"}
    sigma = 8 * 0.02 * truth["galaxy.size"]
    values = {"R_e": sigma * np.sqrt(2 * np.log(2)), "centre_x": truth["galaxy.x"], "centre_y": truth["galaxy.y"]}
    free = {"kind": "uniform", "low": -0.6, "high": 0.6}
    profile = {"kind": "sersic", "n": 0.5, "amplitude": free | {"low": 1e-3, "high": 1e3}, "R_e": free | {"low": 0.01}}
    profile |= {"centre_x": free, "centre_y": free}
    peak = 500 * 0.1**2 / (2 * np.pi * sigma**2)  # per pixel of 0.1 arcsec
    same = {f"galaxy.{name}": value for name, value in values.items()} | {"galaxy.amplitude": peak / 2}
    other = survey(tmp_path, scene=scene_with("source", profile))
    expected = render(other, truth | same, dtype=torch.float64)
    image = render(chosen, truth, dtype=torch.float64)
    assert (image - expected).abs().max() < 0.02 * expected.max()
    together, _ = simulate_batch(chosen, 1, range(4))
    np.testing.assert_array_equal(simulate_batch(chosen, 1, [2])[0][0], together[2])


def test_a_galaxy_is_lens_light_of_any_scene(folder, tmp_path):
    faint = {"kind": "sersic", "amplitude": 1e-6, "R_e": 0.1, "n": 1}
    light = CUTOUT | {"folder": str(folder), "size": 0.5, "position": {"kind": "cartesian", "x": 0.5, "y": 0}}
    chosen = survey(tmp_path, scene=scene_with("lens_light", light, source={"source": faint}))
    image = render(chosen, draw(chosen, 1, range(1)), dtype=torch.float64)[0]
    assert float(image.sum()) == pytest.approx(500, rel=0.01)  # a lens would have magnified it
    again = Population.model_validate_json(chosen.model_dump_json(by_alias=True))
    assert again.scene.images["galaxy"].sha256 == galaxies.digest([folder / "b.npy"])
    with pytest.raises(ConfigError, match="only Sersic light can be fitted"):
        SceneLens(chosen)


def test_sky_and_noise_do_not_become_light(folder):
    cleaned = galaxies.galaxy(folder / "a.fits").numpy()
    assert cleaned.sum() == pytest.approx(1) and cleaned.min() == 0
    assert cleaned[:3].max() == cleaned[:, -3:].max() == 0
    clean = blob() / blob().sum()
    assert np.abs(cleaned - clean).max() < 0.05 * clean.max()


def test_other_files_than_those_of_the_recipe_are_refused(folder):
    chosen = population(folder)
    np.save(folder / "c.npy", blob())
    galaxies.files.cache_clear()
    with pytest.raises(ConfigError, match="those of the sha256"):
        galaxies.files(chosen.source)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda f: np.save(f / "bad.npy", np.where(blob() > 0.99, np.nan, blob())),
            "bad.npy.*NaN",
        ),
        (lambda f: np.save(f / "bad.npy", blob()[:30]), "bad.npy.*square"),
        (lambda f: (f / "bad.fits").write_bytes(b"not a FITS file" * 300), "bad.fits.*is not an npy, npz, FITS"),
        (lambda f: fits.PrimaryHDU().writeto(f / "bad.fits"), "bad.fits.*no two-dimensional image"),
        (lambda f: np.save(f / "bad.npy", blob(sigma=0.01, at=(20, 20))), "bad.npy.*nothing above its sky"),
        (lambda f: [p.unlink() for p in f.iterdir()], "no .fits or .npy cut-outs"),
    ],
)
def test_unusable_galaxies_are_named(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(ConfigError, match=sentence):
        population(folder)
    with pytest.raises(ConfigError, match="is not a folder"):
        population(folder / "absent")
