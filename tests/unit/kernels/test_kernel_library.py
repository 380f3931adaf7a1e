"""Building, caching and loading the compiled kernels."""

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess

import pytest
import torch
from kernels import must_build
from spawning import start_code

from darklens.kernels import library as module
from darklens.kernels import smooth_fit
from darklens.kernels.library import library

needs_compiler = pytest.mark.skipif(not must_build(), reason="no g++, or a processor without AVX2")
BUILD = """
import os
from pathlib import Path
os.environ["XDG_CACHE_HOME"] = {cache!r}
from darklens.kernels import library as module
module._SOURCE = Path({source!r})
Path({out!r}).write_text(str(module.library() and module.library().lanes()))
"""


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache folder, and no library loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path / "cache" / "darklens"
    library.cache_clear()


@pytest.fixture
def short_source(tmp_path, monkeypatch):
    """Code that compiles in an instant, in place of the kernels."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "kernels.cpp").write_text('extern "C" long lanes() { return 5; }')
    monkeypatch.setattr(module, "_SOURCE", source)


@needs_compiler
def test_it_is_built_once(short_source, empty_cache, monkeypatch):
    assert library() is not None
    (cached,) = empty_cache.iterdir()
    library.cache_clear()
    monkeypatch.setattr(module, "_build", None)
    assert library() is not None
    assert list(empty_cache.iterdir()) == [cached]


@needs_compiler
def test_fits_of_few_images_do_not_wait_for_the_compiler(empty_cache):
    slopes, ones = torch.rand(3, 2, 16, 16), torch.ones(3, 16, 16)
    smooth_fit.load_for(3)
    assert smooth_fit.normal_equations(slopes, ones, ones) is None
    assert not empty_cache.exists()
    smooth_fit.load_for(16)
    assert smooth_fit.normal_equations(slopes, ones, ones) is not None


@needs_compiler
@pytest.mark.parametrize("damage", [lambda code: b"", lambda code: code[: len(code) // 2], lambda code: code + b"x"])
def test_a_damaged_file_is_built_again(short_source, empty_cache, damage):
    empty_cache.mkdir(parents=True)
    module._build("g++", cached := empty_cache / f"kernels-{module._name('g++')}.so")
    cached.write_bytes(damage(cached.read_bytes()))
    assert library().lanes() == 5
    assert module._is_intact(cached) and list(empty_cache.iterdir()) == [cached]


def planted(path):
    """Put a library at a path that gives 66, as a stranger could who knows the name, with its digest."""
    source = path.parent / "planted.cpp"
    path.parent.mkdir(parents=True, exist_ok=True)
    source.write_text('extern "C" long lanes() { return 66; }')
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    source.unlink()
    path.chmod(0o644)


def to_nobody(path):
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534, follow_symlinks=False)


def as_link(path):
    target = path.rename(path.parent.parent / "elsewhere.so")
    path.symlink_to(target)


@needs_compiler
@pytest.mark.parametrize(
    "plant",
    [
        to_nobody,
        lambda path: path.chmod(0o666),
        lambda path: path.chmod(0o664),
        lambda path: path.parent.chmod(0o777),
        lambda path: path.parent.chmod(0o775),
        lambda path: to_nobody(path.parent),
        as_link,
    ],
    ids=["of another user", "writable", "group-writable", "in a writable folder", "in a group's folder",
         "in the folder of another user", "a link"],
)  # fmt: skip
def test_a_library_that_others_may_have_written_is_not_loaded(plant, short_source, empty_cache):
    path = module._path("g++", empty_cache)
    planted(path)
    assert ctypes.CDLL(shutil.copy(path, path.parent.parent / "copy.so")).lanes() == 66
    plant(path)
    assert library().lanes() == 5
    library.cache_clear()
    assert library().lanes() == 5
    if empty_cache.stat().st_uid == os.geteuid():
        assert module.is_private(path) and module.is_private(empty_cache) and module._is_intact(path)


@needs_compiler
def test_two_processes_may_build_at_once(short_source, empty_cache, tmp_path):
    outputs = [tmp_path / name for name in "ab"]
    paths = {"cache": str(empty_cache.parent), "source": str(module._SOURCE)}
    for process in [start_code(BUILD.format(out=str(out), **paths)) for out in outputs]:
        process.join()
        assert process.exitcode == 0
    assert {out.read_text() for out in outputs} == {"5"}
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]


@needs_compiler
def test_it_works_without_a_writable_cache_folder(short_source, empty_cache, tmp_path):
    empty_cache.parent.write_text("a file in place of the folder")
    assert library() is not None


@needs_compiler
def test_it_works_on_a_read_only_disk(short_source, empty_cache, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module.Path, "mkdir", read_only)
    assert library() is not None


def test_without_a_compiler_there_is_no_library(empty_cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert library() is None


@pytest.mark.parametrize("compiler", ["false", "sleep"])
def test_a_failing_compiler_gives_a_warning_and_no_library(empty_cache, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=f"{compiler} could not build the kernels"):
        assert library() is None


def test_it_can_be_switched_off(empty_cache, monkeypatch):
    monkeypatch.setenv("DARKLENS_KERNELS", "0")
    assert library() is None
    assert not empty_cache.exists()


@needs_compiler
def test_the_file_name_depends_on_the_processor(monkeypatch):
    name = module._name("g++")
    monkeypatch.setattr(module, "_FLAGS", (*module._FLAGS, "-mno-fma"))
    assert module._name("g++") != name
