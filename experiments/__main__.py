"""Run an experiment: `python -m experiments NAME [a.b=c ...]`; without a name, list them.

NAME is a YAML file in experiments/, or the path of another one. `a.b=c` changes one of its settings. Trained models are
written to runs/, simulated images to stores/, and numbers, tables and figures to results/. To continue an interrupted
experiment, repeat the command.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import yaml

from darklens import config
from darklens.errors import ConfigError, DarklensError
from darklens.registry import unknown
from experiments import results
from experiments.engine import ROOT, Experiment, Work, filled, flattened, write

HERE = Path(__file__).parent
SMOKE_TEST = "**Smoke test:** a few small images and training steps; its numbers, such as AUCs, mean nothing."


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", nargs="?", help="an experiment, or the path of a YAML file; omit it to list the experiments"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="change a setting of the file")
    parser.add_argument("--variant", default="", help="apply a named set of changes that the file defines")
    quick = "smoke test: a few small images, numbers without meaning; written to runs/quick/ instead of results/"
    parser.add_argument("--quick", action="store_const", const="quick", dest="variant", help=quick)
    parser.add_argument("--table", action="store_true", help="rewrite the table and the figure from the saved numbers")
    parser.add_argument("--runs", type=Path, help="folder of trained models; default: runs/NAME")
    parser.add_argument("--stores", type=Path, help="folder of simulated images; default: stores/")
    parser.add_argument("--results", type=Path, help="folder of numbers, tables and figures; default: results/")
    options = parser.parse_intermixed_args(words)
    if options.name is None:
        for name in names():
            print(f"{name:16s} {read(name, []).title}")
        return
    try:
        run(options)
    except DarklensError as error:
        sys.exit(str(error))


def run(options: argparse.Namespace) -> None:
    experiment = read(options.name, options.overrides, options.variant)
    if options.variant == "quick":
        experiment = experiment.model_copy(
            update={"title": f"Smoke test of: {experiment.title}", "about": f"{SMOKE_TEST}\n\n{experiment.about}"}
        )
        print(SMOKE_TEST, flush=True)
    scratch = ROOT / "runs" / "quick" if options.variant == "quick" else ROOT
    kept = (options.results or scratch / "results").resolve()
    work = Work(
        runs=(options.runs or scratch / "runs" / Path(options.name).stem).resolve(),
        stores=(options.stores or scratch / "stores").resolve(),
        out=kept / (filled(experiment.out, experiment.model_dump()) or experiment.kind),
    )
    module = import_module(f"experiments.{experiment.kind}")
    result = work.result() if options.table else module.run(experiment, work)
    if result and experiment.out:
        text = module.page(experiment, result) if hasattr(module, "page") else None
        write(work.out, result, text, module.figure(experiment, result) if hasattr(module, "figure") else None)
    if kept == results.RESULTS:
        results.write_page()


def read(name: str, overrides: list[str], variant: str = "") -> Experiment:
    """Return an experiment from its file, with the overrides of a variant and further ones.

    Raises:
        ConfigError: If the file or a setting is wrong.
    """
    path = Path(name) if name.endswith(".yaml") else HERE / f"{name}.yaml"
    if name.endswith(".yaml") and not path.exists():
        raise ConfigError(f"{name} does not exist.")
    if not path.exists():
        raise ConfigError(unknown("experiment", name, names()))
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    variants = tree.get("variants", {})
    if variant and variant not in variants:
        raise ConfigError(unknown(f"variant of {path.stem}", variant, list(variants)))
    chosen = [*flattened(variants.get(variant, [])), *overrides]
    return config.load(import_module(f"experiments.{tree['kind']}").Config, tree, chosen, name=path.stem)


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.yaml"))


if __name__ == "__main__":
    main()
