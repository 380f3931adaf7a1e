"""Commands that list recipes, populations and models, and print citations and configurations."""

from typing import Annotated

from cyclopts import App, Parameter

from darklens.cli.root import Recipe, app, print_described

config_app = App(name="config", help="Print a complete recipe, or the JSON schema of recipes.")
app.command(config_app)


@app.command
def recipes() -> int:
    """List the built-in recipes for `train`.

    Example: `darklens recipes`
    """
    from darklens.recipes import names
    from darklens.training.recipe import get

    print_described((name, get(name).description) for name in names())
    return 0


@app.command
def populations() -> int:
    """List the built-in populations for `simulate`.

    Example: `darklens populations`
    """
    from darklens import populations as builtin

    print_described((name, builtin.get(name).description) for name in builtin.names())
    return 0


@app.command
def models() -> int:
    """List the systems that a recipe can train (`model.kind`), the trained models, and the scenes for `fit`.

    Example: `darklens models`
    """
    from darklens.bundle import Bundle
    from darklens.locate import shipped
    from darklens.models.zoo import descriptions
    from darklens.scene import specification

    print_described(iter(descriptions().items()))
    print("\nTrained models, to use by name in place of a run folder:")
    print_described((name, Bundle.load(name).card) for name in shipped())
    print("\nScenes, for `darklens fit --model`:")
    print_described((name, specification.get(name).description) for name in specification.names())
    return 0


@app.command
def cite(
    subject: Annotated[
        str,
        Parameter(help="Run folder, bundle folder, shipped model, Hugging Face repository, or recipe (name or file)."),
    ],
) -> int:
    """Print BibTeX entries of the physics, methods and software that a model or recipe uses.

    Example: `darklens cite runs/sis > references.bib`
    """
    from darklens.cite.bibtex import cite as bibtex

    print(bibtex(subject), end="")
    return 0


@config_app.command
def show(
    recipe: Recipe,
    *overrides: Annotated[str, Parameter(help="Overrides such as `stages.0.epochs=5`.")],
) -> int:
    """Print a recipe with all defaults and overrides, as YAML for `train`.

    Example: `darklens config show resnet_18 stages.0.epochs=5 > my-recipe.yaml`
    """
    from darklens.config import dump
    from darklens.training import recipe as recipes

    print(dump(recipes.get(recipe, overrides)), end="")
    return 0


@config_app.command
def schema() -> int:
    """Print the JSON schema of recipes, for completion in an editor.

    Example: `darklens config schema > recipe.schema.json`
    """
    import json

    from darklens.training.recipe import Recipe as RecipeModel

    print(json.dumps(RecipeModel.model_json_schema(), indent=2))
    return 0
