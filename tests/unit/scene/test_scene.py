"""Scenes: their parameters, their derivatives, PSFs of any size, and fits that return the truth."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from darklens.errors import ConfigError, InputError
from darklens.fit.scene_fit import _revived, fit
from darklens.fit.scene_solver import CONVERGED, Data, Solver, non_negative
from darklens.fit.scene_starts import draw_starts
from darklens.scene import (
    EPL,
    PSF,
    SIE,
    SIS,
    Detector,
    Free,
    LightModel,
    MassModel,
    MultiGaussian,
    Multipole,
    Scene,
    Sersic,
    Shapelets,
    Shear,
)
from darklens.scene.observation import Observation

TRUTH = {
    "epl.theta_E": 1.0,
    "epl.slope": 2.1,
    "epl.e1": 0.1,
    "epl.e2": -0.05,
    "epl.centre_x": 0.02,
    "epl.centre_y": -0.03,
    "shear.gamma1": 0.03,
    "shear.gamma2": -0.02,
    "source.R_e": 0.2,
    "source.n": 1.3,
    "source.e1": 0.1,
    "source.e2": 0.05,
    "source.centre_x": 0.1,
    "source.centre_y": -0.05,
}
SCALE = 0.1


def lens():
    return Scene([EPL(), Shear()], [Sersic()])


def kernel(height=7, width=7, dx=0.0, dy=0.0):
    y, x = np.mgrid[:height, :width]
    x, y = x - (width - 1) / 2 - dx, y - (height - 1) / 2 - dy
    values = np.exp(-0.5 * (x**2 + 0.8 * y**2 + 0.3 * x * y) / 1.2**2)
    return values / values.sum()


def image(scene, values, amplitudes, detector):
    return scene.render(scene.pack(values), torch.tensor([amplitudes], dtype=torch.float64), detector)[0].numpy()


class TestParameters:
    def test_components_are_named_by_their_role(self):
        scene = Scene([EPL(), Multipole(4)], [Sersic()], [Sersic(), Sersic(centre_x="light.centre_x")])
        assert list(scene.profiles) == ["epl", "multipole4", "source", "light", "light2"]
        assert "multipole4.e1" not in scene.names and "light2.centre_x" not in scene.names
        assert scene.amplitude_names == ["source.amplitude", "light.amplitude", "light2.amplitude"]

    def test_one_profile_needs_no_list(self):
        scene = Scene(EPL(), Sersic(), Sersic())
        assert scene.names == Scene([EPL()], [Sersic()], [Sersic()]).names
        assert MassModel(SIE()).profiles[0].kind == "sie" and LightModel(Sersic()).n_amplitudes == 1

    def test_shapelets_have_an_amplitude_for_each_function(self):
        assert len(Scene([SIE()], [Shapelets(3)]).amplitude_names) == 10

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (lambda: EPL(theta=1.0), "epl has no parameter 'theta'"),
            (lambda: Scene([SIE(), SIE()], [Sersic()]), "Two components are named 'sie'"),
            (lambda: Scene([SIE(e1="epl.e1")], [Sersic()]), "There is no parameter 'epl.e1' to share"),
            (lambda: Scene([SIE(e1="sie.e2", e2="sie.e1")], []), "refer to each other in a circle"),
            (lambda: Scene([SIE(theta_E=Free(low=2.0, high=1.0))], []), "its lower bound 2 is not below"),
            (lambda: Multipole(2), "m is 1, 3 or 4, got 2"),
            (lambda: lens().pack({}), "Values are missing for epl.theta_E"),
            (lambda: lens().pack(TRUTH | {"epl.theta_e": 1.0}), "'epl.theta_e': did you mean 'epl.theta_E'"),
            (lambda: Scene([SIE(e1=0.1)], []).pack({"sie.e1": 0.2}), "sie.e1 is fixed or shared"),
            (lambda: MassModel(iter([EPL])), r"EPL is a class; write EPL\(\)"),
            (lambda: MassModel(iter([Sersic()])), r"Sersic\(\) is no mass profile"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, make, sentence):
        with pytest.raises(ConfigError, match=sentence):
            make()

    def test_internal_values_return_to_the_parameters(self):
        scene = lens()
        parameters = scene.pack(TRUTH)
        torch.testing.assert_close(scene.external(scene.internal(parameters)), parameters)


def test_derivatives_equal_finite_differences():
    light = [Shapelets(2), MultiGaussian(2, smallest=0.1, largest=0.5)]
    scene = Scene([EPL(), Shear(), Multipole(3), Multipole(4)], [Sersic()], light)
    values = TRUTH | {"light.beta": 0.4, "light.centre_x": 0.05, "light.centre_y": 0.0}
    values |= {"light2.e1": 0.1, "light2.e2": -0.2, "light2.centre_x": 0.03, "light2.centre_y": -0.02}
    values |= {f"multipole{m}.{s}": v for m in (3, 4) for s, v in (("a", 0.02), ("b", -0.01))}
    amplitudes = torch.tensor([[5.0, 1.0, 0.3, -0.2, 0.1, 0.4, 0.2, 2.0, 0.7]], dtype=torch.float64)
    detector = Detector((14, 18), SCALE, PSF.image(kernel(5, 3), pixel_scale=SCALE))
    internal = scene.internal(scene.pack(values))
    slopes = detector.observe(scene.slopes(internal, amplitudes, detector))[0]
    for i, name in enumerate(scene.names):
        step = torch.zeros_like(internal)
        step[0, i] = 1e-5
        ends = [scene.render(scene.external(internal + s * step), amplitudes, detector)[0] for s in (1, -1)]
        numeric = (ends[0] - ends[1]) / 2e-5
        assert float((numeric - slopes[i]).abs().max()) < 2e-6 * float(numeric.abs().max()) + 1e-9, name


class TestDetector:
    def test_a_batch_is_its_images(self):
        scene, detector = lens(), Detector((12, 12), SCALE, PSF.gaussian(fwhm=0.2, pixel_scale=SCALE))
        values = scene.pack(TRUTH | {"epl.theta_E": [0.8, 1.1]})
        both = scene.render(values, torch.ones(2, 1, dtype=torch.float64), detector)
        for i in range(2):
            one = scene.render(values[i : i + 1], torch.ones(1, 1, dtype=torch.float64), detector)
            torch.testing.assert_close(both[i], one[0], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("shape", [(7, 7), (6, 6), (5, 8)])
    def test_a_psf_of_any_size_keeps_the_centre(self, shape):
        scene = Scene([], [], [Sersic(R_e=0.15, n=1.0, e1=0.0, e2=0.0, centre_x=0.03, centre_y=-0.04)])
        values = kernel(*shape)
        detector = Detector((41, 41), SCALE, PSF.image(values, pixel_scale=SCALE))
        light = scene.render(torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), detector)[0]
        axis = (torch.arange(41, dtype=torch.float64) - 20) * SCALE
        assert abs(float((light.sum(0) * axis).sum() / light.sum()) - 0.03) < 2e-3
        assert abs(float((light.sum(1) * axis).sum() / light.sum()) + 0.04) < 2e-3

    def test_an_off_centre_psf_shifts_the_image_unless_recentred(self):
        values = kernel(9, 9, dx=0.4, dy=-0.3)
        with_shift, recentred = (PSF.image(values, pixel_scale=SCALE, recentre=flag) for flag in (False, True))
        assert "not corrected" in with_shift.notes[0] and "taken for its origin" in recentred.notes[0]
        scene = Scene([], [], [Sersic(R_e=0.15, n=1.0, e1=0.0, e2=0.0, centre_x=0.0, centre_y=0.0)])
        axis = (torch.arange(41, dtype=torch.float64) - 20) * SCALE
        centres = []
        for psf in (with_shift, recentred):
            nothing, one = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
            light = scene.render(nothing, one, Detector((41, 41), SCALE, psf))[0]
            centres.append(float((light.sum(0) * axis).sum() / light.sum()))
        assert abs(centres[0] - 0.4 * SCALE) < 3e-3 and abs(centres[1]) < 3e-3

    def test_an_oversampled_psf_converges_to_fine_pixels(self):
        scene = lens()
        fine = Detector((40, 40), SCALE / 2, PSF.gaussian(fwhm=0.25, pixel_scale=SCALE / 2))
        coarse = Detector((20, 20), SCALE, PSF.gaussian(fwhm=0.25, pixel_scale=SCALE, oversampling=2), supersample=2)
        blocks = image(scene, TRUTH, [3.0], fine).reshape(20, 2, 20, 2).mean((1, 3))
        np.testing.assert_allclose(image(scene, TRUTH, [3.0], coarse), blocks, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(("shape", "oversampling"), [((9, 12), 1), ((7, 6), 3)])
    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_the_convolution_is_the_sum_over_the_psf(self, shape, oversampling, rank):
        rng = np.random.default_rng(0)
        values = np.einsum("ri,rj->ij", *(rng.random((rank, n)) for n in shape))
        values /= values.sum()
        psf = PSF.image(values, pixel_scale=SCALE, oversampling=oversampling)
        detector = Detector((20, 17), SCALE, psf, supersample=2 * oversampling)
        light = torch.from_numpy(rng.random((2, len(detector.y), detector.x.shape[1])))
        coarse = torch.nn.functional.avg_pool2d(light[:, None], 2)
        blurred = torch.nn.functional.conv2d(coarse, torch.from_numpy(values).flip(0, 1)[None, None])
        expected = torch.nn.functional.avg_pool2d(blurred, oversampling)[:, 0]
        torch.testing.assert_close(detector.observe(light), expected, rtol=1e-12, atol=1e-14)

    def test_flux_is_conserved(self):
        scene = Scene([], [], [Sersic(R_e=0.1, n=1.0, e1=0.1, e2=0.0, centre_x=0.0, centre_y=0.0)])
        nothing, one = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        sums = [
            float(scene.render(nothing, one, Detector((61, 61), SCALE, psf, supersample=3)).sum())
            for psf in (None, PSF.image(kernel(), pixel_scale=SCALE))
        ]
        assert sums[0] == pytest.approx(sums[1], rel=1e-4)


class TestPSF:
    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            (np.zeros((5, 5)), "sum to 0"),
            (np.full((5, 5), np.nan), "25 pixels that are NaN"),
            (np.ones(5), "two-dimensional"),
        ],
    )
    def test_a_bad_psf_is_one_sentence(self, values, sentence):
        with pytest.raises(InputError, match=sentence):
            PSF.image(values, pixel_scale=0.05)

    def test_edges_of_zeros_are_left_out_and_the_centre_stays(self):
        values = kernel(7, 5, dx=0.4)
        padded = np.pad(values, ((3, 4), (2, 2)))
        psf = PSF.image(padded, pixel_scale=SCALE)
        np.testing.assert_array_equal(psf.kernel, np.pad(values, ((0, 1), (0, 0))))
        assert psf.centroid() == pytest.approx(PSF(torch.from_numpy(padded), SCALE).centroid())

    def test_what_is_unusual_is_stated(self):
        assert PSF.image(kernel() * 0.9, pixel_scale=0.05).notes == ("PSF: its sum is 0.9, not normalised",)
        normalised = PSF.image(kernel() * 0.9, pixel_scale=0.05, normalise=True)
        assert float(normalised.kernel.sum()) == pytest.approx(1)


@pytest.mark.parametrize(("side", "oversampling"), [(2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("shape", [(7, 7), (8, 5)])
def test_a_binned_psf_keeps_its_flux_and_centroid(shape, side, oversampling):
    psf = PSF.image(kernel(*shape), pixel_scale=SCALE, oversampling=oversampling, recentre=True)
    binned = psf.binned(side)
    assert float(binned.kernel.sum()) == pytest.approx(float(psf.kernel.sum()))
    assert binned.pixel_scale == pytest.approx(side * SCALE) and binned.oversampling == 1
    middle = [(torch.arange(n) - (n - 1) / 2).double() for n in binned.kernel.shape]
    for axis, at in enumerate(middle):
        centroid = float((binned.kernel.sum(1 - axis) * at).sum())
        assert abs(centroid) < 0.02
        assert len(at) % 2


class TestObservation:
    def test_masked_and_unusable_pixels_are_left_out(self):
        noise = np.ones((20, 20))
        noise[0, :4] = 0, np.inf, np.nan, 1e8
        picture = np.random.default_rng(0).normal(size=(20, 20))
        picture[3, 3] = np.nan
        mask = np.zeros((20, 20))
        mask[5, 5:8] = 1
        observation = Observation.of(picture, noise_map=noise, pixel_scale=0.1, mask=mask)
        assert (~observation.used).sum() == 8 and observation.weights[~observation.used].max() == 0
        assert observation.changes == ("8 pixels left out",)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"noise_map": np.ones((10, 20))}, "The noise map has 10 x 20 pixels, the image 20 x 20"),
            ({"mask": np.ones((20, 20))}, r"0 of \d+ pixels remain"),
            ({"psf": np.ones((21, 21))}, "larger than the image"),
            (
                {"psf": PSF.gaussian(fwhm=0.2, pixel_scale=0.08)},
                "pixels of 0.08 arcsec and the image of 0.1; resample the PSF",
            ),
            ({"psf": PSF.gaussian(fwhm=0.2, pixel_scale=0.05, oversampling=2)}, "pixels of 0.05 arcsec and the image"),
            ({"pixel_scale": 0.0}, "must be positive"),
            ({"image": np.zeros((2, 20, 20))}, "one plane"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, changes, sentence):
        inputs = {"image": np.zeros((20, 20)), "noise_map": 1.0, "pixel_scale": 0.1} | changes
        with pytest.raises(InputError, match=sentence):
            Observation.of(inputs.pop("image"), **inputs)

    @pytest.mark.parametrize(("power", "kind"), [(2, "variance"), (-2, "weight")])
    def test_a_noise_map_of_another_kind_is_refused(self, power, kind):
        picture = np.random.default_rng(1).normal(0, 0.01, size=(40, 40))
        Observation.of(picture, noise_map=np.full((40, 40), 0.01), pixel_scale=0.1)
        with pytest.raises(InputError, match=kind):
            Observation.of(picture, noise_map=np.full((40, 40), 0.01**power), pixel_scale=0.1)

    @pytest.mark.parametrize("is_object", [True, False])
    def test_rows_can_be_flipped(self, is_object):
        picture, values = np.arange(400.0).reshape(20, 20), kernel(dy=0.5)
        psf = PSF.image(values, pixel_scale=0.1, recentre=True) if is_object else values
        flipped = Observation.of(picture, noise_map=1.0, pixel_scale=0.1, psf=psf, flip_rows=True)
        np.testing.assert_array_equal(flipped.image, picture[::-1])
        np.testing.assert_array_equal(flipped.psf.kernel, values[::-1])
        assert flipped.changes[-1] == "rows reversed, those of the PSF too"
        assert not is_object or flipped.psf.origin[1] == -psf.origin[1] < -0.3

    def test_a_psf_with_smaller_pixels_is_oversampled(self):
        psf = PSF.gaussian(fwhm=0.2, pixel_scale=0.05)
        observation = Observation.of(np.zeros((20, 20)), noise_map=1.0, pixel_scale=0.1, psf=psf)
        assert observation.psf.oversampling == 2
        assert observation.changes == ("PSF: 2 of its pixels along a side of an image pixel",)
        assert observation.detector().shape == (20, 20)

    def test_blocks_are_weighted_by_their_variance(self):
        noise = np.ones((20, 20))
        noise[:, ::2] = np.inf
        picture = np.tile([5.0, 2.0], (20, 10))
        binned = Observation.of(picture, noise_map=noise, pixel_scale=0.1).binned(2)
        np.testing.assert_allclose(binned.image, 2.0)
        np.testing.assert_allclose(binned.noise_map, 2**-0.5)
        assert binned.pixel_scale == pytest.approx(0.2)


@pytest.fixture(scope="module")
def observation():
    psf = PSF.image(kernel(), pixel_scale=SCALE)
    truth = image(lens(), TRUTH, [4.0], Detector((40, 40), SCALE, psf))
    noise = 0.05 * truth.max()
    noisy = truth + np.random.default_rng(3).normal(0, noise, truth.shape)
    return Observation.of(noisy, noise_map=noise, pixel_scale=SCALE, psf=psf)


class TestFit:
    def test_it_returns_the_truth_from_no_start(self, observation):
        result = fit(observation, lens())
        assert result.converged and not result.at_bounds
        assert abs(result.chi2_excess) < 4
        for name in ("epl.theta_E", "epl.centre_x", "shear.gamma1", "source.centre_x"):
            assert abs(result.parameters[name] - TRUTH[name]) < 5 * result.errors[name], name
        assert result.errors["epl.theta_E"] < 0.02

    def test_amplitudes_are_the_best_ones(self, observation):
        scene = lens()
        solver = Solver(scene, observation.detector())
        data = Data(*(torch.as_tensor(v)[None] for v in (observation.image, observation.weights)))
        internal = scene.internal(scene.pack(TRUTH))
        state = solver.state(internal, data)
        residual = (data.images - state.model) * data.weights
        basis = observation.detector().observe(
            scene.basis(scene.external(internal), *(v.to(internal) for v in (solver.detector.x, solver.detector.y)))
        )
        assert abs(float((residual * basis[:, 0]).sum())) < 1e-6 * float((data.weights * basis[:, 0] ** 2).sum())

    def test_a_light_that_would_be_negative_is_absent(self, observation):
        scene = Scene([EPL(), Shear()], [Sersic()], [Sersic(R_e=0.3, n=1.0, e1=0.0, e2=0.0)])
        values = TRUTH | {"light.centre_x": 0.0, "light.centre_y": 0.0}
        solver = Solver(scene, observation.detector())
        dark = observation.image - 2 * np.exp(-((np.mgrid[:40, :40] - 19.5) ** 2).sum(0) / 8)
        data = Data(*(torch.as_tensor(v)[None] for v in (dark, observation.weights)))
        state = solver.state(scene.internal(scene.pack(values)), data)
        assert float(state.amplitudes[0, 1]) == 0 and float(state.amplitudes[0, 0]) > 0

    def test_the_cusp_of_an_image_sampled_once_a_pixel_is_fitted_without_a_core(self):
        values = TRUTH | {"source.n": 3.5, "epl.slope": 2.0}
        psf = PSF.image(kernel(), pixel_scale=SCALE)
        truth = image(lens(), values, [4.0], Detector((40, 40), SCALE, psf))
        noisy = truth + np.random.default_rng(5).normal(0, 0.003 * truth.max(), truth.shape)
        observation = Observation.of(noisy, noise_map=0.003 * truth.max(), pixel_scale=SCALE, psf=psf)
        result = fit(observation, Scene([EPL(slope=2.0), Shear()], [Sersic()]))
        assert result.scene.has_cusps and result.converged and abs(result.chi2_excess) < 4
        assert result.parameters["source.n"] == pytest.approx(3.5, rel=0.05)

    def test_a_wrong_model_is_not_a_good_fit(self, observation):
        round_lens = Scene([EPL(e1=0.0, e2=0.0, slope=2.0)], [Sersic()])
        result = fit(observation, round_lens)
        assert result.chi2_excess > 5 and "does not describe the image" in result.warnings[0]

    def test_converged_means_that_a_further_step_gains_little(self, observation):
        result = fit(observation, lens())
        solver = Solver(result.scene, observation.detector())
        data = Data(*(torch.as_tensor(v, dtype=torch.float32)[None] for v in (observation.image, observation.weights)))
        internal = solver.scene.internal(solver.scene.pack(result.parameters)).float()
        again = solver.minimise(internal, data, steps=10)
        assert float(solver.state(internal, data).deviance - again.deviance) < 2 * CONVERGED


def two_images(lens_light, amplitudes):
    """A compact source far from the axis of a lens: two images, as of the SLACS lens J0037-0942."""
    scene = Scene([SIE(), Shear()], [Sersic(n=1.0, e1=0.0, e2=0.0)], lens_light)
    values = {"sie.theta_E": 1.5, "sie.e1": -0.15, "sie.e2": -0.05, "sie.centre_x": 0.0, "sie.centre_y": 0.0}
    values |= {"shear.gamma1": 0.03, "shear.gamma2": 0.0, "source.R_e": 0.1}
    values |= {"source.centre_x": 0.4, "source.centre_y": -0.2}
    return image(scene, values, amplitudes, Detector((50, 50), SCALE, PSF.image(kernel(), pixel_scale=SCALE)))


def test_two_compact_images_beside_bright_lens_light_are_found():
    light = Sersic(R_e=0.8, n=4.0, e1=-0.1, e2=-0.05, centre_x=0.0, centre_y=0.0, core=0.02)
    truth = two_images([light], [5.0, 5.0])
    noise = np.sqrt(0.02**2 + 0.02 * truth)
    noisy = truth + noise * np.random.default_rng(1).normal(size=truth.shape)
    psf = PSF.image(kernel(), pixel_scale=SCALE)
    observation = Observation.of(noisy, noise_map=noise, pixel_scale=SCALE, psf=psf)
    centre = {"centre_x": "light.centre_x", "centre_y": "light.centre_y"}
    scene = Scene([SIE(**centre), Shear()], [MultiGaussian(8, largest=0.5)], [MultiGaussian(12)])
    result = fit(observation, scene)
    assert abs(result.theta_E - 1.5) < 4 * result.errors["sie.theta_E"] < 0.2
    assert result.converged and abs(result.chi2_excess) < 4


def test_a_component_without_light_is_fitted_again_with_other_radii():
    centred = {"e1": 0.0, "e2": 0.0, "centre_x": 0.0, "centre_y": 0.0}
    lens_light = [Sersic(**centred, core=0.02), Sersic(**centred, core=0.02)]
    scene = Scene([SIE(theta_E=1.0, **centred)], [Sersic(R_e=0.2, n=1.0, **centred, core=0.02)], lens_light)
    values = {"light.R_e": 0.3, "light.n": 2.0, "light2.R_e": 1.2, "light2.n": 1.0}
    detector = Detector((40, 40), SCALE)
    truth = image(scene, values, [1.0, 10.0, 3.0], detector)
    data = Data(torch.as_tensor(truth)[None].float(), torch.full((1, 40, 40), 1e4))
    solver = Solver(scene, detector)
    dark = scene.internal(scene.pack(values | {"light.R_e": 0.6, "light.n": 2.0, "light2.R_e": 0.3, "light2.n": 0.5}))
    before = solver.state(dark.float(), data)
    assert before.amplitudes[0, 2] == 0
    after = solver.state(_revived(solver, dark.float(), data), data)
    assert after.amplitudes[0, 2] > 0 and after.deviance[0] < 0.01 * before.deviance[0]


def test_amplitudes_are_those_of_nonnegative_least_squares():
    radius = np.linspace(0, 3, 200)
    basis = np.exp(-(radius[:, None] ** 2) / 2 / np.logspace(-1.5, 0.7, 24) ** 2)
    basis /= np.linalg.norm(basis, axis=0)
    values = 1 / (1 + radius**2) + 0.01 * np.random.default_rng(0).normal(size=(8, 200))
    matrix = torch.as_tensor(basis.T @ basis + 1e-10 * np.eye(24)).expand(8, -1, -1)
    every = torch.ones(8, 24, dtype=torch.bool)
    amplitudes = non_negative(matrix, torch.as_tensor(values @ basis), every[0], every).numpy()
    assert (amplitudes >= 0).all() and (amplitudes == 0).any(1).all()
    for row, target in zip(amplitudes, values, strict=True):
        assert np.linalg.norm(basis @ row - target) == pytest.approx(nnls(basis, target)[1], rel=1e-9)


def test_starts_do_not_depend_on_the_names_of_components(observation):
    starts = []
    for names in ({}, {"name": "host"}):
        lights = [Sersic(**({"name": "bulge"} if names else {}))]
        solver = Solver(Scene([EPL(), Shear()], [Sersic(**names)], lights), observation.detector())
        starts.append(draw_starts(solver, observation, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*starts)
    assert starts[0][:, solver.scene.names.index("host.centre_x")].abs().max() > 0.01


def test_a_scene_without_a_main_lens_is_not_fitted(observation):
    with pytest.raises(ConfigError, match="needs a main lens"):
        fit(observation, Scene([Shear()], [Sersic()]))


class TestCores:
    def test_a_core_is_part_of_the_scene_and_its_image(self):
        scene = Scene([SIE()], [Sersic(core=0.03)], [Sersic(), Shapelets(1)]).softened(0.01)
        assert [p.core for p in (*scene.source.profiles, scene.lens_light.profiles[0])] == [0.03, 0.01]
        assert Scene([SIE()], [Sersic()]).source.profiles[0].core == 0

    def test_with_a_core_the_light_is_smooth_at_its_centre(self):
        x = torch.tensor([[[0.0, 1e-4]]], dtype=torch.float64)
        values = {k: torch.tensor(v) for k, v in {"R_e": 0.2, "n": 4.0, "e1": 0.0, "e2": 0.0}.items()}
        cusp, core = (Sersic(core=c).basis(x, 0 * x, **values)[0, 0, 0] for c in (0.0, 0.005))
        assert cusp[0] / cusp[1] > 1.5 and core[0] / core[1] < 1.001


def test_missing_values_and_amplitudes_are_errors_that_suggest_names():
    scene = Scene([SIS(centre_x=0.0, centre_y=0.0)], source=[Sersic(n=1.0, e1=0.0, e2=0.0, centre_x=0.0, centre_y=0.0)])
    detector = Detector((20, 20), 0.1)
    with pytest.raises(ConfigError, match=r"Unknown free parameter 'sis\.theta_e': did you mean 'sis\.theta_E'"):
        scene.image({"sis.theta_e": 1.0, "source.R_e": 0.2}, {"source.amplitude": 1.0}, detector)
    with pytest.raises(ConfigError, match=r"missing for source.amplitude\."):
        scene.image({"sis.theta_E": 1.0, "source.R_e": 0.2}, {}, detector)
    amplitudes = {"source.amplitude": 1.0, "source.flux": 1.0}
    with pytest.raises(ConfigError, match=r"Unknown amplitude 'source\.flux': did you mean 'source\.amplitude'"):
        scene.image({"sis.theta_E": 1.0, "source.R_e": 0.2}, amplitudes, detector)
