"""Write examples/lens, the FITS files that the README fits: `python tools/example_lens.py`."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from darklens import EPL, PSF, Detector, Scene, Sersic, Shear

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "lens"
PIXEL_SCALE, FWHM, NOISE = 0.08, 0.16, 0.02  # arcsec, arcsec, fraction of the peak
DEGREES = PIXEL_SCALE / 3600


def main() -> None:
    lens = [EPL(theta_E=1.2, slope=2.0, e1=0.1, e2=0.0, centre_x=0.0, centre_y=0.0), Shear(gamma1=0.03, gamma2=0.0)]
    source = Sersic(R_e=0.2, n=1.0, e1=0.0, e2=0.1, centre_x=0.1, centre_y=0.05)
    psf = PSF.gaussian(fwhm=FWHM, pixel_scale=PIXEL_SCALE)
    image = Scene(lens, source).image({}, {"source.amplitude": 1.0}, Detector((60, 60), PIXEL_SCALE, psf))
    noise = NOISE * image.max()
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    header = fits.Header({"CDELT1": -DEGREES, "CDELT2": DEGREES, "CUNIT1": "deg", "CUNIT2": "deg"})
    FOLDER.mkdir(parents=True, exist_ok=True)
    arrays = {"image": image, "noise_map": np.full(image.shape, noise), "psf": psf.kernel.numpy()}
    for name, values in arrays.items():
        fits.writeto(FOLDER / f"{name}.fits", values.astype(np.float32), header, overwrite=True)


if __name__ == "__main__":
    main()
