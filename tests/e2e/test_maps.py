"""Pictures of what the physics learned: `predict --maps` and the report's section."""

import numpy as np
from commandline import darklens
from tiny import CROP

from darklens.bundle import Bundle
from darklens.data.store import Store
from darklens.report.maps import true_deflection

SIS, PLAIN = "sis_autoencoder2", "resnet_simple"
AXIS = (np.arange(CROP) - (CROP - 1) / 2) * 0.05  # arcsec


def test_predict_writes_maps_that_agree_with_each_other(tiny, tmp_path):
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no image")
    files = sorted((tiny / "files").rglob("1.npy"))  # one in each class, all of one name
    assert len(files) == 3
    table, maps = tmp_path / "t.csv", tmp_path / "maps"
    assert darklens("predict", tiny / SIS, *files, bad, "--out", table, "--maps", maps) == 3
    assert sorted(p.name for p in maps.iterdir()) == [
        f"{name}-1.{kind}" for name in ("no", "sphere", "vort") for kind in ("npz", "png")
    ]
    found = np.load(maps / "no-1.npz")
    assert found["pixel_scale"] == 0.05
    assert all(found[name].shape == (CROP, CROP) for name in ("image", "k", "alpha_x", "alpha_y", "source"))
    # The study's ansatz: alpha = k theta / |theta|.
    r = np.hypot(AXIS[None], AXIS[:, None])
    np.testing.assert_allclose(found["alpha_x"], found["k"] * AXIS[None] / r, atol=1e-5)
    np.testing.assert_allclose(found["alpha_y"], found["k"] * AXIS[:, None] / r, atol=1e-5)
    assert (maps / "no-1.png").read_bytes().startswith(b"\x89PNG")


def test_files_of_one_name_and_odd_names_each_keep_their_maps(tiny, tmp_path):
    image = sorted((tiny / "files").rglob("1.npy"))[0].read_bytes()
    names = ["a/lens.npy", "b/lens.npy", "b/lens.fits.npy", "c/b-lens.npy", "c/$x_{$.npy", "d/b/lens.npy"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    maps = tmp_path / "maps"
    files = [tmp_path / name for name in names]
    assert darklens("predict", tiny / SIS, *files, "--out", tmp_path / "t.csv", "--maps", maps) == 0
    assert sorted(p.stem for p in maps.glob("*.npz")) == [
        "$x_{$",
        "a-lens",
        "b-lens",
        "b-lens-2",
        "b-lens-3",
        "lens.fits",
    ]


def test_a_system_without_a_lens_step_and_a_folder_in_use_are_refused(tiny, tmp_path, capsys):
    files = tiny / "files"
    assert darklens("predict", tiny / PLAIN, files, "--out", tmp_path / "t.csv", "--maps", tmp_path / "m") == 2
    assert "has no lens step" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert darklens("predict", tiny / SIS, files, "--out", tmp_path / "t.csv", "--maps", tmp_path / "full") == 2
    assert "not empty" in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists() and not (tmp_path / "m").exists()


def test_the_report_shows_the_true_deflection_of_simulated_images_only(tiny, tmp_path):
    assert darklens("evaluate", tiny / SIS, tiny / "test", "--out", tmp_path / "e") == 0
    text = (tmp_path / "e" / "report.html").read_text()
    assert "Lens maps" in text and "true deflection, rms arcsec" in text
    assert darklens("import", tiny / "files", "--out", tmp_path / "imported") == 0
    assert darklens("evaluate", tiny / SIS, tmp_path / "imported", "--out", tmp_path / "f") == 0
    text = (tmp_path / "f" / "report.html").read_text()
    assert "Lens maps" in text and "true deflection, rms arcsec" not in text
    assert darklens("evaluate", tiny / PLAIN, tiny / "test", "--out", tmp_path / "g") == 0
    assert "Lens maps" not in (tmp_path / "g" / "report.html").read_text()


def test_the_true_deflection_is_the_smooth_lens_and_its_substructure(tiny):
    store = Store(tiny / "test")
    bundle = Bundle.load(tiny / SIS)
    smooth, clumpy = (int(np.flatnonzero(store.labels == i)[0]) for i in (0, 1))
    alpha_x, alpha_y = true_deflection(bundle, store, [smooth, clumpy])
    x, y = np.meshgrid(AXIS, AXIS)
    for i, number in enumerate((smooth, clumpy)):
        theta_E, g1, g2 = (float(store.truth(name)[number]) for name in ("theta_E", "gamma1", "gamma2"))
        expected = theta_E * x / np.hypot(x, y) + g1 * x + g2 * y, theta_E * y / np.hypot(x, y) + g2 * x - g1 * y
        deviation = np.hypot(alpha_x[i] - expected[0], alpha_y[i] - expected[1])
        if number == smooth:
            assert deviation.max() < 1e-5
            continue
        # Twenty-five masses: sum of theta_E^2 offset / r^2.
        masses = [store.truth(f"point_{name}")[number] for name in ("theta_E", "x", "y")]
        for strength, at_x, at_y in zip(*masses, strict=True):
            square = (x - at_x) ** 2 + (y - at_y) ** 2
            expected = (
                expected[0] + strength**2 * (x - at_x) / square,
                expected[1] + strength**2 * (y - at_y) / square,
            )
        assert deviation.max() > 0.005
        assert np.hypot(alpha_x[i] - expected[0], alpha_y[i] - expected[1]).max() < 1e-4


def test_the_truth_of_a_store_of_another_schema_is_unknown(tiny):
    store = Store(tiny / "test")
    bundle = Bundle.load(tiny / SIS)
    store.index = store.index.model_copy(update={"population": {"name": "of a later version"}})
    assert true_deflection(bundle, store, [0]) is None
