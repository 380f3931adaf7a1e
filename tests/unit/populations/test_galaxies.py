"""Sources from a user's cut-outs of galaxies."""

import numpy as np
import pytest
import torch
from astropy.io import fits

from darklens import populations
from darklens.errors import ConfigError
from darklens.populations import galaxies
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
    with pytest.raises(ConfigError, match=r"source.sha256"):
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
