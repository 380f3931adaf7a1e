"""Commands that say what there is."""

from typing import Annotated

from cyclopts import App, Parameter

from darklens.cli.root import Recipe, app, list_described

config_app = App(name="config", help="Show a recipe with all its defaults, or the schema of recipes.")
app.command(config_app)


@app.command
def recipes() -> int:
    """List the built-in recipes."""
    from darklens.training import recipe

    list_described((name, recipe.get(name).description) for name in recipe.names())
    return 0


@app.command
def populations() -> int:
    """List the built-in populations."""
    from darklens import populations as known

    list_described((name, known.get(name).description) for name in known.names())
    return 0


@app.command
def models() -> int:
    """List the systems that a recipe's `model.kind` can name, what they take and give, and the trained ones."""
    from darklens.bundle import Bundle
    from darklens.locate import shipped
    from darklens.models.zoo import descriptions

    list_described(iter(descriptions().items()))
    print("\nTrained and shipped, to be named in place of a run folder:")
    list_described((name, Bundle.load(name).card) for name in shipped())
    return 0


@app.command
def cite(
    subject: Annotated[
        str, Parameter(help="Run or bundle folder, shipped model, hub repository, or recipe (name or YAML file).")
    ],
) -> int:
    """Print BibTeX of the physics, methods and software that a run, a model or a recipe used.

    Example: `darklens cite runs/sis > references.bib`
    """
    from darklens.cite.bibtex import cite as bibtex

    print(bibtex(subject), end="")
    return 0


@config_app.command
def show(
    recipe: Recipe,
    *overrides: Annotated[str, Parameter(help="Changes such as `stages.0.epochs=5`.")],
) -> int:
    """Print a recipe with all its defaults and overrides, as YAML that `train` takes."""
    from darklens.config import dump
    from darklens.training import recipe as recipes

    print(dump(recipes.get(recipe, overrides)), end="")
    return 0


@config_app.command
def schema() -> int:
    """Print the JSON schema of recipes, for editors."""
    import json

    from darklens.training.recipe import Recipe as RecipeModel

    print(json.dumps(RecipeModel.model_json_schema(), indent=2))
    return 0
