"""Building, keeping and finding the compiled code."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernels import must_build

from darklens.kernels import fits
from darklens.kernels import library as module
from darklens.kernels.library import library

needs_compiler = pytest.mark.skipif(not must_build(), reason="no g++, or a processor without AVX2")
CALL = """
import torch
from pathlib import Path
from darklens.kernels import library as module
module._SOURCE = Path("{source}")
print(module.library() and module.library().lanes())
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Another cache, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path / "cache" / "darklens"
    library.cache_clear()


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Code that is compiled at once in place of the kernels."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "kernels.cpp").write_text('extern "C" long lanes() { return 5; }')
    monkeypatch.setattr(module, "_SOURCE", source)


def other_process(cache, **variables):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)} | variables
    code = CALL.format(source=module._SOURCE)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@needs_compiler
def test_it_is_built_once(short, fresh, monkeypatch):
    assert library() is not None
    (kept,) = fresh.iterdir()
    library.cache_clear()
    monkeypatch.setattr(module, "_build", None)
    assert library() is not None
    assert list(fresh.iterdir()) == [kept]


@needs_compiler
def test_a_few_images_are_fitted_without_waiting_for_a_compiler(fresh):
    slopes, ones = torch.rand(3, 2, 16, 16), torch.ones(3, 16, 16)
    fits.load_for(3)
    assert fits.normal_equations(slopes, ones, ones) is None
    assert not fresh.exists()
    fits.load_for(16)
    assert fits.normal_equations(slopes, ones, ones) is not None


@needs_compiler
@pytest.mark.parametrize("damage", [lambda code: b"", lambda code: code[: len(code) // 2], lambda code: code + b"x"])
def test_a_damaged_file_is_built_anew(short, fresh, damage):
    # In other processes: here the file is loaded, and cutting it would end this one.
    lanes = other_process(fresh.parent)
    (kept,) = fresh.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert other_process(fresh.parent) == lanes != "None"
    assert module._whole(kept)


@needs_compiler
def test_two_processes_may_build_at_once(short, fresh):
    with ThreadPoolExecutor(2) as both:
        found = set(both.map(lambda _: other_process(fresh.parent), range(2)))
    assert len(found) == 1 and "None" not in found
    assert [path.suffix for path in fresh.iterdir()] == [".so"]


@needs_compiler
def test_a_folder_that_cannot_be_written_does_not_matter(short, fresh, tmp_path):
    fresh.parent.write_text("a file where the folder would be")
    assert library() is not None


def test_without_a_compiler_there_is_none(fresh, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert library() is None


@pytest.mark.parametrize("compiler", ["false", "sleep"])
def test_a_compiler_that_fails_is_none(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=f"{compiler} could not build the kernels"):
        assert library() is None


def test_it_can_be_switched_off(fresh):
    assert other_process(fresh.parent, DARKLENS_KERNELS="0") == "None"
    assert not fresh.exists()


@needs_compiler
def test_processors_and_compilers_are_told_apart(monkeypatch):
    name = module._name("g++")
    monkeypatch.setattr(module, "_FLAGS", (*module._FLAGS, "-mno-fma"))
    assert module._name("g++") != name
