import shutil

import pytest
import torch

from darklens.errors import ConfigError
from darklens.kernels import library
from darklens.scene import compiled
from darklens.scene.compiled import POINTS, CompiledScene
from darklens.scene.profiles import EPL, SIS, MultiGaussian, Multipole, Sersic, Shapelets, Shear
from darklens.scene.scene import Scene

X, Y = torch.linspace(-1.5, 1.5, 61)[None], torch.linspace(-1.2, 1.2, 43)[:, None]


def scene(core=0.02, theta_E=1.0, **settings):
    mass = [SIS(theta_E=theta_E, centre_x=0.0, centre_y=0.0)]
    return Scene(mass, Sersic(core=core, n=1.0, e1=0.0, e2=0.0, **settings), Shapelets(1, centre_x=0.0, centre_y=0.0))


def arguments(model):
    complete = model.complete(torch.tensor([[0.2, 0.1, -0.1, 0.3], [0.3, 0.0, 0.2, 0.4]]))
    return complete, torch.tensor([[1.0, 0.5, -0.2, 0.1], [2.0, 0.3, 0.1, 0.0]])


def compare(functions, model):
    complete, amplitudes = arguments(model)
    for lens_light in (True, False):
        expected = model.planes(complete, X, Y, lens_light=lens_light)
        torch.testing.assert_close(functions.planes(complete, X, Y, lens_light=lens_light), expected)
    expected = model.slope_planes(complete, amplitudes, X, Y)
    atol = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(functions.slope_planes(complete, amplitudes, X, Y), expected, rtol=1e-4, atol=atol)


def test_images_are_evaluated_in_blocks(monkeypatch):
    model, lengths = scene(), set()

    def checked(function):
        def wrapper(*tensors):
            lengths.update(len(tensors[-1][0]) for _ in tensors)
            assert len(tensors[0]) == 1
            return function(*tensors)

        return wrapper

    monkeypatch.setattr(compiled, "_functions", lambda key: (checked(model.planes), checked(model.slope_planes)))
    assert X.numel() * Y.numel() % POINTS
    compare(CompiledScene(model), model)
    assert lengths == {POINTS}


def test_scenes_that_differ_in_values_alone_have_one_structure():
    first = scene()
    for other in (scene(core=0.0), scene(theta_E=1.3), first.softened(0.1)):
        assert other.structure == first.structure
        assert not torch.equal(other.complete(other.start()), first.complete(first.start()))


@pytest.mark.parametrize(
    "other",
    [
        Scene([EPL(), Shear(), Multipole(3)], [Sersic()]),
        Scene([EPL(), Shear(), Multipole(4, lens=None)], [Sersic()]),
        Scene([EPL(slope=2.0), Shear(), Multipole(4)], [Sersic()]),
        Scene([EPL(), Shear(), Multipole(4)], [Sersic(b_n="linear")]),
        Scene([EPL(), Shear(), Multipole(4)], [], [Sersic()]),
        Scene([EPL(), Shear(), Multipole(4)], [Shapelets(2)]),
        Scene([EPL(), Shear(), Multipole(4)], [MultiGaussian(3)]),
        Scene([EPL(), Shear(), Multipole(4)], [Sersic(R_e="source.n")]),
    ],
)
def test_scenes_with_other_functions_have_other_structures(other):
    assert other.structure != Scene([EPL(), Shear(), Multipole(4)], [Sersic()]).structure


def test_the_order_of_shapelets_belongs_to_the_structure():
    assert Scene(SIS(), Shapelets(2)).structure != Scene(SIS(), Shapelets(3)).structure
    assert Scene(SIS(), MultiGaussian(3)).structure != Scene(SIS(), MultiGaussian(3, largest=2.0)).structure


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="a compiled fit needs a C\\+\\+ compiler"):
        CompiledScene(Scene(SIS(), Shapelets(4)))


@pytest.mark.parametrize("damage", ["truncated", "a file for a folder"])
def test_a_damaged_cache_is_no_error(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "darklens"
    if damage == "truncated":
        folder.mkdir(mode=0o700)
        (folder / "scene-name.pt2").write_bytes(b"PK")
    else:
        folder.write_text("")

    def load(path):
        if path.read_bytes() != b"built":
            raise RuntimeError("damaged")
        return torch.sum

    monkeypatch.setattr(compiled, "_build", lambda function, arguments, path: path.write_bytes(b"built"))
    monkeypatch.setattr(compiled, "_load", load)
    assert compiled._loaded("name", torch.sum, ()) is torch.sum


@pytest.mark.sweep
@pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")
def test_compiled_functions_equal_pytorch_and_are_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled._functions.cache_clear()
    model = scene()
    compare(CompiledScene(model), model)
    files = sorted((tmp_path / "darklens").glob("scene-*.pt2"))
    assert len(files) == 2
    other = scene(core=0.0, theta_E=0.7)
    monkeypatch.setattr(compiled, "_build", None)
    compare(CompiledScene(other), other)
    compiled._functions.cache_clear()
    compare(CompiledScene(other), other)  # from the cache
