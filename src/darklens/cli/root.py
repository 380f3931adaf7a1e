"""What all commands share: the application, kinds of arguments, progress bars, and how problems are told."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

import darklens

app = App(
    name="darklens",
    help="Physics-informed classification of dark-matter substructure in strong-lens images.\n\n"
    "Angles are in arcsec. Exit codes: 0 done; 2 wrong use or bad configuration; 3 finished, but some inputs were "
    "bad or `doctor` warns; 1 anything unexpected (`--debug` shows where).",
    version=lambda: darklens.__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main says how to go on
    default_parameter=Parameter(negative_iterable=()),  # no --empty-files
)

app.register_install_completion_command(help="Install completion of commands and options for your shell.")

SOME_INPUTS_BAD = 3
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Recipe = Annotated[str, Parameter(help="A name from `darklens recipes`, or a YAML file.")]
Population = Annotated[str, Parameter(help="A name from `darklens populations`, or a YAML file.")]
StorePath = Annotated[Path, Parameter(help="Folder that `simulate` or `import` wrote.")]
Model = Annotated[
    Path,
    Parameter(help="Run folder of `train`, bundle folder, shipped model, or hub repository `owner/name[@revision]`."),
]


def complain(sentence: str) -> None:
    """Print a sentence on standard error."""
    print(f"darklens: {sentence}", file=sys.stderr)


def list_problems(problems: list[str]) -> int:
    """Print what was wrong with inputs and return the exit code that says so."""
    for problem in problems:
        complain(problem)
    return SOME_INPUTS_BAD if problems else 0


def list_described(rows: Iterator[tuple[str, str]]) -> None:
    """Print names with their descriptions."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, description in rows:
        table.add_row(f"[bold]{name}[/]", description)
    Console().print(table)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what advances a progress bar; nothing is drawn where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
