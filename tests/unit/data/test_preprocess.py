import pytest
import torch

from darklens.config import load
from darklens.data.preprocess import Affine, BatchRandom, Dihedral, NoAugment, Preprocess
from darklens.errors import ConfigError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_numbers(seed=0):
    return BatchRandom(seeded(seed))


def batch(n=30, size=4):
    return torch.rand(size, 1, n, n, generator=seeded(9)) * 50 - 3


def test_each_image_is_scaled_by_itself():
    images = batch()
    images[1] *= 1000
    out = Preprocess()(images)
    assert out.amin((1, 2, 3)).tolist() == [0] * 4
    assert out.amax((1, 2, 3)).tolist() == [1] * 4
    torch.testing.assert_close(out[:1], Preprocess()(images[:1]), rtol=0, atol=0)


def test_crop_and_bin_keep_the_centre():
    images = torch.zeros(1, 1, 30, 30)
    images[..., 14:16, 14:16] = 8
    out = Preprocess(crop=20, bin=2)(images)
    assert out.shape == (1, 1, 10, 10) == (1, 1, *[Preprocess(crop=20, bin=2).output_size(30)] * 2)
    cropped = Preprocess(crop=20)(images)
    assert cropped[..., 9:11, 9:11].sum() == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"crop": 40}, "cannot be cropped"), ({"crop": 21}, "off centre"), ({"crop": 20, "bin": 3}, "blocks of 3")],
)
def test_impossible_sizes_are_errors(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Preprocess(**settings).output_size(30)


@pytest.mark.parametrize("augment", [Affine(), Affine(interpolation="bilinear"), Dihedral(), NoAugment()])
def test_augmentation_is_reproducible_and_keeps_the_contract(augment):
    pre = Preprocess(crop=20, bin=2)
    first, repeated, different = (pre.augmented(batch(), augment, random_numbers(s)) for s in (1, 1, 2))
    assert first.shape == (4, 1, 10, 10)
    assert torch.equal(first, repeated)
    assert torch.equal(first, different) == (augment.kind == "none")


def test_dihedral_augmentation_permutes_pixels():
    moved = Preprocess().augmented(batch(), Dihedral(), random_numbers(3))
    plain = Preprocess()(batch())
    for a, b in zip(moved, plain, strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_an_identity_transform_returns_the_image():
    still = Affine(rotation=0, scale_low=1, scale_high=1, interpolation="bilinear")
    torch.testing.assert_close(
        Preprocess(crop=20).augmented(batch(), still, random_numbers()), Preprocess(crop=20)(batch())
    )


def test_affine_scales_and_rotates_about_the_centre():
    x = torch.linspace(-1, 1, 61)
    r = torch.sqrt(x[None] ** 2 + x[:, None] ** 2)
    ring = torch.exp(-(((r - 0.5) / 0.05) ** 2))[None, None]
    larger = Affine(rotation=180, scale_low=1.2, scale_high=1.2, interpolation="bilinear")
    moved = Preprocess().augmented(ring, larger, random_numbers())[0, 0]
    radius = float((moved * r).sum() / moved.sum())
    assert radius == pytest.approx(0.6, abs=0.01)
    quarter = torch.zeros(1, 1, 61, 61)
    quarter[..., 30:, 30:] = 1
    turned = Preprocess().augmented(quarter, Affine(scale_low=1, scale_high=1), random_numbers(4))
    assert turned.mean() == pytest.approx(float(quarter.mean()), abs=0.02)
    assert not torch.equal(turned, quarter)


def test_a_crop_samples_the_whole_image():
    images = torch.zeros(1, 1, 40, 40)
    images[..., :8, :] = images[..., -8:, :] = images[..., :, :8] = images[..., :, -8:] = 1  # outside the crop of 24
    shrunk = Affine(rotation=0, scale_low=0.7, scale_high=0.7)
    out = Preprocess(crop=24).augmented(images, shrunk, random_numbers())
    assert out[..., 0, :].min() == 1


def test_impossible_scales_are_errors():
    with pytest.raises(ConfigError, match="scale_low"):
        load(Affine, {"kind": "affine", "scale_low": 2, "scale_high": 1})
