"""Scenes as YAML files: names, overrides, and one sentence for each mistake."""

import pytest
import yaml

from darklens.errors import ConfigError
from darklens.scene import EPL, SIE, Free, Multipole, Scene, Sersic, Shapelets, Shear
from darklens.scene.specification import get, names, to_yaml

FULL = "epl-shear-multipoles+light"


def test_the_named_scenes_describe_themselves():
    composed = [f"{n}{s}" for n in ("sie-shear", "epl-shear", "epl-shear-multipoles") for s in ("", "+light")]
    assert names() == sorted(
        [
            *composed,
            "epl-shear-circular-multipoles",
            "sie+mge",
            "sie-shear+mge",
            "epl-shear+mge",
            "epl-shear-multipoles+mge",
        ]
    )
    assert all(get(name).description for name in names())
    scene = get(FULL).scene()
    assert list(scene.profiles) == ["epl", "shear", "multipole3", "multipole4", "source", "light", "light2"]
    assert "multipole4.e1" not in scene.names and "light2.centre_x" not in scene.names


@pytest.mark.parametrize(
    "scene",
    [
        *(get(name).scene() for name in names()),
        Scene(
            [EPL(slope=2.0, theta_E=Free(start=1.5, prior=(1.4, 0.1))), Shear(), Multipole(1), Multipole(4, lens=None)],
            [Shapelets(3, beta=Free()), Sersic(name="clump", n=1.0, b_n="linear")],
        ),
        Scene([SIE(name="main"), SIE(name="satellite", centre_x=3.0, e1="main.e1")], [Sersic()]),
    ],
    ids=lambda scene: "-".join(scene.profiles),
)
def test_yaml_restores_a_scene(scene, tmp_path):
    path = tmp_path / "scene.yaml"
    path.write_text(scene.to_yaml())
    restored = Scene.from_yaml(path)
    assert (restored.names, restored.free, restored.amplitude_names) == (scene.names, scene.free, scene.amplitude_names)
    assert restored.to_yaml() == to_yaml(scene)


def test_overrides_fix_free_and_share_parameters():
    scene = Scene.from_yaml(FULL, ["epl.slope=2", "source.n=1", "epl.centre_x=light.centre_x", "light.n.start=5"])
    assert not {"epl.slope", "source.n", "epl.centre_x"} & set(scene.names)
    assert scene.free[scene.names.index("light.n")].start == 5
    assert scene.values_of("epl", dict.fromkeys(scene.names, 0.1))["slope"] == 2
    assert Scene.from_yaml(FULL, ["epl.slope=2", "epl.slope=free"]).names == get(FULL).scene().names
    assert "clump.R_e" in Scene.from_yaml(FULL, ["source.clump={kind: sersic}"]).names
    assert get(FULL, ["half_width=3", "psf.normalise=true"]).psf.normalise


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epl.slope=3.4", r"mass.epl.slope: out of bounds, 1.01 to 2.99, got 3.4\.$"),
        ("epl.theta_E.start=20", r"mass.epl.theta_E: start = 20 is out of bounds, 0.1 to 10\.$"),
        ("epl.slope={low: 2.5, high: 1.5}", "the lower bound 2.5 is not below the upper bound 1.5"),
        ("epl.slop=2", r"mass.epl.slop: unknown key; did you mean 'slope'\?$"),
        ("epl.slope.strat=2", r"mass.epl.slope.strat: unknown key; did you mean 'start'\?$"),
        ("source.nn=1", r"source.source.nn: unknown key; did you mean 'n'\?$"),
        ("elp.slope=2", r"there is no component 'elp'; did you mean 'epl'\?$"),
        ("mass.halo={kind: nwf}", r"mass.halo: Unknown kind 'nwf': did you mean 'nfw'\?$"),
        ("epl.centre_x=shear.x", "There is no parameter 'shear.x' to share"),
        ("epl.slope={prior: [2]}", r"mass.epl.slope.prior: too few values\.$"),
        ("epl.e1=round", "the name of another parameter"),
        ("epl.e1=true", "the name of another parameter"),
        ("multipole4.m=5", "m is 1, 3 or 4, got 5"),
        ("psf.fwhm=-1", "psf.fwhm: Input should be greater than 0"),
        ("slope", "is not of the form key.subkey=value"),
    ],
)
def test_a_mistake_is_one_sentence(override, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        get(FULL, [override])
    assert "\n" not in str(caught.value)


SOURCE = {"source": {"kind": "sersic"}}
HARMFUL = ("a.b", "a\nb", "=a()", "", "a b", "<b>", "3")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        *(({"mass": {"epl": {}, name: {"kind": "shear"}}}, "mass") for name in HARMFUL),
        ({"source": {f"s{i}": {"kind": "sersic"} for i in range(30)}}, "source"),
        ({"source": {"s": {"kind": "shapelets", "n_max": 100_000}}}, "shapelets need n_max"),
        ({"source": {"s": {"kind": "multi_gaussian", "n": 10**9}}}, "multi_gaussian needs n"),
        *(({"mass": {"epl": {"theta_E": {"prior": [1.0, sigma]}}}}, "prior") for sigma in (0, -1, 1e-300, 1e300)),
        *(({"mass": {"epl": {"centre_x": x}}}, "centre_x") for x in (1e300, {"low": -1e300}, {"start": 1e9})),
    ],
)
def test_a_scene_of_others_cannot_exhaust_the_memory_or_spoil_a_table(tmp_path, change, key):
    path = tmp_path / "scene.yaml"
    path.write_text(yaml.safe_dump({"mass": {"epl": {}}, "source": SOURCE} | change))
    with pytest.raises(ConfigError, match=key) as caught:
        get(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_misspelt_name_and_a_file_that_is_no_scene(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'epl-shear'"):
        get("epl-sheer")
    (tmp_path / "a.yaml").write_text("mass: [epl]\nsource: {source: {kind: sersic}}")
    with pytest.raises(ConfigError, match=r"a\.yaml: mass: "):
        get(str(tmp_path / "a.yaml"))


def test_a_psf_file_is_relative_to_the_scene(tmp_path):
    tree = yaml.safe_load(get("sie-shear").scene().to_yaml()) | {"psf": {"file": "psf.fits"}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree))
    assert get(str(tmp_path / "a.yaml")).psf.file == str(tmp_path / "psf.fits")
