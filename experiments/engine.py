"""The steps that experiments share: simulate, train, evaluate, and write tables, figures and numbers.

A step whose output exists is skipped and an interrupted training resumes, so an interrupted experiment continues when
it is started again.
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from matplotlib.figure import Figure
from pydantic import BeforeValidator

from darklens import __version__, config, populations, provenance
from darklens.config import Frozen
from darklens.files import atomic_path, read_json, write_json, write_text
from darklens.report.figures import to_png

ROOT = Path(__file__).resolve().parent.parent
SEEDS = {"train": 1, "test": 2}  # of simulated stores
Backend = Literal["eager", "compiled"]


def flattened(items: Any) -> Any:
    """Join nested lists, so that YAML aliases of lists can be parts of a list."""
    return [leaf for item in items for leaf in flattened(item)] if isinstance(items, list) else [items]


Overrides = Annotated[list[str], BeforeValidator(flattened)]


class Experiment(Frozen):
    """What every experiment file states.

    Attributes:
        kind: The module here that runs it.
        title: Heading of its page.
        about: Text below the heading; {names} are settings, provenance and numbers of the result.
        out: Path below results/ of the files it writes, without suffix; {names} are its settings.
        variants: Overrides by name, such as `quick`.
    """

    kind: str
    title: str
    about: str = ""
    out: str = ""
    variants: dict[str, Overrides] = {}


@dataclass(frozen=True)
class Work:
    """Folders of one experiment: trainings and other intermediate files, simulated stores, and results."""

    runs: Path
    stores: Path
    out: Path

    def result(self) -> dict[str, Any]:
        """Return the numbers of an earlier run, empty if there are none."""
        path = self.out.with_suffix(".json")
        numbers: dict[str, Any] = read_json(path) if path.exists() else {}
        return numbers


def darklens(*words: str) -> None:
    """Run a command at the root of the repository as a user would; stop with a sentence if it fails."""
    print(f"\n$ darklens {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "darklens.cli", *words], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"Stopped: that command ended with exit code {code}. Start the experiment again to continue.")


def simulate(
    work: Work,
    population: str,
    n_per_class: int,
    seed: int,
    *,
    overrides: Sequence[str] = (),
    backend: Backend = "compiled",
) -> Path:
    """Return the folder of a simulated store, which experiments share."""
    name = f"{n_per_class}-seed{seed}-{backend}"
    if overrides:
        name += f"-{config.digest(populations.get(population, overrides))[:8]}"
    out = work.stores / population / name
    if not (out / "store.json").exists():
        size = ["--n-per-class", str(n_per_class), "--seed", str(seed), "--backend", backend]
        darklens("simulate", population, *overrides, "--out", str(out), *size)
    return out


def train(recipe: str, overrides: Sequence[str], run: Path, *, seed: int = 0, store: Path | None = None) -> None:
    """Train a recipe into the folder `run`, on a store or on its stream."""
    if not (run / "bundle" / "bundle.json").exists():
        data = ["--data", str(store)] if store else []
        resume = ["--resume"] if (run / "config.yaml").exists() else []
        darklens("train", recipe, *overrides, *data, "--out", str(run), "--seed", str(seed), *resume)


def evaluate(run: Path, store: Path) -> Path:
    """Evaluate the model of a run and return the folder of the evaluation."""
    if not (run / "test" / "eval.json").exists():
        darklens("evaluate", str(run), str(store), "--out", str(run / "test"))
    return run / "test"


def made_by() -> dict[str, str]:
    """Return version, commit and hardware of this run."""
    return {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()}


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Replace {name} by its value; braces around anything else stay."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), text)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first row is its head."""
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def page(experiment: Experiment, values: Mapping[str, Any], *tables: Sequence[Sequence[str]]) -> str:
    """Return a page: title, text and tables; `values` are those of {names} in the text."""
    lines = [f"# {experiment.title}", "", experiment.about.strip().format(**values)]
    for table in tables:
        lines += ["", *markdown(table)]
    return "\n".join(lines) + "\n"


def write(out: Path, result: dict[str, Any], text: str | None, figure: Figure | None) -> None:
    """Write the numbers, the page and the figure of an experiment."""
    write_json(out.with_suffix(".json"), result)
    if text is not None:
        write_text(out.with_suffix(".md"), text)
        print(text)
    if figure is not None:
        with atomic_path(out.with_suffix(".png")) as temporary:
            temporary.write_bytes(to_png(figure))
    print(f"Written: {out}.*")
