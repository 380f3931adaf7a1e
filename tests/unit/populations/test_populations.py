"""What populations draw, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from darklens import populations, rng
from darklens.config import load
from darklens.errors import ConfigError
from darklens.populations import priors
from darklens.populations.population import Population
from darklens.simulate.batch import simulate_batch
from darklens.simulate.detection import observe
from darklens.simulate.truth import columns, draw


@pytest.mark.parametrize("name", populations.names())
def test_each_population_states_its_name_and_classes(name):
    population = populations.get(name)
    assert population.name == name and population.class_names == ["no", "sphere", "vort"]
    truth = draw(population, 0, range(6))
    assert list(truth) == list(columns(population))
    line = truth["line_mass"] > 0
    assert line.tolist() == [False, False, True] * 2
    if "point_theta_E" in truth:
        assert (truth["point_theta_E"] > 0).sum(1).tolist() == [0, 25, 0] * 2
    else:
        assert ((truth["halo_mass"] > 0).sum(1) > 0).tolist() == [False, True, False] * 2


def test_common_test_i_has_the_measured_priors():
    truth = draw(populations.get("common-test-i"), 0, range(900))
    gamma, direction = np.hypot(truth["gamma1"], truth["gamma2"]), np.arctan2(truth["gamma2"], truth["gamma1"]) / 2
    assert truth["theta_E"].mean() == pytest.approx(1.28, abs=0.02)
    assert truth["theta_E"].std() == pytest.approx(0.15, abs=0.02)
    assert truth["theta_E"].min() >= 0.7 and truth["theta_E"].max() <= 1.9
    assert gamma.max() <= 0.3 and direction.max() <= 0 and np.degrees(direction.min()) >= -6.283
    assert np.hypot(truth["source_x"], truth["source_y"]).max() <= 0.5
    assert (truth["source_q"].min() >= 0.4) and truth["source_q"].max() <= 1
    vort, sphere = slice(2, None, 3), slice(1, None, 3)
    fraction = (truth["line_mass"] / truth["theta_E"] ** 2)[vort]
    assert fraction.min() >= 0.02 and fraction.max() <= 0.05
    assert truth["line_length"][vort].min() >= 1 and truth["line_length"][vort].max() <= 3
    total = ((truth["point_theta_E"] ** 2).sum(1) / truth["theta_E"] ** 2)[sphere]
    assert total.mean() == pytest.approx(0.038, abs=0.004)  # 3.8 % of the lens for dN/dm ~ m^-0.9
    heavy = ((truth["point_theta_E"] / truth["theta_E"][:, None]) ** 2 > 4e-3)[sphere].sum(1).mean()
    assert heavy == pytest.approx(3.6, abs=0.4)


def test_the_isotropic_variant_has_all_directions():
    truth = draw(populations.get("common-test-i-isotropic"), 0, range(600))
    direction = np.arctan2(truth["gamma2"], truth["gamma1"])
    assert np.histogram(direction, bins=4, range=(-math.pi, math.pi))[0].min() > 110


def test_deeplense_model_i_and_its_switches():
    population = populations.get("deeplense-model-i")
    truth = draw(population, 0, range(30))
    assert truth["theta_E"] == pytest.approx(1.2815, abs=1e-3)
    assert (truth["source_q"][0], truth["source_angle"][0]) == (pytest.approx(0.7522, abs=1e-4), math.radians(67.5))
    corrected = populations.get("deeplense-model-i", ["lens.theta_E.legacy_distances=false"])
    assert draw(corrected, 0, range(3))["theta_E"] == pytest.approx(1.6645, abs=1e-3)


@pytest.mark.parametrize(("legacy", "poisson_draws"), [("true", 2), ("false", 1)])
def test_noise_of_an_exposure_has_the_stated_variance(legacy, poisson_draws):
    population = populations.get("deeplense-model-i", [f"noise.legacy_noise={legacy}"])
    rate, exposure = 0.2, 2000.0
    truth = {"exposure": np.array([exposure])}
    images = observe(population, torch.full((1, 150, 150), rate), truth, seed=0, indices=[0]).numpy()
    expected = poisson_draws * rate * exposure + (population.noise.background_rms * exposure) ** 2
    assert images.var() == pytest.approx(expected, rel=0.05)
    assert images.mean() == pytest.approx(rate * exposure, rel=0.01)


def test_stored_images_are_whole_counts_scaled_to_their_range():
    images, _ = simulate_batch(populations.get("common-test-i"), 0, [0, 1, 2])
    for image in images[:, 0].astype(np.float64):
        levels = np.unique(image)
        per_count = 1 / np.diff(levels).min()
        counts = image * per_count
        np.testing.assert_allclose(counts, counts.round(), atol=0.05)
        corner = counts[:12, :12].round()
        assert corner.var() == pytest.approx(10, rel=0.5)  # a sky of 10 counts
        assert (image.min(), image.max()) == (0, 1) and 600 < per_count < 1000


@pytest.mark.parametrize("name", ["no", "sphere", "vort"])
def test_conserved_mass_is_what_the_ring_held_before(name):
    plain = populations.get("common-test-i")
    kept = populations.get("common-test-i", ["conserve_mass=true"])
    indices = [plain.class_names.index(name) + 3 * k for k in range(8)]
    before, after = draw(plain, 0, indices), draw(kept, 0, indices)
    for i in range(8):
        ring = before["theta_E"][i]
        inside = sum(
            t**2
            for t, x, y in zip(before["point_theta_E"][i], before["point_x"][i], before["point_y"][i], strict=True)
            if math.hypot(x, y) < ring
        )
        if before["line_mass"][i]:
            s = (np.arange(100_000) + 0.5) / 100_000 - 0.5
            x = before["line_x"][i] + s * before["line_length"][i] * math.cos(before["line_angle"][i])
            y = before["line_y"][i] + s * before["line_length"][i] * math.sin(before["line_angle"][i])
            inside += before["line_mass"][i] * float((np.hypot(x, y) < ring).mean())
        assert after["theta_E"][i] * ring + inside == pytest.approx(ring**2, rel=1e-5)
        assert np.array_equal(before["point_theta_E"][i], after["point_theta_E"][i])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lens.gama=0", "did you mean 'gamma'"),
        ("lens.theta_E=-1", "lens.theta_E.*positive"),
        ("lens.theta_E={kind: of_mass, mass: 1e12, z_lens: 1, z_source: 0.5}", "z_source"),
        ("lens.gamma={kind: uniform, low: 0, high: 1.5}", "lens.gamma"),
        ("source.q={kind: uniform, low: 0, high: 1}", "source.q"),
        ("source.R_e=0", "source.R_e"),
        ("source.n={kind: uniform, low: 2, high: 1}", "low .* must not exceed"),
        *((f"field.pixel_scale={scale}", "field.pixel_scale") for scale in (0, 1e-300, 1e300)),
        ("psf.sigma=1e9", "too wide"),
        ("psf.truncate=1e9", "too wide"),
        (f"classes={{{', '.join(f'c{i}: {{kind: none}}' for i in range(101))}}}", "at most 100 classes"),
        ("field.n_pixels=100000", "field.n_pixels"),
        ("noise.sky=-1", "noise.*sky"),
        ("name=Bad Name", "name"),
        ("lens.e1={kind: normal, mean: 0, sigma: 0.3}", "lens.e1.*between -0.7 and 0.7"),
        ("source.amplitude=.nan", "source.*amplitude.*finite"),
        ("source.n=0.1", "source.*n.*Sersic index"),
        ("source.magnitude=22", "source.*either amplitude or magnitude"),
        ("classes.sphere.mass=-1", "classes.sphere.*mass.*positive"),
        ("classes.vort.length=0", "classes.vort.*length.*positive"),
        ("noise={kind: instrument, name: hst-wfc3-f160}", "did you mean 'hst-wfc3-f160w'"),
        (
            "lens_light={kind: sersic, magnitude: 20, R_e: 1, n: 4, q: 1, angle: 0, position: "
            "{kind: cartesian, x: 0, y: 0}}",
            "lens_light.magnitude needs noise of kind instrument",
        ),
    ],
)
def test_impossible_values_are_refused_by_name(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        populations.get("common-test-i", [override])


@pytest.mark.parametrize("name", ["../../x", "a/b", "a|b", "<b>", "=1", "x\x1b", "", "unknown"])
def test_names_of_classes_are_safe_as_folders_columns_and_text(name):
    """`simulate --format deeplense` writes one folder for each class."""
    population = populations.get("common-test-i").model_dump(by_alias=True)
    population["classes"][name] = population["classes"].pop("vort")
    with pytest.raises(ValueError, match="the name of a class"):
        Population.model_validate(population)


def test_one_class_is_not_enough():
    tree = populations.get("common-test-i").model_dump(mode="json", by_alias=True)
    with pytest.raises(ConfigError, match=r"classes.*two classes"):
        load(Population, tree | {"classes": {"only": {"kind": "none"}}})


def test_a_population_of_ones_own(tmp_path):
    text = populations.POPULATIONS["common-test-i"].read_text().replace("name: common-test-i", "name: mine")
    (tmp_path / "mine.yaml").write_text(text)
    assert populations.get(str(tmp_path / "mine.yaml")).name == "mine"
    with pytest.raises(ConfigError, match="does not exist"):
        populations.get("absent.yaml")


@pytest.mark.parametrize("name", ["common-test-i", "realistic-hst"])
def test_a_scale_of_substructure_multiplies_every_mass_and_nothing_else(name):
    population = populations.get(name)
    exact, scaled = (draw(p, 0, range(6)) for p in (population, population.with_substructure_scale(4.0)))
    for column, values in exact.items():
        if column in ("line_mass", "halo_mass"):
            np.testing.assert_allclose(scaled[column], 4 * values, rtol=1e-9)
        elif column == "point_theta_E":
            np.testing.assert_allclose(scaled[column], 2 * values, rtol=1e-9)
        elif column not in ("theta_E", "halo_alpha_Rs", "halo_R_s", "halo_r_t"):  # these follow from the masses
            np.testing.assert_array_equal(scaled[column], values)
    assert population.with_substructure_scale(1.0) is population


def test_substructure_that_cannot_be_scaled_is_refused():
    clump = "{kind: profile, profile: sis, parameters: {theta_E: 0.1}, position: {kind: cartesian, x: 0, y: 0}}"
    with pytest.raises(ConfigError, match=r"kind profile \(sis\) cannot be scaled; change its parameters"):
        populations.get("common-test-i", [f"classes.vort={clump}"]).with_substructure_scale(2.0)
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="substructure_scale must be a positive number"):
            populations.get("common-test-i").with_substructure_scale(factor)


class TestPriors:
    u = rng.uniforms(0, "priors", rows=[0], n=200_000)[0]

    def test_power_laws_have_their_slope(self):
        for slope in (-1.9, -1.0, -0.9, 0.5):
            x = priors.PowerLaw(slope=slope, low=1, high=1e4).quantile(self.u)
            assert x.min() >= 1 and x.max() <= 1e4 * (1 + 1e-9)
            counts, edges = np.histogram(np.log(x), bins=12)
            middle = (edges[1:] + edges[:-1]) / 2
            use = counts > 300
            assert np.polyfit(middle[use], np.log(counts[use]), 1)[0] == pytest.approx(slope + 1, abs=0.03)

    def test_the_others(self):
        assert set(priors.Constant(value=3).quantile(self.u)) == {3.0}
        u, n = (p.quantile(self.u) for p in (priors.Uniform(low=2, high=4), priors.Normal(mean=1, sigma=0.5)))
        assert (u.min(), u.max()) == (pytest.approx(2, abs=1e-3), pytest.approx(4, abs=1e-3))
        assert (n.mean(), n.std()) == (pytest.approx(1, abs=0.01), pytest.approx(0.5, abs=0.01))

    def test_cut_normals_keep_their_shape_inside(self):
        x = priors.Normal(mean=0, sigma=1, low=-0.5, high=1.5).quantile(self.u)
        assert (x.min(), x.max()) == (pytest.approx(-0.5, abs=1e-3), pytest.approx(1.5, abs=1e-3))
        assert kstest(x, truncnorm(-0.5, 1.5).cdf).pvalue > 1e-4

    def test_log_normals_scatter_in_dex(self):
        prior = priors.LogNormal(median=0.2, dex=0.3, high=2)
        x = prior.quantile(self.u)
        assert np.median(x) == pytest.approx(0.2, rel=0.01) and x.max() <= 2
        assert np.log10(x).std() == pytest.approx(0.3, abs=0.005)
        assert prior.bounds() == (0.0, pytest.approx(2))

    def test_a_mean_outside_the_cuts_is_refused(self):
        with pytest.raises(ValueError, match="must lie between"):
            priors.Normal(mean=2, sigma=1, high=1)

    def test_a_bare_number_is_a_constant(self):
        tree = populations.get("common-test-i").model_dump(mode="json", by_alias=True)
        assert load(Population, tree, ["lens.e1=0.25"]).lens.e1 == priors.Constant(value=0.25)

    @pytest.mark.parametrize(
        "prior",
        [
            priors.Constant(value=2),
            priors.Uniform(low=-1, high=3),
            priors.PowerLaw(slope=-1.9, low=1, high=100),
            priors.PowerLaw(slope=-1, low=1, high=100),
            priors.Normal(mean=1, sigma=0.5, low=0),
            priors.LogNormal(median=2, dex=0.3, high=5),
        ],
    )
    def test_a_scaled_distribution_is_that_of_the_multiplied_number(self, prior):
        u = np.linspace(0.01, 0.99, 9)
        np.testing.assert_allclose(prior.scaled(3.0).quantile(u), 3 * prior.quantile(u), rtol=1e-9)
        np.testing.assert_allclose(prior.scaled(3.0).bounds(), 3 * np.array(prior.bounds()))
