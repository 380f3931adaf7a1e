"""`darklens search` on files: the columns of the table, exit codes, maps, and wrong use."""

import numpy as np
import pytest
from commandline import darklens, rows_of

from darklens.fit.perturber_profiles import HaloPerturber
from darklens.fit.perturber_table import SEARCH_COLUMNS
from darklens.scene import PSF, SIE, Detector, Scene, Sersic

INTERFACE = (
    "path,status,message,detected,delta_chi2,threshold,x,y,log10_mass,log10_mass_error,chi2_per_pixel,"
    "chi2_per_pixel_smooth,seconds"
)
FIXED = ["sie.centre_x=0", "sie.centre_y=0", "shear.gamma1=0", "shear.gamma2=0", "source.e1=0", "source.e2=0"]


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    """A npz file of a lens with a halo of 10^10 M_sun at (0.9, 0.5)."""
    path = tmp_path_factory.mktemp("lenses") / "lens$x^$.npz"  # no formula in the title of its figure
    psf = PSF.gaussian(fwhm=0.2, pixel_scale=0.1)
    halo = HaloPerturber(log10_mass=10.0, centre_x=0.9, centre_y=0.5)
    source = Sersic(R_e=0.15, n=1.0, e1=0.0, e2=0.0, centre_x=0.08, centre_y=0.05)
    scene = Scene([SIE(theta_E=1.1, e1=0.1, e2=0.0, centre_x=0.0, centre_y=0.0), halo], [source])
    image = scene.image({}, {"source.amplitude": 1.0}, Detector((36, 36), 0.1, psf))
    noise = 0.02 * image.max()
    noisy = image + np.random.default_rng(1).normal(0, noise, image.shape)
    np.savez(path, images=noisy[None], noise=np.full((1, 36, 36), noise), psf=psf.kernel.numpy(), pixel_scale=0.1)
    return path


def test_a_table_of_a_lens_and_a_bad_file(lens, tmp_path, capsys):
    words = ["search", lens, tmp_path / "missing.fits", "--model", "sie-shear", *FIXED]
    assert darklens(*words, "--maps", tmp_path / "maps", "--out", tmp_path / "search.csv") == 3
    assert ",".join(SEARCH_COLUMNS) == INTERFACE == (tmp_path / "search.csv").read_text().splitlines()[0]
    assert "Perturbers detected in 1 of 2 images." in capsys.readouterr().out
    good, bad = rows_of(tmp_path / "search.csv")
    assert good["detected"] == "yes" and float(good["delta_chi2"]) > float(good["threshold"]) == 11
    assert np.hypot(float(good["x"]) - 0.9, float(good["y"]) - 0.5) < 0.15
    assert bad["status"] == "error" and "missing.fits" in bad["message"] and not bad["detected"]
    png, npz = sorted((tmp_path / "maps").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert png.suffix == ".png" and png.stat().st_size > 10_000
    with np.load(npz) as maps:
        assert maps["gain"].shape == maps["log10_mass_detectable"].shape == (len(maps["y"]), len(maps["x"]))


def test_a_search_with_a_source_grid(lens, tmp_path):
    words = ["search", lens, "--model", "sie-shear", *FIXED, "--source-grid", "10", "--threshold", "30"]
    assert darklens(*words, "--out", tmp_path / "search.csv") == 0
    (row,) = rows_of(tmp_path / "search.csv")
    assert row["detected"] == "yes" and float(row["threshold"]) == 30
    assert np.hypot(float(row["x"]) - 0.9, float(row["y"]) - 0.5) < 0.15


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--z-lens", "1.5"], "must be above --z-lens"),
        (["--threshold", "20", "--simulations", "20"], "exclude each other"),
        (["--source-grid", "10"], "needs a --threshold"),
        (["--source-grid", "10", "--simulations", "20"], "cannot be combined"),
        (["--source-grid", "3", "--threshold", "20"], "source-grid"),
        (["--concentration", "-1"], "--concentration must be positive"),
        (["--perturber", "tnfv"], "tnfv"),
        (["--z-source", "inf"], "below 1100"),
        (["--concentration", "inf"], "below 1000"),
        (["--threshold", "inf"], "below inf"),
        (["--n-max", "1000000000"], "n-max"),
        (["--seed", "99999999999999999999"], "seed"),
    ],
)
def test_wrong_use_is_told_before_any_work(lens, tmp_path, capsys, words, sentence):
    assert darklens("search", lens, *words, "--out", tmp_path / "search.csv") == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
