"""`--report` of `darklens fit` and `darklens search`: one page, also of an interrupted run."""

import base64
import os
import re

import numpy as np
import pytest
from commandline import darklens, rows_of

from darklens.fit import perturber_table
from darklens.scene import PSF, SIE, Detector, Scene, Sersic

FIXED = [f"{name}=0" for name in ("sie.centre_x", "sie.centre_y", "sie.e2", "shear.gamma1", "shear.gamma2")]
FIXED += ["source.e1=0", "source.e2=0", "source.n=1", "source.R_e=0.15", "source.centre_x=0.08", "source.centre_y=0.05"]
NAME = "lens<b>&.npz"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A npz file of a smooth lens, whose name is HTML."""
    path = tmp_path_factory.mktemp("lenses") / NAME
    psf = PSF.gaussian(fwhm=0.3, pixel_scale=0.15)
    source = Sersic(R_e=0.15, n=1.0, e1=0.0, e2=0.0, centre_x=0.08, centre_y=0.05)
    scene = Scene([SIE(theta_E=1.1, e1=0.1, e2=0.0, centre_x=0.0, centre_y=0.0)], [source])
    image = scene.image({}, {"source.amplitude": 1.0}, Detector((24, 24), 0.15, psf))
    noise = 0.03 * image.max()
    noisy = image + np.random.default_rng(1).normal(0, noise, (1, 24, 24))
    np.savez(path, images=noisy, noise=np.full((1, 24, 24), noise), psf=psf.kernel.numpy(), pixel_scale=0.15)
    return path


def test_an_interrupted_search_continues_to_a_page_with_all_figures(stack, tmp_path, monkeypatch, capsys):
    out, report = tmp_path / "search.csv", tmp_path / "search.html"
    words = ["search", f"{stack}#0", tmp_path / "missing.fits", "--model", "sie-shear", *FIXED, "--no-compile"]
    words += ["--out", out, "--report", report, "--z-lens", "0.3"]
    search_one, count = perturber_table.search_one, []

    def interrupted(label, *arguments):
        count.append(label)
        if len(count) == 2:
            raise KeyboardInterrupt
        return search_one(label, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(perturber_table, "search_one", interrupted)
        assert darklens(*words) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["search.csv.unfinished"]
    assert darklens(*words) == 3
    assert count == [f"{stack}#0", str(tmp_path / "missing.fits")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.csv", "search.html"]
    assert re.search(r"Report \([\d.]+ kB\): .*search\.html", capsys.readouterr().out)
    html = report.read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 1 and len(html) < 200_000
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")
    assert "lens&lt;b&gt;&amp;.npz#0" in html and "<b>" not in html and "missing.fits: no such file" in html
    assert "z_lens = 0.3" in html and "sie-shear sie.centre_x=0" in html
    assert [row["status"] for row in rows_of(out)] == ["ok", "error"]


def test_a_page_of_fits(stack, tmp_path):
    report = tmp_path / "new" / "fits.html"
    words = ["fit", f"{stack}#0", "--model", "sie-shear", *FIXED, "--no-compile", "--out", tmp_path / "fits.csv"]
    assert darklens(*words, "--report", report, "--maps", tmp_path / "maps") == 0
    html = report.read_text(encoding="utf-8")
    assert (
        "1 of 1 image fitted." in html
        and html.count("<img") == 1
        and re.search(r"theta_E = 1\.\d+ ± 0\.0\d+ arcsec", html)
    )
    assert len(list((tmp_path / "maps").iterdir())) == 2


@pytest.mark.parametrize("command", ["fit", "search"])
def test_no_page_is_written_over_an_input_a_table_or_a_pipe(stack, tmp_path, capsys, command):
    os.mkfifo(tmp_path / "pipe")
    words = [command, stack, "--model", "sie-shear", "--out", tmp_path / "t.csv", "--report"]
    for target, reason in (
        (tmp_path / "pipe", "a FIFO"),
        (stack, "is the input"),
        (tmp_path / "t.csv", "same command"),
    ):
        assert darklens(*words, target) == 2
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
