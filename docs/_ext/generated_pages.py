"""Pages generated at build time below docs/_generated, which git ignores."""

import re
import shutil
import tomllib
from pathlib import Path

import yaml
from repository_links import AT_ROOT, COPIES, ROOT, rewritten

HERE = ROOT / "docs" / COPIES


def write(name: str, text: str) -> None:
    """Write a page unless the file already has this text."""
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def copy_results() -> None:
    """Copy tables and figures of results/ and the files at the root, with links to pages of the documentation."""
    for file in sorted((ROOT / "results").rglob("*.md")):
        name = file.relative_to(ROOT).as_posix()
        text = file.read_text(encoding="utf-8")
        orphan = "" if name == "results/README.md" else "---\norphan: true\n---\n\n"
        title = "" if text.startswith("# ") else f"# {file.stem.replace('_', ' ').capitalize()}\n\n"
        write(name, orphan + title + rewritten(text, name))
    for file in sorted((ROOT / "results").rglob("*.png")):
        target = HERE / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for file, page in AT_ROOT.items():
        orphan = "---\norphan: true\n---\n\n" if file == "README.md" else ""
        write(f"{page}.md", orphan + rewritten((ROOT / file).read_text(encoding="utf-8"), file))


def command_line() -> str:
    """Return the reference of all commands, generated from the application."""
    from darklens.cli import app

    text = app.generate_docs(output_format="markdown")
    text = re.sub(
        r"^## Table of Contents\n.*?(?=^\*\*Commands)",
        "",
        text.removeprefix("# darklens\n"),
        count=1,
        flags=re.M | re.S,
    )
    # Sphinx names headings differently, so these links would be dead; the contents list of the page replaces them.
    text = re.sub(r"\[(`[\w-]+`)\]\(#[\w-]+\)", r"\1", text)
    return f"# Command line\n\nLook up here every command with its arguments and options.\n\n{text}"


def yaml_pages() -> dict[str, str]:
    """Return the reference pages of recipes and populations: description and YAML of each."""
    from darklens import populations, recipes

    pages = {}
    for folder, kind, about in (
        (
            "recipes",
            recipes,
            "Look up here the recipes that you can give to `darklens train`. `darklens config show NAME` prints a "
            "recipe with all its defaults.",
        ),
        (
            "populations",
            populations,
            "Look up here the populations that you can give to `darklens simulate`. Each has a "
            "[card](/cards/index.md).",
        ),
    ):
        text = f"# {folder.capitalize()[:-1]} files\n\n{about}\nTo change one, edit a copy and give its path.\n"
        for name in kind.names():
            source = ROOT / "src/darklens" / folder / f"{name}.yaml"
            if not source.exists():  # a plug-in's
                continue
            body = source.read_text(encoding="utf-8")
            description = yaml.safe_load(body)["description"].strip()
            text += f"\n## {name}\n\n{description}\n\n```yaml\n{body.rstrip()}\n```\n"
        pages[f"reference/{folder}.md"] = text
    return pages


def architecture() -> str:
    """Return the page of the layers, generated from the contract of the import linter."""
    import ast

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contract if c["type"] == "layers")
    text = (
        "# Architecture\n\nFind here which module does what, and which modules it may import. A module may import from "
        "its own folder and\nfrom lower layers, but not from higher layers or from other modules of its layer. "
        "`make lint` enforces this contract\n(`pyproject.toml`).\n\n"
        "| layer | modules | purpose |\n| --- | --- | --- |\n"
    )
    for row, layer in enumerate(layers):
        for i, module in enumerate(part.strip(" ()") for part in re.split(r"[|:]", layer)):
            path = ROOT / "src" / Path(*module.split("."))
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
            text += f"| {'' if i else len(layers) - 1 - row} | `{module}` | {' '.join(first.split())} |\n"
    for other in (c for c in contract if c["type"] == "forbidden"):
        names = ", ".join(f"`{m}`" for m in other["forbidden_modules"])
        users = ", ".join(f"`{m.removeprefix('darklens.')}`" for m in other["source_modules"])
        text += f"\n{other['name']}: {users} may not import {names}.\n"
    return text


def make(_app=None) -> None:
    """Write all pages."""
    copy_results()
    write("reference/command-line.md", command_line())
    write("reference/architecture.md", architecture())
    for name, text in yaml_pages().items():
        write(name, text)


def plain_bars(_app, _what, _name, _object, _options, lines):
    """Escape bars such as those of |theta| in docstrings, which reST reads as a substitution."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app):
    """Generate the pages before Sphinx reads the sources."""
    app.connect("builder-inited", make)
    app.connect("autodoc-process-docstring", plain_bars)
    return {"parallel_read_safe": True}
