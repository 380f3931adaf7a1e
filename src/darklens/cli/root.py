"""The application and what its commands share: types of arguments, progress bars, and the printing of errors."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

import darklens

app = App(
    name="darklens",
    help="Fits of strong-lens images, searches for dark subhaloes, and classification of dark-matter substructure.\n\n"
    "Angles are in arcsec.\n\n"
    "To fit a lens model to telescope images: `darklens fit`. To search them for dark subhaloes: `darklens search`. To "
    "classify an image with the shipped model: `darklens predict my-lens.npy --out predictions.csv`, or start a web "
    "page with `darklens serve`. To train a model: `simulate` or `import`, then `train`, then `evaluate`.\n\n"
    "Exit codes: 0 success; 1 unexpected error (`--debug` shows the traceback); 2 wrong usage or configuration; "
    "3 finished, but some input files could not be used, or `doctor` gave warnings.",
    version=lambda: darklens.__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main prints how to continue
    default_parameter=Parameter(negative_iterable=()),  # no --empty-files
)

app.register_install_completion_command(help="Install shell completion of commands and options.")

PARTIAL_SUCCESS = 3  # exit code
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Recipe = Annotated[str, Parameter(help="Name of a recipe (`darklens recipes` lists them), or a YAML file.")]
Population = Annotated[str, Parameter(help="Name of a population (`darklens populations` lists them), or a YAML file.")]
StorePath = Annotated[Path, Parameter(help="Store: a folder written by `simulate` or `import`.")]
Model = Annotated[
    Path,
    Parameter(
        help="Run folder written by `train`, bundle folder, name of a shipped model (`darklens models` lists them), or "
        "Hugging Face repository `owner/name[@revision]`."
    ),
]

Device = Annotated[
    str,
    Parameter(
        help="Device that computes: cpu, cuda, or cuda:1 for the second GPU. Results on a GPU differ from those on the "
        "CPU by rounding errors."
    ),
]


def escaped(text: str) -> str:
    """Return a text of a file, such as its name, for a terminal: control characters are escaped as Python does."""
    from darklens.files import printable

    return printable(
        re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda match: repr(match[0])[1:-1], text)
    )


def print_error(message: str) -> None:
    """Print a message to standard error; control characters, as in names of files, are escaped."""
    print(f"darklens: {escaped(message)}", file=sys.stderr)


def print_problems(problems: list[str]) -> int:
    """Print the problems of input files and return the exit code: 3 if there are any, 0 otherwise."""
    for problem in problems:
        print_error(problem)
    return PARTIAL_SUCCESS if problems else 0


def check_outputs(
    *,
    files: Iterable[Path] = (),
    folders: Iterable[Path] = (),
    inputs: Iterable[Path | str] = (),
    stores: Iterable[Path | None] = (),
    models: Iterable[Path] = (),
) -> None:
    """Check the files and folders that a command is to write, before any work; see `targets.check_targets`.

    Args:
        files: Files to write.
        folders: Folders to write.
        inputs: Files that the command reads.
        stores: Stores that it reads.
        models: Models that it reads: bundle folders, run folders or names.
    """
    from darklens.locate import local_bundle
    from darklens.targets import check_targets

    models = list(models)
    runs = [path / name for path in models for name in ("config.yaml", "state.json", "metrics.csv")]
    bundles = [bundle for path in models if (bundle := local_bundle(path)) is not None]
    checkpoints = [path / "checkpoints" for path in models]
    check_targets(
        files=files,
        folders=folders,
        inputs=[*inputs, *runs],
        input_folders=[*(store for store in stores if store is not None), *bundles, *checkpoints],
    )


def print_described(rows: Iterator[tuple[str, str]]) -> None:
    """Print names and descriptions in two columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, description in rows:
        table.add_row(f"[bold]{name}[/]", description)
    console = Console()
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")  # rich itself would exit with 1 where the reader has closed the pipe


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar; nothing is drawn if standard error is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
