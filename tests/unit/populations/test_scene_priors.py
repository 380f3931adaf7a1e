"""Populations that are priors over a scene: what they accept, and the images that they give."""

import copy

import numpy as np
import pytest
import torch
from scene_population import TREE, normal, psf_image, survey

from darklens.config import load
from darklens.errors import ConfigError
from darklens.populations.population import Population
from darklens.scene.imaging import Detector
from darklens.scene.psf import PSF
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import columns, draw


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return survey(tmp_path_factory.mktemp("survey"))


def test_free_parameters_are_those_with_a_prior(population):
    truth = draw(population, 1, range(6))
    assert set(truth) == set(columns(population))
    assert {"theta_E", "epl.theta_E", "epl.slope", "multipole4.a", "source.amplitude", "disc.amplitude"} <= set(truth)
    assert not {"source.n", "epl.centre_x", "multipole4.b", "disc.e1", "bulge.e1"} & set(truth)
    np.testing.assert_array_equal(truth["theta_E"], truth["epl.theta_E"])
    assert ((truth["epl.slope"] > 1.8) & (truth["epl.slope"] < 2.3)).all() and np.ptp(truth["epl.slope"]) > 0


def test_images_are_those_of_the_scene_with_an_independent_psf(population):
    """The renderer of scenes, whose profiles and PSF are compared with lenstronomy's in tests/parity."""
    truth = {name: values[:1] for name, values in draw(population, 1, [0]).items()}
    scene = population.scene.scene
    values = {name: float(truth[name][0]) for name in scene.names}
    amplitudes = {name: float(truth[name][0]) for name in scene.amplitude_names}
    psf = PSF.image(psf_image(), pixel_scale=0.1, oversampling=2)
    expected = scene.image(values, amplitudes, Detector((40, 40), 0.1, psf, supersample=2))
    image = render(population, truth, dtype=torch.float64)[0].numpy()
    np.testing.assert_allclose(image, expected, rtol=1e-9, atol=1e-9 * expected.max())


def test_an_image_is_the_same_bytes_in_any_batch_and_substructure_changes_it(population):
    together, truth = simulate_batch(population, 1, range(6))
    for i in (5, 0, 1):
        np.testing.assert_array_equal(simulate_batch(population, 1, [i])[0][0], together[i])
    bare = {name: values for name, values in truth.items() if not name.startswith(("point", "line", "label"))}
    whole = {name: values for name, values in truth.items() if name != "label"}
    change = (render(population, whole) - render(population, bare)).abs().amax((1, 2))
    assert (change[0::3] < 1e-3).all() and (change[1::3] > 1).all() and (change[2::3] > 1).all()


def test_a_population_contains_its_psf_and_survives_a_round_trip(population, tmp_path):
    again = Population.model_validate_json(population.model_dump_json(by_alias=True))
    assert again == population and "lens" not in population.model_dump(by_alias=True)
    np.testing.assert_array_equal(again.psf.kernel(0.1).kernel.numpy(), psf_image().astype(np.float64))
    np.testing.assert_array_equal(simulate_batch(again, 2, [1])[0], simulate_batch(population, 2, [1])[0])


def test_conserved_mass_lowers_the_lens_of_any_slope(tmp_path):
    steep = copy.deepcopy(TREE["scene"])
    steep["mass"]["epl"]["slope"] = 2.4
    lens = survey(tmp_path, scene=steep, conserve_mass=True)
    before, after = draw(survey(tmp_path, scene=steep), 4, range(30)), draw(lens, 4, range(30))
    assert (after["theta_E"] <= before["theta_E"]).all() and (after["theta_E"][2::3] < before["theta_E"][2::3]).all()
    # Half a line inside the ring has half its mass there; M(<R) of the lens is theta_E^(slope - 1) R^(3 - slope).
    at = before["theta_E"]
    inside = at**2 - after["theta_E"] ** 1.4 * at**0.6
    points = ((before["point_theta_E"] ** 2) * (np.hypot(before["point_x"], before["point_y"]) < at[:, None])).sum(1)
    np.testing.assert_allclose(inside[1::3], points[1::3], rtol=1e-9, atol=1e-14)


def changed(path, value):
    tree = copy.deepcopy(TREE)
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("scene.mass.epl.slope", None, "epl.slope is missing"),
        ("scene.mass.epl.slope", {"kind": "normal", "mean": 2, "sigma": 0.1}, "cut a normal prior"),
        ("scene.mass.epl.theta_E", 0, "epl.theta_E can lie between 0 and 0"),
        ("scene.mass.epl.slop", 2, "slop"),
        ("scene.mass.epl.e1", "bulge.e3", "no parameter 'bulge.e3'"),
        ("scene.mass.epl", None, "mass needs a lens"),
        ("scene.mass.nfw", {"alpha_Rs": 0.01}, "nfw.R_s is missing"),
        ("scene.mass.epl.kind", "eppl", "epl"),
        ("scene.source.source.amplitude", None, "give either amplitude or magnitude"),
        ("scene.source.source.amplitude", -1, "must be positive"),
        ("scene.source.source.magnitude", 24, "give either amplitude or magnitude"),
        ("scene.source.source.kind", "shapelets", "light is of kind sersic or images"),
        ("scene.source", {}, "at least 1"),
        ("scene.lens_light.source", {"kind": "sersic", "amplitude": 1, "R_e": 1, "n": 1}, "two components are named"),
        ("source", {"kind": "sersic"}, "source"),
        ("scene", None, "lens and source are needed"),
        ("conserve_mass", True, None),
        ("field.supersample", 3, "multiple of psf.oversampling"),
        ("psf.file", "absent.npy", "absent.npy"),
        ("psf", {"kind": "image"}, "needs a file"),
        ("psf", {"kind": "image", "values": "AAAA", "shape": [2, 2]}, "do not have its shape"),
        ("psf", {"kind": "image", "values": "?", "shape": [1, 1]}, "not base64"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, path, value, sentence):
    tree = changed(path, value)
    if sentence is None:
        survey(tmp_path, **tree)
        return
    if path == "scene":
        tree = {key: item for key, item in tree.items() if key != "scene"}
        with pytest.raises(ConfigError, match=sentence):
            load(Population, tree)
        return
    with pytest.raises(ConfigError, match=sentence) as error:
        survey(tmp_path, **tree)
    assert "\n" not in str(error.value)


def test_conserve_mass_needs_a_lens_that_can_vary(tmp_path):
    tree = changed("scene.mass.epl.theta_E", 1.2)
    with pytest.raises(ConfigError, match=r"conserve_mass lowers epl\.theta_E"):
        survey(tmp_path, scene=tree["scene"], conserve_mass=True)


def test_a_magnitude_gives_the_flux_of_an_instrument(tmp_path):
    scene = copy.deepcopy(TREE["scene"])
    source = scene["source"]["source"]
    del source["amplitude"], scene["lens_light"]
    source |= {"magnitude": 22, "R_e": 0.1, "centre_x": 0, "centre_y": 0}
    scene["mass"] = {"sis": {"theta_E": normal(0.011, 1e-4, 0.0105, 0.0115)}}  # it hardly magnifies
    noise = {"kind": "instrument", "name": "hst-wfc3-f160w"}
    field = {"n_pixels": 60, "pixel_scale": 0.05, "supersample": 4}
    psf = {"kind": "gaussian", "sigma": 0.05}
    lens = survey(tmp_path, scene=scene, noise=noise, field=field, psf=psf)
    flux = render(lens, draw(lens, 1, [0]), dtype=torch.float64).sum()
    expected = lens.noise.instrument.rate(22.0)
    assert float(flux) == pytest.approx(expected, rel=0.3)
