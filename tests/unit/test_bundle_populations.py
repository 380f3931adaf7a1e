"""Bundles whose population lies about its scene or the image of its PSF: one sentence each, from every command."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from commandline import darklens

from darklens import populations
from darklens.bundle import Bundle, storage
from darklens.bundle.contract import Contract
from darklens.errors import ConfigError, InputError
from darklens.locate import SHIPPED
from darklens.models.lens_residual import LensResidualConfig
from darklens.populations.population import Population
from darklens.simulate.batch import simulate_batch

N, SCALE = 12, 0.2
YAML = f"""
schema: 1
name: lenses
version: 1
description: Lenses.
field: {{n_pixels: {N}, pixel_scale: {SCALE}}}
psf: {{kind: image, file: psf.npy, normalise: true}}
scene:
  mass:
    epl: {{theta_E: {{kind: uniform, low: 0.7, high: 1.3}}, slope: 2.1}}
  source:
    source:
      kind: sersic
      amplitude: 100
      R_e: 0.2
      n: {{kind: uniform, low: 1, high: 3}}
      centre_x: {{kind: uniform, low: -0.3, high: 0.3}}
      centre_y: {{kind: uniform, low: -0.3, high: 0.3}}
classes:
  "no": {{kind: none}}
  sphere:
    kind: point_masses
    count: 3
    mass: {{kind: power_law, slope: -0.9, low: 1.0e+6, high: 1.0e+10}}
    radius: {{kind: uniform, low: 0, high: 2}}
noise: {{kind: poisson, sky: 10}}
"""


def encoded(*values):
    return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder of a bundle with a scene and a PSF image of 3 x 3 pixels."""
    folder = tmp_path_factory.mktemp("bundles")
    np.save(folder / "psf.npy", np.exp(-np.hypot(*np.mgrid[-1:2, -1:2])))
    (folder / "p.yaml").write_text(YAML)
    shipped = json.loads((SHIPPED / "lens_residual" / "bundle.json").read_text())
    model = LensResidualConfig(population=populations.get(str(folder / "p.yaml")), width=4)
    change = {"model": model, "n_pixels": N, "pixel_scale": SCALE, "classes": ["no", "sphere"], "calibration": None}
    change |= {"fallback": ""}
    contract = Contract.model_validate(shipped | change | {"ood_sha256": ""})
    torch.manual_seed(0)
    storage.write(folder / "bundle", contract, contract.build(), None)
    np.save(folder / "lens.npy", simulate_batch(model.population, 0, [0])[0][0, 0])
    return folder / "bundle"


def lying(bundle, target, change):
    """Copy a bundle, and change its population."""
    shutil.copytree(bundle, target)
    tree = json.loads((target / "bundle.json").read_text())
    change(tree["model"]["population"])
    (target / "bundle.json").write_text(json.dumps(tree))
    return target


def psf(**values):
    return lambda population: population["psf"].update(values)


def scene(section, name, **values):
    return lambda population: population["scene"][section].setdefault(name, {"kind": "sis"}).update(values)


def many(n):
    return lambda population: population["scene"]["mass"].update({f"sis{i}": {"kind": "sis"} for i in range(n)})


CIRCLE = {"centre_x": "epl.centre_y", "centre_y": "epl.centre_x"}
LIES = {
    "another shape": (psf(shape=[3, 4]), "do not have its shape"),
    "half a shape": (psf(shape=[3]), "psf.shape"),
    "an empty shape": (psf(shape=[0, 0], values=""), "need a shape of 1 to 513 pixels"),
    "a negative shape": (psf(shape=[-3, -3]), "need a shape of 1 to 513 pixels"),
    "a huge shape": (psf(shape=[10**9, 10**9]), "need a shape of 1 to 513 pixels"),
    "a long image": (psf(shape=[1, 10**6], values=encoded(*[1.0] * 10**6)), "need a shape of 1 to 513 pixels"),
    "no shape": (psf(shape=None), "need a shape of 1 to 513 pixels"),
    "a file in place of values": (psf(values=None, shape=None, file="/etc/passwd"), "psf.values is missing"),
    "neither": (psf(values=None, file=None), "needs a file"),
    "no base64": (psf(values="<b>no base64</b>"), "are not base64"),
    "not ASCII": (psf(values="\u00e4" * 48), "are not base64"),
    "NaN": (psf(values=encoded(*[np.nan] * 9)), "9 pixels that are NaN or infinite"),
    "infinite": (psf(values=encoded(1, 1, 1, 1, np.inf, 1, 1, 1, 1)), "1 pixels that are NaN or infinite"),
    "negative": (psf(values=encoded(*[-1.0] * 9)), "a PSF needs positive light"),
    "no light": (psf(values=encoded(*[0.0] * 9)), "sum to 0"),
    "a sum of 1e38": (psf(values=encoded(*[1e37] * 9), normalise=False), "divide them by their sum"),
    "an oversampling of 1e9": (psf(oversampling=10**9), "less than or equal to 16"),
    "many components": (many(10**5), "at most 20 items"),
    "a circle": (scene("mass", "epl", **CIRCLE), "in a circle"),
    "a tie to nothing": (scene("mass", "epl", slope="epl.nothing"), "There is no parameter 'epl.nothing'"),
    "a radius that is a position": (
        scene("mass", "epl", theta_E="source.centre_x"),
        "epl.theta_E can lie between -0.3",
    ),
    "a negative radius": (scene("mass", "epl", theta_E=-1), "epl.theta_E can lie between -1"),
    "a radius of 1e300": (scene("mass", "epl", theta_E=1e300), "less than or equal to 1000"),
    "HTML as a name": (scene("mass", "<b onclick=alert(1)>", theta_E=1), "should match pattern"),
    "a formula as a name": (scene("mass", "=1+1", theta_E=1), "should match pattern"),
    "HTML as a parameter": (scene("mass", "epl", **{"<script>": 1}), "Extra inputs are not permitted"),
    "a module as kind": (scene("mass", "os", kind="os.system"), "Unknown kind 'os.system'"),
    "no lens": (lambda p: p["scene"].update(mass={}), "mass needs a lens"),
    "no scene and no lens": (lambda p: p.pop("scene"), "lens and source are needed"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_sentence(bundle, tmp_path, lie):
    change, sentence = LIES[lie]
    folder = lying(bundle, tmp_path / "b", change)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        Bundle.load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'bundle.json'}: ") and "\n" not in message and len(message) < 1500


def test_a_contract_without_a_population_is_not_completed(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    tree = json.loads((tmp_path / "b" / "bundle.json").read_text())
    k_network = {"kind": "sis_autoencoder", "k_network": {"kind": "macro_fit"}}
    for model in (
        tree["model"],
        {"kind": "unrolled_residual"},
        k_network,
        {"kind": "ensemble", "members": [tree["model"]]},
    ):
        tree["model"] = {key: value for key, value in model.items() if key != "population"}
        for member in tree["model"].get("members", []):
            member.pop("population", None)
        (tmp_path / "b" / "bundle.json").write_text(json.dumps(tree))
        with pytest.raises(InputError, match="model: population must be a mapping, not a name"):
            Bundle.load(tmp_path / "b")


def test_a_huge_contract_is_not_read(bundle, tmp_path):
    folder = lying(bundle, tmp_path / "b", psf(values="A" * 60_000_000))
    with pytest.raises(InputError, match=r"bundle.json has 60.0 MB, which is too large"):
        Bundle.load(folder)


@pytest.mark.parametrize("lie", ["a file in place of values", "HTML as a name"])
@pytest.mark.parametrize(
    "words",
    ["predict {} lens.npy --out p.csv", "serve {} --port 0", "explain {} lens.npy --out e", "export {} --onnx m.onnx"],
)
def test_every_command_reports_it(bundle, tmp_path, monkeypatch, capsys, lie, words):
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundle.parent / "lens.npy", "lens.npy")
    lying(bundle, tmp_path / "b", LIES[lie][0])
    assert darklens(*words.format(tmp_path / "b").split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert LIES[lie][1] in line and sorted(p.name for p in tmp_path.iterdir()) == ["b", "lens.npy"]


def test_the_honest_bundle_predicts(bundle, tmp_path):
    assert darklens("predict", bundle, bundle.parent / "lens.npy", "--out", tmp_path / "p.csv") == 0


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        (np.ones((600, 3)), {}, "cut it to 513 or fewer a side"),
        (np.zeros((3, 3)), {}, "psf.npy: The PSF's values sum to 0"),
        (np.full((3, 3), np.nan), {}, "psf.npy: The PSF has 9 pixels that are NaN"),
        (np.full((3, 3), 1e300), {}, "psf.npy: The PSF has 9 pixels that are NaN or infinite"),
        (
            np.ones((3, 3)),
            {"pixel_scale": 0.1},
            "has pixels of 0.1 arcsec, which does not agree with psf.oversampling=1",
        ),
    ],
)
def test_a_file_that_is_no_psf_is_named(tmp_path, content, words, sentence):
    if words:
        np.savez(tmp_path / "psf.npz", psf=content, **words)
    else:
        np.save(tmp_path / "psf.npy", content)
    (tmp_path / "p.yaml").write_text(YAML.replace("psf.npy", "psf.npz" if words else "psf.npy"))
    with pytest.raises(ConfigError, match=re.escape(sentence)) as error:
        populations.get(str(tmp_path / "p.yaml"))
    assert str(tmp_path / "psf.np") in str(error.value)


def test_a_psf_is_selected_as_of_a_fit(tmp_path):
    kernel = np.exp(-np.hypot(*np.mgrid[-1:2, -1:2]))
    np.savez(tmp_path / "many.npz", psf=kernel, other=np.ones((4, 4)))
    for name in ("many.npz", "many.npz[psf]"):
        (tmp_path / "p.yaml").write_text(
            YAML.replace("psf.npy", name).replace("file: ", "file: '").replace(", norm", "', norm")
        )
        spec = populations.get(str(tmp_path / "p.yaml")).psf
        assert spec.shape == (3, 3) and spec.kernel(SCALE).kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("noise.sky", 1e18, "image 0 is not finite or has no contrast"),
        ("classes.sphere.mass", 1e18, "the substructure has more mass than the lens"),
        ("classes.sphere.mass", 1e300, "less than or equal to 1000"),
        ("classes.sphere.mass.slope", 1e20, "cannot be computed"),
    ],
)
def test_a_population_that_cannot_be_simulated_is_one_sentence(bundle, key, value, sentence):
    tree = yaml.safe_load(YAML) | {"psf": {"sigma": 0.1}, "conserve_mass": True}
    *keys, last = key.split(".")
    node = tree
    for name in keys:
        node = node[name]
    node[last] = value
    with pytest.raises((ConfigError, ValueError), match=re.escape(sentence)):
        simulate_batch(Population.model_validate(tree), 0, [0, 1])
