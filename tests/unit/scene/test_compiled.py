import shutil

import pytest
import torch

from darklens.compilation import compiler
from darklens.errors import ConfigError
from darklens.fit.perturber_profiles import Redshifts, profile_of
from darklens.kernels import fields
from darklens.scene import compiled
from darklens.scene.compiled import CompiledScene, compile_scenes
from darklens.scene.light_profiles import MultiGaussian, Sersic, Shapelets
from darklens.scene.mass_profiles import EPL, NFW, SIS, TNFW, LineMass, Multipole, PointMass, PseudoJaffe, Shear
from darklens.scene.scene import Scene

needs_compiler = pytest.mark.skipif(compiler(("g++", "clang++")) is None, reason="no C++ compiler")

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
    with pytest.raises(ConfigError, match=r"A compiled fit needs a C\+\+ compiler"):
        CompiledScene(Scene(SIS(), Shapelets(4)))


@needs_compiler
@pytest.mark.parametrize(("choice", "result"), [(None, True), (True, True), (False, False)])
def test_scenes_are_compiled_by_default(choice, result):
    assert compile_scenes([scene()], choice) is result


def test_without_a_compiler_scenes_are_not_compiled_by_default(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not compile_scenes([scene()], None)
    with pytest.raises(ConfigError, match="needs a C"):
        compile_scenes([Scene(SIS(), Shapelets(4))], True)


@needs_compiler
def test_a_failing_compiler_is_a_warning_by_default(monkeypatch, tmp_path):
    script = tmp_path / "g++"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.warns(UserWarning, match="Fits are slower than they could be: A compiled fit failed"):
        assert not compile_scenes([Scene(SIS(), Shapelets(5))], None)


@needs_compiler
def test_one_compilation_serves_all_values(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled._functions.cache_clear()
    model = scene()
    compare(CompiledScene(model), model)
    monkeypatch.setattr(fields, "compile_library", None)
    other = scene(core=0.0, theta_E=0.7)
    compare(CompiledScene(other), other)
    compiled._functions.cache_clear()
    compare(CompiledScene(other), other)  # from the cache
    assert len(list((tmp_path / "darklens").glob("scene-*.so"))) == 1


@needs_compiler
def test_no_text_of_a_scene_enters_its_code(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled._functions.cache_clear()
    codes, build = [], fields.compile_library

    def recorded(path, flags, code, target):
        codes.append(code)
        build(path, flags, code, target)

    monkeypatch.setattr(fields, "compile_library", recorded)
    CompiledScene(Scene(SIS(name='evil"; system("ls'), Sersic(name="evil\n#include </etc/passwd>")))
    (code,) = codes
    assert "evil" not in code and "passwd" not in code


NAMES = ("epl-shear-multipoles+light", "sie+mge")  # together they have all profiles of the named scenes
MASSES = [NFW(), TNFW(), PseudoJaffe(), PointMass(), LineMass()]
MASSES += [profile_of(kind)(Redshifts()) for kind in ("tnfw", "tnfw_free", "point", "line")]


@needs_compiler
@pytest.mark.sweep
@pytest.mark.parametrize(
    "model",
    [*map(Scene.from_yaml, NAMES), *(Scene([SIS(), mass], [MultiGaussian(3)]) for mass in MASSES)],
    ids=[*NAMES, *(mass.kind for mass in MASSES)],
)
def test_every_profile_compiles(model):
    generator = torch.Generator().manual_seed(0)
    start = model.start().repeat(2, 1)
    parameters = start * (1 + 0.03 * torch.rand(start.shape, generator=generator)) + 0.01
    complete, amplitudes = model.complete(parameters), torch.ones(2, len(model.positive))
    functions = CompiledScene(model)
    for method, batch in (("planes", (complete,)), ("slope_planes", (complete, amplitudes))):
        result = getattr(functions, method)(*batch, X, Y)
        exact = getattr(model, method)(*(v.double() for v in batch), X.double(), Y.double())
        largest = exact.abs().amax((2, 3), keepdim=True).clamp_min(1e-6)
        assert float(((result - exact) / largest).abs().max()) < 2e-3
