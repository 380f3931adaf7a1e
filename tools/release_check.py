"""Check what a user gets: `python tools/release_check.py [wheel] [lowest]`; both at once where none is named.

The sdist is built first, then the wheel from the sdist, and their contents are checked.

wheel   installs the wheel without extras into an empty environment: every module that needs none can be imported, an
        npy image is classified, and each absent extra is named in one sentence; then adds the extra `serve`
lowest  installs the lowest versions that pyproject.toml allows and runs a quick part of the tests with them

Environments are made in a temporary folder and removed. torch is not installed anew, as that of an index brings
gigabytes of CUDA: the one that this Python has is lent to them. So the lowest torch itself is not tried.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
QUICK_TESTS = [
    "tests/laws/test_splat.py",
    "tests/unit/test_config.py",
    "tests/unit/test_files.py",
    "tests/unit/data/test_deeplense.py",
    "tests/unit/populations/test_populations.py",
    "tests/e2e/test_lens_residual.py",
]
# Modules of the package that an extra is for: import name to extra.
EXTRAS = {
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "multipart": "serve",
    "python_multipart": "serve",
    "h5py": "hdf5",
}
EXTRAS |= {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "captum": "explain", "distributed": "cluster"}
EXTRAS |= {"dask": "cluster", "dask_jobqueue": "cluster", "optuna": "tune", "huggingface_hub": "hub"}
_MOST_MB = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[[], *JOBS], help="default: all")
    chosen = parser.parse_args().jobs or list(JOBS)
    with tempfile.TemporaryDirectory(prefix="darklens-release-") as folder:
        work = Path(folder)
        wheel, sdist = build(work / "dist")
        check_contents(wheel, sdist)
        with ThreadPoolExecutor(len(chosen)) as pool:
            for done in as_completed([pool.submit(timed, job, wheel, work) for job in chosen]):
                done.result()


def timed(job: str, wheel: Path, work: Path) -> None:
    began = time.monotonic()
    JOBS[job](wheel, work)
    print(f"{job}: passed in {time.monotonic() - began:.0f} s", flush=True)


def build(out: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, so that the sdist is known to be complete."""
    began = time.monotonic()
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)])
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    sizes = f"{wheel.stat().st_size / 1e6:.1f} and {sdist.stat().st_size / 1e6:.1f} MB"
    print(f"built {wheel.name} and {sdist.name} ({sizes}) in {time.monotonic() - began:.0f} s", flush=True)
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Every file of the source tree that git knows is in both; nothing else is; the version is that of git."""
    names = subprocess.run(["git", "ls-files", "src/darklens"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name.removeprefix("src/") for name in names.stdout.splitlines()}
    require(len(tracked) > 100, "git lists the source tree")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    require(packed == tracked, f"the wheel holds the package's files and no others: {sorted(packed ^ tracked)[:5]}")
    require(wheel.stat().st_size < _MOST_MB * 1e6, f"the wheel is smaller than {_MOST_MB} MB")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    missing = {f"src/{name}" for name in tracked} | {"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py"}
    require(missing <= inside, f"the sdist holds the sources: {sorted(missing - inside)[:5]}")
    version = re.search(r"^Version: (.+)$", metadata, re.MULTILINE)
    assert version is not None
    release = re.fullmatch(r"[0-9.]+", version[1]) is not None
    require(release or "+g" in version[1], f"the version {version[1]} comes from git")
    if release:
        cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
        require(f"version: {version[1]}\n" in cff, f"CITATION.cff has version {version[1]}")
    for extra in PROJECT["optional-dependencies"]:
        require(f"Provides-Extra: {extra}" in metadata, f"the metadata has the extra {extra}")


def job_wheel(wheel: Path, work: Path) -> None:
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    with environment(work / "wheel") as python:
        install(python, str(wheel), *constraints)
        entry = python.parent / ("darklens.exe" if os.name == "nt" else "darklens")
        require(
            run([str(entry), "--version"], cwd=work).strip() in wheel.name.replace("_", "-"), "--version is the wheel's"
        )
        location = "import darklens, pathlib; print(pathlib.Path(darklens.__file__).parent)"
        inside = run([str(python), "-c", location], cwd=work)
        require(str(ROOT) not in inside, "the installed package is used, not the source tree")
        check_imports(python, work)
        check_commands(python, work)
        install(python, f"darklens[serve] @ {wheel.as_uri()}", *constraints)
        run([str(python), "-c", "import darklens.serve, fastapi, uvicorn, multipart"], cwd=work)


def check_imports(python: Path, work: Path) -> None:
    """All modules but those of an extra can be imported."""
    found = json.loads(run([str(python), "-c", _IMPORT_ALL], cwd=work))
    strays = {m: missing for m, missing in found["failed"].items() if missing.split(".")[0] not in EXTRAS}
    require(not strays, f"what modules need and core dependencies lack is an extra's: {strays}")
    require(found["imported"] > 100, f"only {found['imported']} modules could be imported without extras")
    print(f"wheel: {found['imported']} modules imported, {len(found['failed'])} need an extra", flush=True)


def check_commands(python: Path, work: Path) -> None:
    """Listings are complete, an image of a vortex is classified as one, and each absent extra is named."""
    lens = str(Path("folder/vort/1.npy"))
    (work / "lens.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    simulate = ["simulate", "common-test-i", "--n-per-class", "1"]
    complete = {"models": "lens_residual", "populations": "common-test-i", "recipes": "sis_autoencoder2"}
    succeed = [
        *([listing] for listing in complete),
        ["--help"],
        [*simulate, "--out", "folder", "--seed", "3", "--format", "deeplense"],
        ["predict", lens, "--out", "predictions.csv"],
        [*simulate, "--out", "store", "field.n_pixels=48"],
        _UNTRAINED,
    ]
    without = {
        "onnx": ["export", "untrained", "--onnx", "x.onnx"],
        "hub": ["predict", "owner/name", lens, "--out", "x.csv"],
        "explain": ["explain", "lens_residual", lens, "--out", "why"],
        "cluster": ["simulate", "common-test-i", "--out", "s", "--cluster", "tcp://localhost:1"],
        "hdf5": ["predict", "lens.h5", "--out", "x.csv"],
        "serve": ["serve", "--port", "1"],
        "tune": ["tune", "resnet_simple", "--data", "store", "--out", "t", "--trials", "1"],
    }
    codes = json.loads(run([str(python), "-c", _IN_TURN, json.dumps([*succeed, *without.values()])], cwd=work))
    texts = [(work / f"output-{i}").read_text(encoding="utf-8") for i in range(len(codes))]
    for words, code, text in zip(succeed, codes, texts, strict=False):
        require(code == 0, f"{words} succeeds: {text[-300:]}")
    for (listing, name), text in zip(complete.items(), texts, strict=False):
        require(name in text, f"{listing} lists {name}")
    header, row = (work / "predictions.csv").read_text(encoding="utf-8").splitlines()
    require(",ok,vort," in row, f"the image of a vortex is classified as one: {header} / {row}")
    for (extra, words), code, text in zip(without.items(), codes[len(succeed) :], texts[len(succeed) :], strict=True):
        require(words[0] in texts[len(complete)], f"there is a command {words[0]}")
        require(code in (2, 3), f"{words[0]} without the extra {extra} exits with 2 or 3, not {code}: {text[-300:]}")
        named = f"darklens[{extra}]" in text.strip().splitlines()[-1]
        require(named, f"{words[0]} names the extra {extra}: {text[-300:]}")


def job_lowest(_: Path, work: Path) -> None:
    bounds = lowest(PROJECT["dependencies"])
    with environment(work / "lowest") as python:
        torch = next(b for b in bounds if b.startswith("torch=="))
        print(f"lowest: torch {distribution('torch').version} in place of {torch}", flush=True)
        others = [b for b in bounds if not b.startswith("torch==")]
        tests = ["pytest==8.3.0", "hypothesis==6.110.0", "beartype==0.20.0", "pytest-xdist==3.7.0"]
        install(python, *others, *tests)
        install(python, "--no-deps", "--editable", str(ROOT))
        print(run([*pip(python), "list", "--format=freeze"], cwd=work).replace("\n", " "), flush=True)
        print(
            run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK_TESTS], cwd=ROOT)[-400:],
            flush=True,
        )


JOBS = {"wheel": job_wheel, "lowest": job_lowest}


def lowest(requirements: list[str]) -> list[str]:
    """Turn `name>=1.2,<2` into `name==1.2`."""
    found = []
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)", requirement)
        require(match is not None, f"{requirement} has a lower bound")
        assert match is not None
        found.append(f"{match[1]}=={match[2]}")
    return found


@contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """Yield the Python of a fresh virtual environment, which is removed at the end."""
    venv.create(folder)  # the pip of this Python installs into it
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    lend_torch(python)
    yield python
    shutil.rmtree(folder)


def lend_torch(python: Path) -> None:
    """Link the torch of this Python into another environment: it is large, and its build was chosen by the user."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(run([str(python), "-c", code]).strip())
    for item in sorted({file.parts[0] for file in distribution("torch").files or []}):
        source = Path(str(distribution("torch").locate_file(item)))
        if item != ".." and source.exists() and not (target / item).exists():
            (target / item).symlink_to(source, target_is_directory=source.is_dir())


def pip(python: Path) -> list[str]:
    return [sys.executable, "-m", "pip", "--python", str(python)]


def install(python: Path, *words: str, check: bool = True) -> int:
    # Python compiles what it imports, a small part of what is installed.
    command = [*pip(python), "install", "--quiet", "--no-compile", "--disable-pip-version-check", *words]
    code, text = outcome(command, ROOT)
    if code and check:
        sys.exit(f"Installing {' '.join(words)} failed:\n{text}")
    return code


def outcome(command: list[str], cwd: Path) -> tuple[int, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def run(command: list[str], cwd: Path = ROOT) -> str:
    code, text = outcome(command, cwd)
    if code:
        sys.exit(f"{' '.join(command)} failed with {code}:\n{text}")
    return text


def require(held: bool, what: str) -> None:
    if not held:
        sys.exit(f"Not so: {what}")


# The shipped models fit lenses, which ONNX cannot say.
_UNTRAINED = """
from pathlib import Path
from darklens.bundle import Bundle
from darklens.models.resnet_simple import ResNetSimpleConfig
contract = Bundle.load("lens_residual").contract.model_copy(
    update={"recipe": "resnet_simple", "model": ResNetSimpleConfig(), "calibration": None, "ood_sha256": ""}
)
Bundle(contract, contract.build()).save(Path("untrained"))
"""
# Command lines, or code, each in a process of its own that has imported torch.
_IN_TURN = """
import json, os, sys
import darklens.predict
from darklens.cli import main
codes = []
for i, words in enumerate(json.loads(sys.argv[1])):
    process = os.fork()
    if process == 0:
        output = os.open(f"output-{i}", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        exec(words) if isinstance(words, str) else main(words)
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(json.dumps(codes))
"""
_IMPORT_ALL = """
import importlib, json, pkgutil, darklens
failed, imported = {}, 0
for module in pkgutil.walk_packages(darklens.__path__, "darklens.", onerror=lambda name: None):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except ModuleNotFoundError as error:
        failed[module.name] = str(error.name)
print(json.dumps({"imported": imported, "failed": failed}))
"""


if __name__ == "__main__":
    main()
