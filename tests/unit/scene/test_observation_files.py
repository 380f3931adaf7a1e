"""Observations from files: roles of extensions, weights, variances, units, masks, PSFs, rows, and what is missing."""

import h5py
import numpy as np
import pytest
from astropy.io import fits

from darklens.errors import ConfigError, InputError
from darklens.scene.observation_files import Inputs, read_observation
from darklens.scene.observation_paths import find_observations
from darklens.scene.specification import NoiseSpecification, PSFSpecification

N, SIGMA, SCALE = 40, 0.02, 0.1
GENERATOR = np.random.default_rng(0)
Y, X = np.mgrid[:N, :N] - (N - 1) / 2
LIGHT = np.exp(-0.5 * ((np.hypot(X, Y) - 10) / 2) ** 2)
NOISE = np.full((N, N), SIGMA)
IMAGE = LIGHT + GENERATOR.normal(0, SIGMA, (N, N))
CENTRED = np.exp(-0.5 * (np.mgrid[-5:6, -5:6] ** 2).sum(0) / 1.5**2)
CENTRED /= CENTRED.sum()


def write(path, image=IMAGE, header=None, name=None, **more):
    """Write a FITS file of an image and of further extensions by name."""
    units = [fits.PrimaryHDU(image, fits.Header(header or {}))]
    if name:
        units = [fits.PrimaryHDU(), fits.ImageHDU(image, fits.Header(header or {}), name=name)]
    units += [fits.ImageHDU(plane, name=key) for key, plane in more.items()]
    fits.HDUList(units).writeto(path, overwrite=True)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A folder of one observation whose image states its pixel scale."""
    path = tmp_path / "lens"
    path.mkdir()
    write(path / "image.fits", header={"PIXSCALE": SCALE})
    write(path / "noise_map.fits", NOISE)
    write(path / "psf.fits", CENTRED)
    return path


def test_a_folder_holds_image_noise_psf_and_mask(folder):
    mask = np.zeros((N, N))
    mask[:5] = 1
    write(folder / "mask.fits", mask)
    observation = read_observation(str(folder))
    np.testing.assert_array_equal(observation.used, mask == 0)
    assert observation.pixel_scale == SCALE and observation.psf.kernel.shape == (11, 11)
    assert observation.changes == ("200 pixels left out",)
    assert read_observation(str(folder), Inputs(half_width=1.0)).image.shape == (20, 20)


def test_rows_are_flipped_for_all_arrays(folder):
    mask = np.zeros((N, N))
    mask[:5] = 1
    write(folder / "mask.fits", mask)
    write(folder / "noise_map.fits", NOISE * (1 + Y / 100))
    kernel = CENTRED * (1 + np.arange(11)[:, None])
    write(folder / "psf.fits", kernel / kernel.sum())
    observation, flipped = (read_observation(str(folder), Inputs(flip_rows=flip)) for flip in (False, True))
    for name in ("image", "noise_map", "used"):
        np.testing.assert_array_equal(getattr(flipped, name), getattr(observation, name)[::-1])
    np.testing.assert_array_equal(flipped.psf.kernel, observation.psf.kernel.flip(0))


@pytest.mark.parametrize(
    ("name", "plane", "said"),
    [
        ("ERR", NOISE, ()),
        ("RMS", NOISE, ()),
        ("VAR", NOISE**2, ("taken as a variance",)),
        ("WHT", NOISE**-2, ("taken as an inverse variance (weight)",)),
        ("IVM", NOISE**-2, ("taken as an inverse variance (weight)",)),
        ("NOISE", NOISE**-2, ("taken as an inverse variance (weight)", "its median is 2.5e+03")),
        ("noise_map", NOISE**2, ("taken as a variance", "its median is 0.0004")),
    ],
)
def test_the_form_of_the_noise_follows_from_name_and_values(tmp_path, name, plane, said):
    path = write(tmp_path / "a.fits", name="SCI", header={"PIXSCALE": SCALE}, **{name: plane, "PSF": CENTRED})
    observation = read_observation(path)
    np.testing.assert_allclose(observation.noise_map, NOISE, rtol=1e-6)
    assert all(any(word in change for change in observation.changes) for word in said)
    assert len(observation.changes) == bool(said)


@pytest.mark.parametrize(
    ("name", "plane", "sentence"),
    [
        ("WHT", np.full((N, N), 600.0 * 300), "may be an exposure map"),
        ("RMS", NOISE**-2, "The noise map looks like an inverse variance"),
    ],
)
def test_a_name_that_the_values_contradict_is_an_error(tmp_path, name, plane, sentence):
    path = write(tmp_path / "a.fits", name="SCI", header={"PIXSCALE": SCALE}, **{name: plane})
    with pytest.raises(InputError, match=sentence):
        read_observation(path)


@pytest.mark.parametrize(
    ("name", "plane", "said"),
    [
        ("wht.fits", NOISE**-2, "taken as an inverse variance"),
        ("lens_var.fits", NOISE**2, "taken as a variance"),
        ("rms.fits", NOISE, ""),
    ],
)
def test_the_name_of_a_file_of_one_unnamed_image_says_its_role(folder, name, plane, said):
    path = write(folder.parent / name, plane)
    observation = read_observation(str(folder / "image.fits"), Inputs(noise_map=path))
    np.testing.assert_allclose(observation.noise_map, NOISE, rtol=1e-6)
    assert said in "; ".join(observation.changes)
    with pytest.raises(InputError, match="holds no science image"):
        read_observation(path, Inputs(pixel_scale=SCALE))


def test_masked_noise_of_every_kind_is_left_out(folder):
    noise = NOISE.copy()
    noise[0], noise[1], noise[2], noise[3] = 0, np.inf, 1e8, np.nan
    write(folder / "noise_map.fits", noise)
    observation = read_observation(str(folder))
    assert observation.used.sum() == (N - 4) * N and not observation.used[:4].any()


def test_units_of_image_and_noise_map(tmp_path):
    rate = {"PIXSCALE": SCALE, "BUNIT": "ELECTRONS/S", "EXPTIME": 500.0}
    for unit, factor in (("electron", 500.0), ("e-/s", 1.0)):
        write(tmp_path / "a.fits", header=rate)
        write(tmp_path / "n.fits", NOISE * factor, header={"BUNIT": unit})
        observation = read_observation(str(tmp_path / "a.fits"), Inputs(noise_map=str(tmp_path / "n.fits")))
        np.testing.assert_allclose(observation.noise_map, SIGMA)
        assert any("converted from electron" in change for change in observation.changes) == (factor > 1)
        assert not any("does not agree" in change for change in observation.changes)
    write(tmp_path / "n.fits", NOISE, header={"BUNIT": "nJy"})
    with pytest.raises(InputError, match="the image is in ELECTRONS/S, the noise map in nJy; convert"):
        read_observation(str(tmp_path / "a.fits"), Inputs(noise_map=str(tmp_path / "n.fits")))
    write(tmp_path / "a.fits", header={"PIXSCALE": SCALE, "BUNIT": "ELECTRONS/S"})
    write(tmp_path / "n.fits", NOISE, header={"BUNIT": "electron"})
    with pytest.raises(InputError, match="the header has no EXPTIME"):
        read_observation(str(tmp_path / "a.fits"), Inputs(noise_map=str(tmp_path / "n.fits")))


@pytest.mark.parametrize(
    ("header", "counts"),
    [
        ({"BUNIT": "ADU", "CCDGAIN": 2.5}, 2.5),
        ({"BUNIT": "ELECTRONS"}, 1.0),
        ({"BUNIT": "electron / s", "EXPTIME": 300.0}, 300.0),
        ({"BUNIT": "nJy"}, None),
    ],
)
def test_photon_noise_follows_the_unit(tmp_path, header, counts):
    path = write(tmp_path / "a.fits", header=header | {"PIXSCALE": SCALE})
    observation = read_observation(path, Inputs(noise=NoiseSpecification(background_rms=SIGMA)))
    photons = 0 if counts is None else IMAGE.clip(min=0) / counts
    np.testing.assert_allclose(observation.noise_map**2, SIGMA**2 + photons)
    assert any("constant noise" in change for change in observation.changes) == (counts is None)
    measured = read_observation(path, Inputs(noise=NoiseSpecification(exposure=1e9)))
    assert measured.noise_map[0, 0] == pytest.approx(SIGMA, rel=0.2)


def test_hdf5_files_of_lenstronomy_state_background_and_exposure(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image_data"], file["background_rms"] = IMAGE, SIGMA
        file["exposure_time"], file["transform_pix2angle"] = np.full((N, N), 900.0), np.eye(2) * SCALE
    with h5py.File(tmp_path / "psf.h5", "w") as file:
        file["kernel_point_source"], file["psf_variance_map"] = CENTRED, CENTRED * 0
    observation = read_observation(str(tmp_path / "a.h5"), Inputs(psf=str(tmp_path / "psf.h5")))
    np.testing.assert_allclose(observation.noise_map**2, SIGMA**2 + IMAGE.clip(min=0) / 900)
    assert observation.psf.kernel.shape == (11, 11) and observation.pixel_scale == SCALE


def test_planes_of_the_band_of_the_image_are_chosen(tmp_path):
    more = {"VIS_PSF": CENTRED, "VIS_RMS": NOISE, "NIR_Y_BGSUB": IMAGE, "NIR_Y_PSF": CENTRED[1:-1, 1:-1]}
    more |= {"NIR_Y_RMS": NOISE * 2}
    path = write(tmp_path / "a.fits", name="VIS_BGSUB", **more)
    with pytest.raises(InputError, match=r"several images \(VIS_BGSUB, NIR_Y_BGSUB\); select one with --image"):
        read_observation(path, Inputs(pixel_scale=SCALE))
    observation = read_observation(path, Inputs(pixel_scale=SCALE, image="NIR_Y_BGSUB"))
    assert observation.noise_map[0, 0] == 2 * SIGMA and observation.psf.kernel.shape == (9, 9)


def test_unnamed_extensions_are_selected_by_number(tmp_path):
    units = [fits.PrimaryHDU(IMAGE), fits.ImageHDU(NOISE), fits.ImageHDU(CENTRED)]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    path = str(tmp_path / "a.fits")
    observation = read_observation(path, Inputs(noise_map=f"{path}[1]", psf=f"{path}[2]", pixel_scale=SCALE))
    assert observation.noise_map[0, 0] == SIGMA and observation.psf.kernel.shape == (11, 11)
    assert observation.changes == ("image: header unit 0 (units 1, 2 not used)",)
    with pytest.raises(InputError, match=r"has no image '7'"):
        read_observation(path, Inputs(noise_map=f"{path}[7]", pixel_scale=SCALE))


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_of_a_stack(tmp_path, compressed):
    images = np.stack([IMAGE, 2 * IMAGE, 3 * IMAGE])
    arrays = {"images": images, "noise": np.stack([NOISE, NOISE, 3 * NOISE]), "psf": CENTRED, "pixel_scale": SCALE}
    arrays["positions"] = np.zeros((3, 2))
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", **arrays)
    labels = find_observations([tmp_path / "a.npz"])
    assert labels == [f"{tmp_path}/a.npz#{i}" for i in range(3)]
    observation = read_observation(labels[2])
    np.testing.assert_array_equal(observation.image, images[2])
    assert observation.noise_map[0, 0] == 3 * SIGMA and observation.pixel_scale == SCALE
    assert find_observations([labels[1]]) == [labels[1]]
    with pytest.raises(InputError, match="has no row 3"):
        read_observation(f"{tmp_path}/a.npz#3")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.update(arrays | {"pixel_scale": np.array([SCALE, SCALE, 2 * SCALE]), "psf": np.stack([CENTRED] * 3)})
    observation = read_observation(find_observations([tmp_path / "b.h5"])[2])
    np.testing.assert_array_equal(observation.image, images[2])
    assert observation.pixel_scale == 2 * SCALE and observation.psf.kernel.shape == (11, 11)


def test_folders_are_searched_for_observations(folder, tmp_path):
    write(tmp_path / "b.fits")
    assert find_observations([tmp_path]) == [str(tmp_path / "b.fits"), str(folder)]
    (tmp_path / "list.txt").write_text(f"{folder}\n{tmp_path}/a.npz#1\n")
    assert find_observations([f"@{tmp_path / 'list.txt'}"]) == [str(folder), f"{tmp_path}/a.npz#1"]
    assert find_observations([f"{tmp_path}/le*"]) == [str(folder)]
    with pytest.raises(InputError, match="no such file or folder"):
        find_observations([tmp_path / "missing.fits"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no images"):
        find_observations([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("files", "inputs", "sentence"),
    [
        ({}, {}, "there is no noise map; give one with --noise-map"),
        ({"noise_map": NOISE[1:]}, {}, "the noise map has 39 x 40 pixels, the image 40 x 40"),
        ({"noise_map": NOISE, "mask": np.ones((N, N))}, {}, "excludes every pixel"),
        ({"noise_map": NOISE, "mask": np.ones((3, N))}, {}, "the mask has 3 x 40 pixels"),
        ({"noise_map": NOISE, "psf": np.ones((51, 51)) / 2601}, {}, "is larger than the image"),
        ({"noise_map": NOISE * 0}, {}, r"0 of 1600 pixels remain \(1600 pixels of the noise map are not positive"),
        ({"noise_map": NOISE}, {"noise": NoiseSpecification()}, r"both a noise map \(noise_map.fits\) and noise"),
        ({"noise_map": NOISE * 1e-20}, {}, "give both in the same unit"),
        ({"noise_map": NOISE * 1e-120}, {}, "multiply image and noise map by a constant"),
        ({"noise_map": NOISE}, {"half_width": 0.3}, "36 of 36 pixels remain;"),
        ({"noise_map": NOISE}, {"image": "SCI"}, "it has no image 'SCI'"),
        ({"noise_map": NOISE}, {"psf": "psf.txt"}, "no such file"),
        ({"noise_map": IMAGE}, {}, "is the image itself"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(tmp_path, files, inputs, sentence):
    path = tmp_path / "lens"
    path.mkdir()
    write(path / "data.fits", header={"PIXSCALE": SCALE})
    for name, plane in files.items():
        write(path / f"{name}.fits", plane)
    with pytest.raises(InputError, match=sentence) as caught:
        read_observation(str(path), Inputs(**inputs))
    assert "\n" not in str(caught.value)


def test_an_image_of_nan_is_named_as_the_reason(folder):
    write(folder / "image.fits", IMAGE * np.nan, header={"PIXSCALE": SCALE})
    with pytest.raises(InputError, match=r"0 of 1600 pixels remain \(1600 pixels of the image are NaN or infinite\);"):
        read_observation(str(folder))


def test_no_pixel_scale_is_assumed(folder):
    write(folder / "image.fits")
    with pytest.raises(InputError, match=r"states no pixel scale; give it in arcsec with --pixel-scale\.$"):
        read_observation(str(folder))
    assert read_observation(str(folder), Inputs(pixel_scale=0.07)).pixel_scale == 0.07
    with pytest.raises(ConfigError, match="must be positive"):
        Inputs(pixel_scale=-1.0)


def test_a_psf_of_other_pixels_is_oversampled_or_refused(folder):
    write(folder / "psf.fits", CENTRED, header={"PIXSCALE": SCALE / 2})
    observation = read_observation(str(folder))
    assert observation.psf.oversampling == 2 and "PSF: 2 x 2 of its pixels in one of the image" in observation.changes
    write(folder / "psf.fits", CENTRED, header={"PIXSCALE": 0.04})
    with pytest.raises(InputError, match=r"the PSF has pixels of 0\.04 arcsec, the image 0\.1; resample the PSF"):
        read_observation(str(folder))


def test_a_bad_psf_is_used_and_described(folder):
    kernel = np.zeros((12, 12))
    kernel[:11, :11] = CENTRED * 5
    kernel[0, 0], kernel[-1, -1] = np.nan, -0.1
    write(folder / "psf.fits", kernel)
    changes = "; ".join(read_observation(str(folder)).changes)
    for words in ("12 x 12 pixels, origin at the centre", "1 NaN or infinite pixels in its wings set to zero"):
        assert words in changes
    for words in ("its lowest value is -0.", "its sum is 4.9, not normalised", "(-0.50, -0.50) pixels from its centre"):
        assert words in changes
    settings = PSFSpecification(normalise=True, recentre=True)
    observation = read_observation(str(folder), Inputs(psf_settings=settings))
    assert float(observation.psf.kernel.sum()) == pytest.approx(1)
    assert observation.psf.origin == pytest.approx((-0.5, -0.5), abs=1e-2)
    kernel[5, 5] = np.nan
    write(folder / "psf.fits", kernel)
    with pytest.raises(InputError, match="some in its core"):
        read_observation(str(folder))


def test_a_gaussian_psf_of_the_scene(folder):
    observation = read_observation(str(folder), Inputs(psf_settings=PSFSpecification(fwhm=0.3)))
    assert observation.psf.fwhm == pytest.approx(0.3, rel=0.2)
    assert observation.changes == ("PSF image not used: psf.fwhm is",)
    with pytest.raises(ConfigError, match="give one PSF"):
        Inputs(psf="psf.fits", psf_settings=PSFSpecification(fwhm=0.3))


def test_an_exposure_map_beside_a_noise_map_is_named(folder):
    write(folder / "exposure_time_map.fits", np.full((N, N), 300.0))
    assert read_observation(str(folder)).changes == (
        "exposure_time_map.fits not used: the noise map includes photon noise",
    )
    with pytest.raises(InputError, match="may be an exposure map"):
        read_observation(str(folder), Inputs(noise_map=str(folder / "exposure_time_map.fits")))
    (folder / "noise_map.fits").unlink()
    with pytest.raises(InputError, match="both an exposure map"):
        read_observation(str(folder), Inputs(noise=NoiseSpecification(exposure=300, background_rms=SIGMA)))
    observation = read_observation(str(folder), Inputs(noise=NoiseSpecification(background_rms=SIGMA)))
    np.testing.assert_allclose(observation.noise_map**2, SIGMA**2 + IMAGE.clip(min=0) / 300)
    light = np.full_like(IMAGE, 3.0)
    np.testing.assert_allclose(observation.with_noise_of(light).noise_map ** 2, SIGMA**2 + light / 300)


def test_damaged_headers_are_bad_inputs(tmp_path, capfd):
    path = tmp_path / "a.fits"
    write(path, header={"PIXSCALE": SCALE, "BUNIT": "adu"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"BUNIT   = 'adu", b"BUNIT\x01  = 'adu").replace(b"PIXSCALE=", b"PIXSCALE?"))
    with pytest.raises(InputError):
        read_observation(str(path), Inputs(noise=NoiseSpecification(background_rms=SIGMA)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("keyword", ["BUNIT", "GAIN", "EXPTIME"])
def test_a_card_that_cannot_be_parsed_is_one_sentence(folder, keyword):
    write(folder / "image.fits", header={"PIXSCALE": SCALE, keyword: 12345})
    content = (folder / "image.fits").read_bytes()
    (folder / "image.fits").write_bytes(content.replace(b"               12345", b"\x01\xff\x02(           ))"))
    with pytest.raises(InputError, match=r"image.fits: the FITS file is truncated or damaged"):
        read_observation(str(folder))
