"""Compiled functions of position against PyTorch."""

import os
import shutil

import pytest
import torch

from darklens.compilation import compiler
from darklens.errors import ConfigError
from darklens.kernels import fields
from darklens.kernels.fields import Recipe, compile_fields
from darklens.kernels.library import compile_library, is_private

needs_compiler = pytest.mark.skipif(compiler(("g++", "clang++")) is None, reason="no C++ compiler")
ONE = torch.full((1, 1, 1), 0.5)
_COMPILED = {}  # libraries by their code
FUNCTIONS = {
    "exp": lambda p, x, y: x.exp(),
    "log": lambda p, x, y: x.abs().log(),
    "log1p": lambda p, x, y: x.square().log1p() + torch.log1p(-x.square() / 1000),
    "sqrt": lambda p, x, y: x.abs().sqrt(),
    "rsqrt": lambda p, x, y: x.abs().rsqrt(),
    "sin": lambda p, x, y: x.sin(),
    "cos": lambda p, x, y: x.cos(),
    "atan": lambda p, x, y: x.atan(),
    "atanh": lambda p, x, y: (x / 21).atanh(),
    "atan2": lambda p, x, y: torch.atan2(x, y),
    "hypot": lambda p, x, y: torch.hypot(x, y),
    "power": lambda p, x, y: x.abs() ** y,
    "sign": lambda p, x, y: x.abs() + x.sign() - (-x),
    "choice": lambda p, x, y: torch.where(x > y, x, y) * (x <= 0).to(x.dtype) + torch.maximum(x, y),
    "hoisted": lambda p, x, y: (p * p).sum(1)[:, None, None] * x + torch.exp(p[:, :1, None]) - p[:, 1:, None].sin() * y,
    "fixed": lambda p, x, y: p[:, 1:, None].abs() + 0 * x,
    "constant": lambda p, x, y: torch.full_like(x, 2.5),
}


def recipes(names=FUNCTIONS):
    return {
        f"f_{name}": Recipe(lambda p, x, y, f=FUNCTIONS[name]: f(p, x, y)[:, None], (torch.ones(1, 2), ONE, ONE))
        for name in names
    }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return compile_fields(recipes(), "A test", "wait")


@needs_compiler
@pytest.mark.parametrize("n", [1, 7, 8, 17, 1000])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_pytorch(compiled, name, n):
    generator = torch.Generator().manual_seed(n)
    x, y = (4 * torch.randn(2, n, generator=generator)).clamp(-20, 20)
    p = torch.tensor([[0.3, -2.0], [1.5, 0.4], [-0.7, 1.0]])
    found = compiled[f"f_{name}"](p, x=x, y=y)
    exact = FUNCTIONS[name](p.double(), x.double()[None, None], y.double()[None, None]).expand(3, 1, n)
    torch.testing.assert_close(found.double(), exact, rtol=3e-6, atol=1e-6)


@needs_compiler
def test_the_angle_of_axes_and_the_range_of_the_exponential(compiled):
    p, zero = torch.ones(1, 2), torch.zeros(1)
    for y, x in ((0.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)):
        angle = compiled["f_atan2"](p, x=zero + y, y=zero + x)
        torch.testing.assert_close(angle.flatten(), torch.atan2(zero + y, zero + x))
    low, high = compiled["f_exp"](p, x=torch.tensor([-1e4, 1e4]), y=torch.zeros(2)).flatten().tolist()
    assert 0 <= low < 1e-37
    assert high > 1e37


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """An empty cache folder, and a compiler that compiles the same code once and copies it from then on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fields, "compile_library", compiled_once)


def compiled_once(path, flags, code, target):
    if code not in _COMPILED:
        compile_library(path, flags, code, target)
        _COMPILED[code] = target.read_bytes()
    target.write_bytes(_COMPILED[code])


@needs_compiler
def test_the_library_is_cached_by_its_code(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_fields(recipes(["sign"]), "A test", "wait")
    compile_fields(recipes(["choice"]), "A test", "wait")
    files = sorted((tmp_path / "darklens").iterdir())
    assert len(files) == 2
    monkeypatch.setattr(fields, "compile_library", None)
    compile_fields(recipes(["sign"]), "A test", "wait")


@needs_compiler
@pytest.mark.parametrize("damage", [lambda code: code[:100], lambda code: code[:-1] + b"x", lambda code: b""])
def test_a_damaged_library_is_compiled_again(quick, tmp_path, damage):
    compile_fields(recipes(["sign"]), "A test", "wait")
    (path,) = (tmp_path / "darklens").iterdir()
    content = path.read_bytes()
    path.unlink()  # a loaded library must not change
    path.write_bytes(damage(content))
    found = compile_fields(recipes(["sign"]), "A test", "wait")["f_sign"](
        torch.ones(1, 2), x=torch.ones(3), y=torch.ones(3)
    )
    assert found.flatten().tolist() == [3.0] * 3
    assert path.read_bytes() == content


@needs_compiler
def test_an_unusable_cache_folder_is_no_error(quick, tmp_path):
    (tmp_path / "darklens").write_text("a file")
    assert compile_fields(recipes(["sign"]), "A test", "wait")


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"^A test needs a C\+\+ compiler: install g\+\+ or clang\+\+, or wait"):
        compile_fields(recipes(["sign"]), "A test", "wait")


def test_a_failing_compiler_is_one_sentence(monkeypatch, tmp_path):
    script = tmp_path / "g++"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"^A test failed: .*g\+\+ could not compile"):
        compile_fields(recipes(["sign"]), "A test", "wait")


def to_nobody(path):
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534)


def as_link(path):
    path.symlink_to(path.rename(path.parent.parent / "elsewhere.so"))


@needs_compiler
@pytest.mark.parametrize(
    "plant",
    [
        to_nobody,
        as_link,
        lambda path: path.chmod(0o666),
        lambda path: path.parent.chmod(0o777),
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink() or os.mkfifo(path),
    ],
    ids=["of another user", "a link", "writable", "in a writable folder", "truncated", "empty", "a FIFO"],
)
def test_a_scene_that_others_may_have_written_is_compiled_again(quick, tmp_path, plant):
    folder = tmp_path / "darklens"

    def value(name):
        return float(
            compile_fields({"f": recipes([name])[f"f_{name}"]}, "A test", "wait")["f"](
                torch.ones(1, 2), x=ONE[0, 0], y=ONE[0, 0]
            )
        )

    assert value("fixed") == 1
    (wrong,) = folder.iterdir()
    content = wrong.read_bytes()
    wrong.unlink()
    assert value("constant") == 2.5
    (cached,) = folder.iterdir()
    cached.unlink()  # it is mapped into this process
    cached.write_bytes(content)  # another library, with its digest
    plant(cached)
    assert value("constant") == 2.5
    assert cached.is_fifo() or (is_private(cached) and is_private(folder))
