"""`darklens fit` on files: the columns of the table, exit codes, maps, overrides, and a batch with bad files."""

import math

import numpy as np
import pytest
from astropy.io import fits
from commandline import darklens, rows_of

from darklens.files import locked
from darklens.fit import scene_table
from darklens.fit.fit_result import FitResult
from darklens.fit.lens_measures import axis_ratio, measures
from darklens.fit.resumable_table import unfinished
from darklens.fit.scene_table import COLUMNS, row_of
from darklens.scene import EPL, PSF, Detector, Multipole, Observation, Scene, Sersic, Shear

N, SCALE = 40, 0.1
TRUTH = {
    "epl.theta_E": 1.2,
    "epl.slope": 2.0,
    "epl.e1": 0.05,
    "epl.e2": 0.09,
    "epl.centre_x": 0.02,
    "epl.centre_y": -0.01,
    "shear.gamma1": 0.03,
    "shear.gamma2": -0.02,
    "source.R_e": 0.2,
    "source.n": 1.2,
    "source.e1": 0.1,
    "source.e2": 0.0,
    "source.centre_x": 0.08,
    "source.centre_y": 0.05,
}
FIXED = [
    *("--model", "sie-shear", "sie.theta_E=1", "shear.gamma1=0", "shear.gamma2=0", "source.R_e=0.2", "source.n=1"),
    *(f"{name}.{key}=0" for name in ("sie", "source") for key in ("e1", "e2", "centre_x", "centre_y")),
]
INTERFACE = (
    "path,status,message,converged,chi2_per_pixel,theta_E,theta_E_error,slope,q,phi,gamma1,gamma2,centre_x,centre_y,"
    "a3,a4,seconds"
)


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    """A folder of one observation; its image does not state the pixel scale."""
    folder = tmp_path_factory.mktemp("lenses") / "J0000+0000"
    folder.mkdir()
    psf = PSF.gaussian(fwhm=0.2, pixel_scale=SCALE)
    scene = Scene([EPL(), Shear()], [Sersic()])
    image = scene.image(TRUTH, {"source.amplitude": 1.0}, Detector((N, N), SCALE, psf))
    noise = 0.02 * image.max()
    noisy = image + np.random.default_rng(1).normal(0, noise, image.shape)
    fits.writeto(folder / "image.fits", noisy)
    fits.writeto(folder / "noise.fits", np.full((N, N), noise))
    fits.writeto(folder / "psf.fits", psf.kernel.numpy())
    return folder


def test_a_batch_with_good_and_bad_files(lens, tmp_path, capsys):
    (tmp_path / "bad.fits").write_bytes(b"SIMPLE  = nonsense")
    words = ["fit", lens.parent, tmp_path / "bad.fits", tmp_path / "missing.fits", "--pixel-scale", SCALE]
    words += ["epl.slope=2", "--maps", tmp_path / "maps", "--out", tmp_path / "fits.csv"]
    assert darklens(*words) == 3
    assert ",".join(COLUMNS) == INTERFACE
    assert (tmp_path / "fits.csv").read_text().startswith(f"{INTERFACE},slope_error,")
    good, bad, missing = rows_of(tmp_path / "fits.csv")
    assert good["path"] == str(lens) and good["status"] == "ok" and good["message"] == ""
    assert good["converged"] == "yes" and 0.8 < float(good["chi2_per_pixel"]) < 1.2
    q, phi = (1 - math.hypot(0.05, 0.09)) / (1 + math.hypot(0.05, 0.09)), math.degrees(math.atan2(0.09, 0.05)) / 2
    truth = {"theta_E": 1.2, "slope": 2.0, "q": q, "phi": phi, "gamma1": 0.03, "gamma2": -0.02, "centre_x": 0.02}
    for name, value in truth.items():
        error = float(good[f"{name}_error"])
        assert abs(float(good[name]) - value) < 5 * error + 1e-12, name
    assert float(good["slope_error"]) == 0 and good["a4"] == "" and "epl.slope" not in good
    assert float(good["source.n"]) == pytest.approx(1.2, rel=0.3) and float(good["source.amplitude"]) > 0
    assert good["changes"] == "" and good["at_bounds"] == ""
    for row, sentence in ((bad, "truncated or damaged"), (missing, "no such file")):
        assert row["status"] == "error" and sentence in row["message"] and row["theta_E"] == ""
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("darklens: ")]
    assert len(errors) == 2
    assert (tmp_path / "maps" / "J0000+0000.png").read_bytes().startswith(b"\x89PNG")
    maps = np.load(tmp_path / "maps" / "J0000+0000.npz")
    assert maps["residual"].shape == maps["model"].shape == (N, N) and maps["residual"].std() < 1.2
    assert maps["source"].max() > 0.9 * float(good["source.amplitude"])


def test_rows_of_a_stack_options_and_a_scene_of_a_file(lens, tmp_path):
    image, noise, psf = (fits.getdata(lens / f"{name}.fits") for name in ("image", "noise", "psf"))
    np.savez(tmp_path / "a.npz", images=np.stack([image, image]), noise=np.stack([noise, noise]), pixel_scale=SCALE)
    np.save(tmp_path / "psf.npy", psf)
    mask = np.zeros((N, N))
    mask[:2] = 1
    np.save(tmp_path / "mask.npy", mask)
    scene = Scene([EPL(slope=2.0), Shear()], [Sersic(n=1.2)])
    (tmp_path / "scene.yaml").write_text(scene.to_yaml())
    words = ["fit", tmp_path / "a.npz#1", "--model", tmp_path / "scene.yaml", "--out", tmp_path / "fits.csv"]
    words += ["--psf", tmp_path / "psf.npy", "--mask", tmp_path / "mask.npy", "source.e2=0"]
    assert darklens(*words) == 0
    (row,) = rows_of(tmp_path / "fits.csv")
    assert row["path"].endswith("a.npz#1") and row["changes"] == "80 pixels left out"
    assert float(row["theta_E"]) == pytest.approx(1.2, abs=0.02) and "source.e2" not in row


def test_a_source_on_a_grid(lens, tmp_path):
    words = ["fit", lens, "--pixel-scale", SCALE, "epl.slope=2", "--source-grid", "10", "--out", tmp_path / "fits.csv"]
    assert darklens(*words, "--maps", tmp_path / "maps", "--report", tmp_path / "fits.html") == 0
    (row,) = rows_of(tmp_path / "fits.csv")
    assert row["status"] == "ok" and float(row["theta_E"]) == pytest.approx(1.2, abs=0.02)
    assert float(row["chi2_per_pixel"]) < 1.2
    assert not any(name.startswith("source.") for name in row)
    assert "source grid" in (tmp_path / "fits.html").read_text()
    assert np.load(tmp_path / "maps" / "J0000+0000.npz")["source"].max() > 0


def test_multipoles_are_relative_to_theta_E():
    scene = Scene([EPL(theta_E=2.0), Multipole(4)], [Sersic()])
    parameters = dict.fromkeys(scene.names, 0.1) | {"multipole4.a": 0.03, "multipole4.b": -0.04}
    none = np.zeros((1, 1))
    result = FitResult(
        scene=scene,
        observation=Observation(none, none + 1, 0.1, None, none == 0),
        parameters=parameters,
        errors=dict.fromkeys(scene.names, 0.01),
        amplitudes={},
        model=none,
        chi2=1.0,
        n_pixels=1,
        converged=True,
        at_bounds=(),
        steps=1,
        seconds=1.0,
        covariance=np.eye(len(scene.names)) * 0.01**2,
        effective_amplitudes=1.0,
    )
    estimates = measures(result)
    assert estimates["a4"] == (pytest.approx(0.025), pytest.approx(0.005)) and math.isnan(estimates["a3"][0])
    assert math.isnan(estimates["gamma1"][0]) and estimates["slope"] == (0.1, 0.01)
    row = row_of(result)
    assert row["a4"] == "0.025" and row["a3"] == row["gamma2"] == "" and row["theta_E_error"] == "0"


def test_an_interrupted_run_continues(lens, tmp_path, monkeypatch):
    words = ["fit", lens, lens, "--pixel-scale", SCALE, "epl.slope=2", "--out", tmp_path / "fits.csv"]
    fitted, count = scene_table.fit_one, []

    def interrupted(label, *arguments):
        count.append(label)
        if len(count) == 2:
            raise KeyboardInterrupt
        return fitted(label, *arguments)

    monkeypatch.setattr(scene_table, "fit_one", interrupted)
    assert darklens(*words) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["fits.csv.unfinished"]
    with (tmp_path / "fits.csv.unfinished").open("a") as stream:
        stream.write('[1, {"label": "incompl')
    assert darklens(*words) == 0
    assert count == 3 * [str(lens)] and [path.name for path in tmp_path.iterdir()] == ["fits.csv"]
    first, second = rows_of(tmp_path / "fits.csv")
    assert {**first, "seconds": ""} == {**second, "seconds": ""}


def test_a_command_that_ends_before_its_first_row_leaves_no_file(lens, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scene_table, "fit_one", interrupted)
    assert darklens("fit", lens, "--pixel-scale", SCALE, "--out", tmp_path / "fits.csv") == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["fit", "search"])
def test_two_processes_do_not_write_one_table(lens, tmp_path, capsys, command):
    table = tmp_path / "t.csv"
    with locked(unfinished(table)):
        assert darklens(command, lens, "--pixel-scale", SCALE, "--out", table) == 2
    assert f"Another process is writing to {table}" in capsys.readouterr().err and not table.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "sie-sheer"], "did you mean 'sie-shear'"),
        (["epl.slop=2"], "did you mean 'slope'"),
        (["--model", "scene.yaml"], "scene.yaml does not exist"),
        (["--pixel-scale", "0"], "--pixel-scale must be positive"),
        (["psf.fwhm=0.1", "--psf", "psf.fits"], "give one PSF"),
        (["mass.epl={kind: nfw}"], "The scene has no main lens"),
        (FIXED, "The scene has no free parameter"),
    ],
)
def test_wrong_use_is_told_before_any_work(lens, tmp_path, capsys, words, sentence):
    assert darklens("fit", lens, *words, "--out", tmp_path / "fits.csv") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert sentence in error and not list(tmp_path.iterdir())


def test_no_input_is_overwritten(lens, tmp_path, capsys):
    assert darklens("fit", lens, "--out", lens / "noise.fits") == 2
    assert "is the input" in capsys.readouterr().err
    assert darklens("fit", "epl.slope=2", "--out", tmp_path / "fits.csv") == 2
    assert "Name the images or folders to fit" in capsys.readouterr().err


def test_errors_of_axis_ratio_and_angle_are_propagated():
    covariance = np.array([[0.004**2, 1e-5], [1e-5, 0.007**2]])
    e1, e2 = np.random.default_rng(0).multivariate_normal([0.1, -0.2], covariance, 100_000).T
    (q, q_error), (phi, phi_error) = axis_ratio((0.1, -0.2), covariance)
    e = np.hypot(e1, e2)
    assert q == pytest.approx(((1 - e) / (1 + e)).mean(), abs=1e-3)
    assert q_error == pytest.approx(((1 - e) / (1 + e)).std(), rel=0.03)
    angles = np.degrees(np.arctan2(e2, e1)) / 2
    assert (phi, phi_error) == (pytest.approx(angles.mean(), abs=0.1), pytest.approx(angles.std(), rel=0.03))
    assert axis_ratio((0.0, 0.0), np.eye(2))[0][0] == 1


@pytest.mark.parametrize("command", ["fit", "search"])
def test_compilation_without_a_compiler_is_told_before_any_work(lens, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr("shutil.which", lambda name: None)
    out = tmp_path / "table.csv"
    words = [command, lens, "--model", "sie-shear", "--pixel-scale", SCALE, "--compile", "--out", out]
    assert darklens(*words) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err and not out.exists()
