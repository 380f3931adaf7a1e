"""Commands that make, take in and examine images."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from darklens.cli.root import SOME_INPUTS_BAD, Population, Positive, StorePath, app, list_problems, progress
from darklens.errors import ConfigError, InputError

if TYPE_CHECKING:
    from darklens.data.store import Store
    from darklens.populations.population import Population as PopulationModel


@app.command
def simulate(
    population: Population,
    *overrides: Annotated[str, Parameter(help="Changes such as `lens.gamma=0` or `field.n_pixels=64`.")],
    out: Annotated[Path, Parameter(help="Folder to write.")],
    n_per_class: Annotated[Positive, Parameter(help="Images of each class.")] = 1000,
    seed: Annotated[int, Parameter(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[Positive | None, Parameter(help="Processes; by default one per usable core.")] = None,
    cluster: Annotated[
        str | None,
        Parameter(
            help="Run on the Dask cluster at this address (tcp://host:port) instead. Its workers must have the same "
            "darklens and see --out: a file system that they all share."
        ),
    ] = None,
    shard_size: Annotated[Positive | None, Parameter(help="Images in a file; by default 256 or 64 MB.")] = None,
    backend: Annotated[
        Literal["eager", "compiled"],
        Parameter(
            name=["--backend", "--engine"],
            help="compiled: some three times as fast after half a minute of preparation; differs in last bits.",
        ),
    ] = "eager",
    format: Annotated[
        Literal["store", "deeplense"], Parameter(help="A store, or DeepLense's folders of .npy files.")
    ] = "store",
) -> int:
    """Simulate labelled lens images.

    An interrupted simulation goes on when the command is given again.

    Example: `darklens simulate common-test-i --out stores/train --n-per-class 10000 --seed 1`
    """
    from contextlib import nullcontext
    from functools import partial

    from darklens import executors, populations
    from darklens.simulate.generate import SHARD_SIZE, generate

    chosen = populations.get(population, overrides)
    n = n_per_class * len(chosen.classes)
    if cluster and workers:
        raise ConfigError("--workers is for this machine and --cluster has its own; give one of them.")
    if workers is None:
        # Starting a process takes longer than a shard.
        workers = min(executors.usable_cores(), n // (2 * SHARD_SIZE)) or 1
    with executors.cluster(cluster) if cluster else nullcontext() as executor:
        make = partial(
            generate,
            chosen,
            n_per_class=n_per_class,
            seed=seed,
            workers=workers,
            executor=executor,
            backend=backend,
            shard_size=shard_size,
        )
        if format == "store":
            with progress("Simulating", n) as advance:
                make(out, advance=advance)
        else:
            _simulate_folder(chosen, n, out, make)
    print(f"{n} images of {chosen.name} in {out}")
    return 0


def _simulate_folder(population: "PopulationModel", n: int, out: Path, make: "Callable[..., Store]") -> None:
    """Simulate a store beside `out` and turn it into DeepLense's folders; both steps can be interrupted."""
    import shutil

    from darklens.data.deeplense import export_folder
    from darklens.data.store import prepare_folder
    from darklens.files import require_space
    from darklens.simulate.generate import bytes_needed

    prepare_folder(out)
    scratch = out.parent / f".{out.name}.unfinished"
    if not scratch.exists():
        require_space(out, 3 * bytes_needed(population, n))  # a float32 store and float64 files
    with progress("Simulating", n) as advance:
        store = make(scratch / "store", advance=advance)
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
            help="Folder with no/, sphere/, vort/ of image files (npy, npz, FITS, HDF5, PNG, TIFF), or an index.csv of "
            "files and labels, or images.npy and labels.npy; an npz or HDF5 file with images and labels; what --format "
            "says."
        ),
    ],
    *,
    out: Annotated[Path, Parameter(help="Store to write.")],
    format: Annotated[str, Parameter(help="deeplense, or the name of a plug-in's importer.")] = "deeplense",
    pixel_scale: Annotated[
        float | None, Parameter(help="Pixel scale of the images, arcsec; by default what they say, or 0.05.")
    ] = None,
) -> int:
    """Import labelled images into a store; bad ones are listed and left out, and the exit code is then 3.

    Example: `darklens import data/Common_Test_I/train --out stores/train`
    """
    import darklens.data.deeplense  # noqa: F401  # registers itself
    from darklens.data.importers import IMPORTERS, import_images, list_entries

    if pixel_scale is not None and not 0 < pixel_scale < math.inf:
        raise InputError(f"--pixel-scale must be positive (arcsec), got {pixel_scale}.")
    importer = IMPORTERS[format]
    entries = list_entries(importer, source)
    with progress("Importing", len(entries)) as advance:
        report = import_images(importer, source, out, pixel_scale=pixel_scale, entries=entries, advance=advance)
    for warning in report.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(f"{len(report.store)} images in {out}")
    return list_problems(report.problems)


@app.command
def inspect(
    store: StorePath,
    *,
    verify: Annotated[bool, Parameter(negative="", help="Check every shard's checksum and contents.")] = False,
) -> int:
    """Say what a store holds."""
    import numpy as np

    from darklens.data.store import Store

    opened = Store(store)
    index = opened.index
    print(f"{len(opened)} images of {index.n_pixels} x {index.n_pixels} pixels, {index.pixel_scale} arcsec each")
    print(f"{index.source}, seed {index.seed}, darklens {index.version}, sha256 {opened.sha256[:16]}")
    if verify:
        problems = list(opened.problems())
        if problems:
            return list_problems(problems)
        print(f"All {len(index.shards)} shards match their checksums and the schema.")
    counts = np.bincount(opened.labels, minlength=len(index.classes))
    print(", ".join(f"{name}: {n}" for name, n in zip(index.classes, counts, strict=True)))
    return 0


@app.command
def doctor(
    store: Annotated[Path | None, Parameter(help="Store to examine; none: this installation.")] = None,
    *,
    against: Annotated[
        list[Path] | None, Parameter(help="Other splits, such as the training store; give it once for each.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Report to write (.json).")] = None,
    seed: Annotated[int, Parameter(help="Of the permutations that say what chance would give.")] = 0,
) -> int:
    """Say what of a store gives its classes away besides substructure, and which images are there twice.

    Without a store: versions, device, and a self-test of the physics of some five seconds. Exit code: 0 nothing was
    found, 3 there are warnings, 1 the self-test failed.

    Example: `darklens doctor stores/test --against stores/train --out doctor.json`
    """
    from darklens.doctor import report

    if store is None:
        if against or out:
            raise ConfigError("--against and --out are for a store; name it first.")
        return report.installation(print)

    from darklens.data.store import Store
    from darklens.doctor.examine import examine

    opened, others = Store(store), [Store(path) for path in against or []]
    with progress("Reading", sum(map(len, [opened, *others]))) as advance:
        found = examine(opened, others, seed=seed, advance=advance)
    if out:
        from darklens.files import write_json

        write_json(out, found)
    for warning in found["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    print(report.summary(found))
    return SOME_INPUTS_BAD if found["warnings"] else 0
