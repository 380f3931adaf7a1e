"""Commands that simulate, import and examine images."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import (
    PARTIAL_SUCCESS,
    Population,
    Positive,
    StorePath,
    app,
    check_outputs,
    escaped,
    print_problems,
    progress,
)
from darklens.errors import ConfigError, InputError

if TYPE_CHECKING:
    from darklens.data.store import Store
    from darklens.populations.population import Population as PopulationModel


@app.command
def simulate(
    population: Population,
    *overrides: Annotated[
        str, Parameter(help="Overrides of the population, such as `lens.gamma=0` or `field.n_pixels=64`.")
    ],
    out: Annotated[Path, Parameter(help="Folder to write.")],
    n_per_class: Annotated[Positive, Parameter(help="Number of images per class.")] = 1000,
    seed: Annotated[int, Parameter(help="Random seed; equal seeds give identical files.")] = 0,
    workers: Annotated[
        Positive | None, Parameter(help="Number of processes; by default one per available core, one on a GPU.")
    ] = None,
    cluster: Annotated[
        str | None,
        Parameter(
            help="Address (tcp://host:port) of a Dask cluster to run on. Its workers need the same version of darklens "
            "and access to --out on a shared file system."
        ),
    ] = None,
    shard_size: Annotated[
        Positive | None, Parameter(help="Images per file; by default 256, or fewer if they exceed 64 MB.")
    ] = None,
    backend: Annotated[
        Literal["eager", "compiled"],
        Parameter(
            name=["--backend", "--engine"],
            help="compiled: about three times as fast, after 30 s of compilation; pixels differ by rounding errors.",
        ),
    ] = "eager",
    format: Annotated[
        Literal["store", "deeplense"], Parameter(help="store, or deeplense: one folder per class with .npy files.")
    ] = "store",
    device: Annotated[
        str,
        Parameter(
            help="Device that renders: cpu, cuda, or cuda:1 for the second GPU. A GPU draws other photon counts than "
            "the CPU; the true parameters are the same."
        ),
    ] = "cpu",
) -> int:
    """Simulate labelled lens images.

    To continue an interrupted simulation, repeat the command.

    Example: `darklens simulate common-test-i --out stores/train --n-per-class 10000 --seed 1`
    """
    from contextlib import nullcontext
    from functools import partial

    from darklens import executors, populations
    from darklens.simulate.generate import SHARD_SIZE, generate

    in_store = [out / "store.json", out / "unfinished" / "plan.json"]
    scratch = [] if format == "store" else [_scratch(out)]
    check_outputs(folders=[out, *scratch], files=[] if scratch else in_store, inputs=[population])
    specification = populations.get(population, overrides)
    n = n_per_class * len(specification.classes)
    if cluster and workers:
        raise ConfigError("--workers is for this machine only; give either --workers or --cluster.")
    if workers is None:
        # Starting a process takes longer than simulating a shard.
        workers = (min(executors.usable_cores(), n // (2 * SHARD_SIZE)) or 1) if device == "cpu" else 1
    with executors.cluster(cluster) if cluster else nullcontext() as executor:
        simulate_to = partial(
            generate,
            specification,
            n_per_class=n_per_class,
            seed=seed,
            workers=workers,
            executor=executor,
            backend=backend,
            device=device,
            shard_size=shard_size,
        )
        if format == "store":
            with progress("Simulating", n) as advance:
                simulate_to(out, advance=advance)
        else:
            _simulate_folder(specification, n, out, simulate_to)
    print(f"{n} images of {specification.name} in {out}")
    return 0


def _scratch(out: Path) -> Path:
    return out.parent / f".{out.name}.unfinished"


def _simulate_folder(population: "PopulationModel", n: int, out: Path, simulate_to: "Callable[..., Store]") -> None:
    """Simulate a store next to `out` and convert it to folders of DeepLense; both steps can be interrupted."""
    import shutil

    from darklens.data.deeplense import export_folder
    from darklens.data.store import prepare_folder
    from darklens.files import require_space
    from darklens.simulate.generate import bytes_needed

    prepare_folder(out)
    scratch = _scratch(out)
    if not scratch.exists():
        require_space(out, 3 * bytes_needed(population, n))  # a float32 store and float64 files
    with progress("Simulating", n) as advance:
        store = simulate_to(scratch / "store", advance=advance)
    shutil.rmtree(scratch / "folder", ignore_errors=True)
    with progress("Writing .npy files", n) as advance:
        export_folder(store, scratch / "folder", advance=advance)
    (scratch / "folder").rename(out)
    shutil.rmtree(scratch)


@app.command(name="import")
def import_(
    source: Annotated[
        Path,
        Parameter(
            help="Folder with subfolders no/, sphere/ and vort/ of image files (npy, npz, FITS, HDF5, PNG, TIFF), with "
            "an index.csv of files and labels, or with images.npy and labels.npy; or npz or HDF5 file with the arrays "
            "`images` and `labels`. Other values of --format may expect something else."
        ),
    ],
    *,
    out: Annotated[Path, Parameter(help="Store to write.")],
    format: Annotated[str, Parameter(help="deeplense, or the importer of a plug-in.")] = "deeplense",
    pixel_scale: Annotated[
        float | None,
        Parameter(
            help="Pixel scale in arcsec; by default that of the files, else that of a DeepLense data set of this size "
            "or name, else 0.05."
        ),
    ] = None,
) -> int:
    """Import labelled images into a store. Files that cannot be used are listed and skipped (exit code 3).

    Example: `darklens import data/Common_Test_I/train --out stores/train`
    """
    from darklens.data.importers import IMPORTERS, import_images, list_entries, require_new

    if pixel_scale is not None and not 0 < pixel_scale < math.inf:
        raise InputError(f"--pixel-scale must be positive (arcsec), got {pixel_scale}.")
    check_outputs(folders=[out], inputs=[source], stores=[source])
    require_new(out)
    importer = IMPORTERS[format]
    entries = list_entries(importer, source, pixel_scale=pixel_scale)
    with progress("Importing", len(entries)) as advance:
        report = import_images(importer, source, out, pixel_scale=pixel_scale, entries=entries, advance=advance)
    for warning in report.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(f"{len(report.store)} images in {out}")
    return print_problems(report.problems)


@app.command
def inspect(
    store: StorePath,
    *,
    verify: Annotated[bool, Parameter(negative="", help="Check the checksum and the contents of every shard.")] = False,
) -> int:
    """Print the contents of a store: number of images per class, pixel scale in arcsec, and origin.

    Example: `darklens inspect stores/train --verify`
    """
    import numpy as np

    from darklens.data.store import Store

    contents = Store(store)
    index = contents.index
    print(f"{len(contents)} images of {index.n_pixels} x {index.n_pixels} pixels of {index.pixel_scale} arcsec")
    print(escaped(f"{index.source}, seed {index.seed}, darklens {index.version}, sha256 {contents.sha256[:16]}"))
    if verify:
        problems = list(contents.problems())
        if problems:
            return print_problems(problems)
        print(f"All {len(index.shards)} shards match their checksums and the schema.")
    counts = np.bincount(contents.labels, minlength=len(index.classes))
    print(", ".join(f"{name}: {n}" for name, n in zip(index.classes, counts, strict=True)))
    return 0


@app.command
def doctor(
    store: Annotated[Path | None, Parameter(help="Store to examine; by default the installation is tested.")] = None,
    *,
    against: Annotated[
        list[Path] | None,
        Parameter(help="Another store, such as the training store, to search for the same images; repeatable."),
    ] = None,
    out: Annotated[Path | None, Parameter(help="JSON report to write.")] = None,
    seed: Annotated[int, Parameter(help="Random seed of the permutation tests.")] = 0,
) -> int:
    """Search a store for duplicate images and for statistics that reveal the class without any substructure.

    Without a store, print versions and hardware and test the physics (5 s). Exit code: 0 no warnings, 3 warnings, 1 a
    test failed.

    Example: `darklens doctor stores/test --against stores/train --out doctor.json`
    """
    from darklens.doctor import report

    if store is None:
        if against or out:
            raise ConfigError("--against and --out need a store; give it as the first argument.")
        return report.installation(print)

    from darklens.data.store import Store
    from darklens.doctor.examine import examine

    check_outputs(files=[out] if out else [], stores=[store, *(against or [])])
    contents, others = Store(store), [Store(path) for path in against or []]
    with progress("Reading", sum(map(len, [contents, *others]))) as advance:
        findings = examine(contents, others, seed=seed, advance=advance)
    if out:
        from darklens.files import write_json

        write_json(out, findings)
    for warning in findings["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    print(report.summary(findings))
    return PARTIAL_SUCCESS if findings["warnings"] else 0
