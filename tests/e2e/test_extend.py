"""A profile, a population, a system and an importer of a user's own: one new file each, no edits elsewhere.

The files are those of docs/how-to/extend.md, so what a reader copies is what is tested.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commandline import darklens, rows_of

from darklens import plugins
from darklens.data.importers import IMPORTERS
from darklens.data.store import Store
from darklens.doctor import selftest
from darklens.errors import ConfigError
from darklens.models.zoo import SYSTEMS
from darklens.physics.profiles import PROFILES
from darklens.populations.population import POPULATIONS
from darklens.recipes import RECIPES
from darklens.training.recipe import get

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs/how-to/extend.md").read_text(encoding="utf-8")
_FILE = r"^`([a-z_]+\.(?:py|yaml))`(?:(?!```).)*```(?:python|yaml)\n(.*?)```"
FILES = dict(re.findall(_FILE, PAGE, re.MULTILINE | re.DOTALL))
SMALL = ["field.n_pixels=48", "field.pixel_scale=0.1", "psf.sigma=0.1"]


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Return what writes files of the page into a folder and registers them as plug-ins; all is undone at the end."""
    for registry in (PROFILES, SYSTEMS, IMPORTERS, POPULATIONS, RECIPES):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_state", {"done": False})
    monkeypatch.chdir(tmp_path)

    def write(*names):
        for name in names:
            Path(name).write_text(FILES[name], encoding="utf-8")
        monkeypatch.setenv(plugins.VARIABLE, ",".join(name for name in names if name.endswith(".py")))

    return write


@pytest.mark.parametrize("name", FILES)
def test_each_is_one_file_of_less_than_30_lines(name):
    assert len(FILES[name].splitlines()) < 30


def test_the_page_has_one_of_each():
    files = {"plummer.py", "clumps.yaml", "longer_curriculum.yaml", "tiny_net.py", "tiny_net.yaml", "pairs.py"}
    assert set(FILES) == files


def test_a_recipe_extends_another(plug_in):
    plug_in("longer_curriculum.yaml")
    recipe = get("longer_curriculum.yaml")
    scales = [(stage.epochs, stage.substructure_scale) for stage in recipe.stages]
    assert recipe.data.images_per_epoch == 4096 and scales == [(3, 20), (2, 4), (3, 2), (28, 1), (4, 1)]


def test_a_profile_is_tested_by_the_laws_and_simulated(plug_in):
    plug_in("plummer.py", "clumps.yaml")
    assert "plummer" in PROFILES
    missed, allowed = selftest._gradients()
    assert missed <= allowed
    missed, allowed = selftest._divergences()
    assert missed <= allowed
    assert darklens("simulate", "clumps.yaml", "--out", "clumps", "--n-per-class", "4", "--seed", "1", *SMALL) == 0
    store = Store(Path("clumps"))
    assert store.classes == ["no", "clumps"]
    there = store.truth("profile_plummer_is_there")
    assert there.shape[1] == 5 and (there[store.labels == 1] == 1).all() and (there[store.labels == 0] == 0).all()
    # The masses bend light: without them the images of the class are others.
    from darklens import populations
    from darklens.simulate.render import render
    from darklens.simulate.truth import draw

    population = populations.get("clumps.yaml", SMALL)
    truth = draw(population, 1, [1])
    bare = truth | {"profile_plummer_is_there": np.zeros_like(truth["profile_plummer_is_there"])}
    smooth, clumpy = render(population, bare), render(population, truth)
    assert float((clumpy - smooth).abs().max() / smooth.max()) > 0.01
    assert torch.isfinite(clumpy).all()


def test_a_system_is_trained_judged_and_used(plug_in):
    plug_in("tiny_net.py", "tiny_net.yaml")
    assert get("tiny_net.yaml").model.width == 16
    recipe = {
        "schema": 1,
        "name": "tiny",
        "description": "a system of a plug-in",
        "model": {"kind": "tiny_net", "width": 4},
        "stages": [{"task": "classify", "epochs": 1, "batch_size": 8}],
        "data": {"augment": {"kind": "dihedral"}},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert darklens("simulate", "deeplense-model-i", "--out", "s", "--n-per-class", "24", *SMALL) == 0
    assert darklens("train", "tiny.yaml", "--data", "s", "--out", "run") == 0
    assert darklens("evaluate", "run", "s", "--out", "judged") == 0
    np.save("lens.npy", Store(Path("s")).images([0])[0, 0])
    assert darklens("predict", "run", "lens.npy", "--out", "p.csv") == 0
    (row,) = rows_of(Path("p.csv"))
    assert row["status"] == "ok"
    assert sum(float(row[f"p_{name}"]) for name in ("no", "sphere", "vort")) == pytest.approx(1)


def test_an_importer_brings_its_files_into_a_store(plug_in, capsys):
    plug_in("pairs.py")
    images = np.random.default_rng(0).normal(size=(6, 20, 20))
    images[3] = 0
    np.savez("survey.npz", images=images, labels=[0, 1, 0, 1, 0, 7])
    assert darklens("import", "survey.npz", "--format", "pairs", "--out", "store") == 3
    complaints = capsys.readouterr().err
    assert "survey.npz[3]: all pixels have the same value" in complaints and "survey.npz[5]: has label 7" in complaints
    store = Store(Path("store"))
    assert store.labels.tolist() == [0, 1, 0, 0] and store.classes == ["smooth", "lumpy"]
    np.testing.assert_array_equal(store.images([1])[0, 0], images[1].astype(np.float32))
    Path("survey.npz").write_bytes(b"PK nonsense")
    assert darklens("import", "survey.npz", "--format", "pairs", "--out", "other") == 2
    assert not Path("other").exists()


def test_worker_processes_load_what_the_variable_names(plug_in):
    plug_in("plummer.py", "clumps.yaml")
    words = ["--n-per-class", "4", "--workers", "2", "--shard-size", "4", *SMALL]
    assert darklens("simulate", "clumps.yaml", "--out", "s", *words) == 0


def test_without_the_plug_in_the_profile_is_unknown(plug_in, capsys):
    plug_in("clumps.yaml")
    assert darklens("simulate", "clumps.yaml", "--out", "s", "--n-per-class", "4") == 2
    assert "Unknown mass profile 'plummer'" in capsys.readouterr().err


def test_a_broken_plug_in_is_named(plug_in, monkeypatch, capsys):
    plug_in()
    Path("broken.py").write_text("import nothing_like_it\n")
    monkeypatch.setenv(plugins.VARIABLE, "broken.py")
    assert darklens("populations") == 2
    assert "The plug-in broken.py" in capsys.readouterr().err
    monkeypatch.setenv(plugins.VARIABLE, "missing.py")
    with pytest.raises(ConfigError, match=r"no such file: missing\.py"):
        plugins.load()


def test_recipes_and_populations_cannot_name_code(plug_in, tmp_path):
    """Whatever a recipe says, nothing is imported for it."""
    plug_in()
    marker = tmp_path / "executed"
    Path("evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for kind in ("evil.py", "evil", "evil:Net", "os.system"):
        recipe = {
            "schema": 1,
            "name": "evil",
            "description": "",
            "model": {"kind": kind},
            "stages": [{"task": "classify", "epochs": 1}],
        }
        Path("evil.yaml").write_text(yaml.safe_dump(recipe))
        assert darklens("train", "evil.yaml", "--data", "s", "--out", "run") == 2
    assert not marker.exists()


def test_masses_keep_to_the_card(plug_in, capsys):
    plug_in("plummer.py", "clumps.yaml")
    for override, complaint in {
        "classes.clumps.parameters.theta_E=99": "must lie between 0.0 and 10.0 arcsec",
        "classes.clumps.parameters.mass=1": "parameters of plummer are theta_E, core; got theta_E, core, mass",
        "classes.clumps.profile=plumer": "did you mean 'plummer'?",
    }.items():
        assert darklens("simulate", "clumps.yaml", override, "--out", "x", "--n-per-class", "1") == 2
        assert complaint in capsys.readouterr().err
