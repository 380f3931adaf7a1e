"""The lens is found in a wider sky."""

import numpy as np
import pytest

from darklens import populations
from darklens.data.centre import find_lens
from darklens.data.prepare import prepare
from darklens.data.readers import Image
from darklens.simulate.batch import simulate_batch

N, SKY = 150, 10


def sky(seed, *shape):
    return np.random.default_rng(seed).poisson(SKY, shape).astype(float)


@pytest.fixture(scope="module")
def lenses():
    return simulate_batch(populations.get("common-test-i", ["stored=counts"]), 92, range(6))[0][:, 0]


@pytest.mark.parametrize("number", [1, 2])
def test_lenses_are_found_to_a_pixel_or_so(lenses, number, monkeypatch):
    """One with each substructure, tests of smooth ones follow; docs/how-to/your-files.md has the errors of many."""
    g = np.random.default_rng(number)
    up, right = (int(v) for v in g.integers(-25, 26, 2))
    wide = sky(number, N + 60, N + 80)
    wide[30 + up : 30 + up + N, 40 + right : 40 + right + N] = lenses[number]
    row, column = find_lens(wide, 0.05)
    assert np.hypot(row - up, column - right) < 2.0
    monkeypatch.setattr("darklens.data.prepare.find_lens", lambda *_: (row, column))  # the search takes a second
    made = prepare(Image(wide, 0.05), n_pixels=N, pixel_scale=0.05)
    assert len(made.changes) == 1 and made.changes[0].startswith("cropped from 210 x 230 to 150 x 150 pixels")
    cut = made.pixels - SKY
    shifted = [np.sum(cut * np.roll(lenses[number] - SKY, by, axis)) for axis in (0, 1) for by in (-4, 4)]
    assert np.sum(cut * (lenses[number] - SKY)) > max(shifted)


def test_a_centred_lens_is_not_shifted(lenses):
    wide = sky(1, N + 60, N + 60)
    wide[30 : 30 + N, 30 : 30 + N] = lenses[0]
    made = prepare(Image(wide, 0.05), n_pixels=N, pixel_scale=0.05)
    np.testing.assert_array_equal(made.pixels, lenses[0])
    assert made.changes == ("cropped from 210 x 210 to 150 x 150 pixels",)


def test_the_change_states_the_position_of_the_lens(lenses):
    wide = sky(1, N + 60, N + 60)
    wide[48 : 48 + N, 10 : 10 + N] = lenses[0]
    (change,) = prepare(Image(wide, 0.05), n_pixels=N, pixel_scale=0.05).changes
    words = change.split(" about the lens, ")[1]
    up, right = (int(part.split()[0]) for part in words.split(" and "))
    assert "above" in words and "to the left of the centre" in words
    assert abs(up - 18) <= 2 and abs(right - 20) <= 2


@pytest.mark.parametrize(
    "image",
    [
        sky(3, 60, 60),
        np.full((40, 40), 2.0),
        np.full((40, 40), np.nan),
        np.where(np.eye(40) > 0, 1e300, -1e300),
        np.where(np.eye(40) > 0, np.inf, 0.0),
    ],
)
def test_no_lens_is_found_without_light(image):
    position = find_lens(image, 0.05)
    assert position is None or np.isfinite(position).all()


def test_the_crop_about_a_lens_at_the_edge_stays_inside_the_image():
    wide = sky(4, 100, 100)
    wide[2:8, 90:96] += 200
    made = prepare(Image(wide, 0.05), n_pixels=60, pixel_scale=0.05)
    np.testing.assert_array_equal(made.pixels, wide[:60, 40:].astype(np.float32))
    assert "20 pixels below and 20 pixels to the right of the centre" in made.changes[0]
