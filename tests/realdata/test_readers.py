"""Real HST cutouts and galaxies are read with their pixel scale."""

import numpy as np
import pytest

from darklens.data.prepare import prepare
from darklens.data.readers import read_image

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize("scale", [0.04, 0.05])
def test_hst_lenses_have_the_scale_of_their_instrument(realdata, scale):
    images = [read_image(path) for path in sorted(realdata.glob("hst-lenses/image_*.h5"))]
    near = [image for image in images if image.pixel_scale == pytest.approx(scale, rel=1e-3)]
    assert len(images) == 6 and len(near) == {0.04: 4, 0.05: 2}[scale]
    for image in near:
        made = prepare(image, n_pixels=80, pixel_scale=0.05)
        assert made.pixels.shape == (80, 80) and np.isfinite(made.pixels).all()


def test_galaxies_of_cosmos_say_their_scale(realdata):
    for path in sorted(realdata.glob("cosmos-galaxies/*.fits")):
        assert read_image(path).pixel_scale == pytest.approx(0.03, rel=1e-4)
