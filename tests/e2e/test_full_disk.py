"""`darklens fit` and `darklens search` on a disk that is full at any of their writes: what is finished stays."""

import io

import numpy as np
import pytest
from commandline import darklens, rows_of
from full_disk import Disk
from PIL import Image

from darklens.fit import perturber_table, scene_table, search_figure
from darklens.scene import PSF, SIE, Detector, Scene, Sersic

N, SCALE = 24, 0.15
FIXED = ["sie.centre_x=0", "sie.centre_y=0", "shear.gamma1=0", "shear.gamma2=0", "source.e1=0", "source.e2=0"]
SENTENCE = "cannot be written (the disk or the quota is full): free some space and repeat the command."


@pytest.fixture(scope="module")
def lenses(tmp_path_factory):
    """Two files of one lens each."""
    folder = tmp_path_factory.mktemp("lenses")
    psf = PSF.gaussian(fwhm=0.3, pixel_scale=SCALE)
    source = Sersic(R_e=0.15, n=1.0, e1=0.0, e2=0.0, centre_x=0.08, centre_y=0.05)
    scene = Scene([SIE(theta_E=1.1, e1=0.1, e2=0.0, centre_x=0.0, centre_y=0.0)], [source])
    image = scene.image({}, {"source.amplitude": 1.0}, Detector((N, N), SCALE, psf))
    noise = np.full((1, N, N), 0.05 * image.max())
    for name in "ab":
        observed = image[None] + np.random.default_rng(ord(name)).normal(0, noise)
        np.savez(folder / f"{name}.npz", images=observed, noise=noise, psf=psf.kernel.numpy(), pixel_scale=SCALE)
    return folder


@pytest.fixture(params=["fit", "search"])
def computed(request, monkeypatch):
    """Compute each lens once, draw nothing, and return the command and the titles of the lenses that it computes."""
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8)).save(png, "PNG")
    titles = []

    def draw(result, title, *, compact=False):
        titles.append(title) if compact else None
        return png.getvalue()

    for module in (scene_table, search_figure):
        monkeypatch.setattr(module, "draw", draw)
    results = {}
    names = ["fit", "find_perturbers"] if request.param == "search" else ["fit"]
    module = perturber_table if request.param == "search" else scene_table
    for name in names:
        function = getattr(module, name)

        def cached(observation, *arguments, function=function, **options):
            key = function, observation.image.tobytes()
            if key not in results:
                results[key] = function(observation, *arguments, **options)
            return results[key]

        monkeypatch.setattr(module, name, cached)
    monkeypatch.setattr(perturber_table.time, "process_time", lambda: 0.0)
    return request.param, titles


def contents(folder):
    return {
        str(path.relative_to(folder)): "" if path.suffix == ".npz" else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_finished_stays_on_a_full_disk(lenses, tmp_path, capsys, monkeypatch, computed):
    command, titles = computed
    disk = Disk(tmp_path, monkeypatch)

    def run(size):
        disk.written, disk.size, titles[:] = 0, size, []
        words = [command, lenses / "a.npz", lenses / "b.npz", "--model", "sie-shear", "--no-compile", *FIXED]
        out = tmp_path / "run"
        code = darklens(*words, "--out", out / "t.csv", "--maps", out / "maps", "--report", out / "t.html")
        return code, capsys.readouterr().err.splitlines()

    out = tmp_path / "run"
    assert run(None) == (0, [])
    complete, ends = contents(out), disk.ends[:]
    assert len(complete) == 6 and len(ends) >= 9  # four maps, table, report; the journal and its rows
    for end in ends:
        for file in sorted(out.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        code, errors = run(end - 1)
        assert code == 2 and len(errors) == 1 and errors[0].endswith(SENTENCE), (end, errors)
        finished = titles[:]
        left = contents(out)
        assert left.keys() <= complete.keys() | {"t.csv.unfinished"}, end
        assert all(content == complete[name] for name, content in left.items() if name in complete), end
        for path in out.rglob("*.npz"):
            with np.load(path) as maps:
                assert all(np.isfinite(maps[name]).any() or not maps[name].size for name in maps)
        code, errors = run(None)
        assert (code, errors) == (0, []), end
        assert contents(out) == complete, end
        assert len(finished) + len(titles) <= 3, end  # at most one lens is computed twice
    assert len(rows_of(out / "t.csv")) == 2
