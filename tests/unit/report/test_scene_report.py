"""Pages of fits and searches, from the rows of their tables."""

import base64
import re

import pytest

from darklens.fit.perturber_profiles import Redshifts
from darklens.fit.perturber_table import SearchOptions
from darklens.fit.resumable_table import Row
from darklens.report.scene_report import fit_page, search_page

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
NAME = '<img src=x onerror="alert(1)">&.fits'
BAD = Row("bad.fits", {}, "bad.fits: there is no noise map.")


def fitted(label, chi2, message=""):
    columns = {"theta_E": "1.23456", "theta_E_error": "0.0031", "chi2_per_pixel": str(chi2), "converged": "yes"}
    return Row(label, {**columns, "message": message, "changes": "no PSF: no blurring assumed"}, figure=PNG)


def searched(label, delta, detected, message=""):
    columns = {"delta_chi2": str(delta), "threshold": "11", "x": "0.91", "y": "-0.5", "detected": detected}
    columns |= {"log10_mass": "9.9712", "log10_mass_error": "0.083", "chi2_per_pixel": "1.01"}
    return Row(label, {**columns, "chi2_per_pixel_smooth": "1.3", "message": message}, figure=PNG)


def cells(html, title):
    """Rows of the table under a heading."""
    section = html.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section.split("<tbody>")[1], re.S)
    return [re.findall(r"<td[^>]*>(?:<a href=\"#[\w-]+\">)?(.*?)(?:</a>)?</td>", row) for row in rows]


def test_a_page_of_fits_has_the_worst_first_and_links_to_the_figures():
    rows = [fitted("a.fits", 1.0), BAD, fitted(NAME, 2.5, "chi2 per pixel 2.50: the model does not describe the image")]
    html = fit_page(rows, {"scene": "epl-shear <x>"})
    assert "2 of 3 images fitted, 1 of these not to be trusted." in html
    worst, best = cells(html, "Fits")
    assert worst[1:] == ["1.2346 ± 0.0031", "2.5", "yes", "not to be trusted"] and best[0] == "a.fits"
    assert cells(html, "Not fitted") == [["bad.fits", "bad.fits: there is no noise map."]]
    assert "does not describe" in cells(html, "Not to be trusted")[0][1] and "No PSF: no blurring assumed." in html
    links = re.findall(r'href="#([\w-]+)"', html)
    assert links == ["image-1", "image-2", "image-1"] and all(f'<section id="{link}">' in html for link in links)
    assert html.count("data:image/png;base64,") == 2 and "<img src=x" not in html and "&lt;x&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html) and "<script" not in html


def test_a_page_of_searches_names_threshold_masses_and_detections():
    doubt = "no detection is claimed: not converged"
    rows = [
        searched("none.fits", 3.0, "no"),
        searched("doubt.fits", 40.0, "no", doubt),
        searched(NAME, 95.1, "yes"),
        BAD,
    ]
    html = search_page(rows, SearchOptions(redshifts=Redshifts(0.22, 0.61)), {})
    assert "3 of 4 images searched, 1 of these not to be trusted. Perturbers detected in 1." in html
    first, second, third = cells(html, "Searches")
    assert first[1:] == ["yes", "95.1", "11", "0.91, -0.50", "9.971 ± 0.083", "1.3, 1.01"]
    assert second[:2] == ["doubt.fits", "not to be trusted"] and third[:2] == ["none.fits", "no"]
    assert "exceeds 11. About 10 % of smooth lenses" in html
    assert "z_lens = 0.22 and z_source = 0.61" in html and "Dutton &amp; Maccio 2014" in html
    assert "Delta chi2 95.1 at x, y = 0.91, -0.50 arcsec, log10 M / M_sun = 9.971 ± 0.083." in html


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SearchOptions("point"), ["exceeds 15. This threshold is a choice", "Masses are total masses"]),
        (SearchOptions("tnfw_free", simulations=40), ["40 simulated smooth lenses", "c200 is free"]),
        (
            SearchOptions(threshold=30.0, redshifts=Redshifts(concentration=12.0)),
            ["exceeds 30.", "not known", "c200 is 12"],
        ),
    ],
)
def test_the_rate_of_false_alarms_is_that_of_the_threshold(options, words):
    html = search_page([BAD], options, {})
    assert all(word in html for word in words) and "About 10 %" not in html


def test_further_perturbers_and_their_concentrations_are_in_the_caption():
    row = searched("a.fits", 95.0, "yes")
    further = {"delta_chi2_2": "20", "x_2": "1", "y_2": "2", "log10_mass_2": "9", "log10_mass_error_2": "0.2"}
    columns = {**row.columns, **further, "concentration_2": "50", "concentration_error_2": "20"}
    html = search_page([Row("a.fits", columns, figure=PNG)], SearchOptions("tnfw_free", n_max=2), {})
    assert "Delta chi2 20 at x, y = 1.00, 2.00 arcsec, log10 M / M_sun = 9.00 ± 0.20, c200 = 50 ± 20." in html
