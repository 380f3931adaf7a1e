"""Pages that are made at build time from what they describe, below docs/_generated (which git ignores)."""

import re
import shutil
import tomllib
from pathlib import Path

import yaml
from repository_links import AT_ROOT, COPIES, ROOT, rewritten

HERE = ROOT / "docs" / COPIES


def write(name: str, text: str) -> None:
    """Write a page unless it is there already, word for word."""
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def copy_results() -> None:
    """Copy tables and figures of results/ and the files at the root, with links that lead to pages."""
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
    """Return the reference of all commands, from the application itself."""
    from darklens.cli import app

    made = app.generate_docs(output_format="markdown")
    made = re.sub(
        r"^## Table of Contents\n.*?(?=^\*\*Commands)",
        "",
        made.removeprefix("# darklens\n"),
        count=1,
        flags=re.M | re.S,
    )
    # Lists of commands link to headings by names that Sphinx makes otherwise; the page's own list of contents has them.
    made = re.sub(r"\[(`[\w-]+`)\]\(#[\w-]+\)", r"\1", made)
    return f"# Command line\n\n{made}"


def yaml_pages() -> dict[str, str]:
    """Return the references of recipes and populations: what each is for, and its YAML."""
    from darklens.simulate import populations
    from darklens.training import recipe

    pages = {}
    for folder, kind, about in (
        (
            "recipes",
            recipe,
            "A name for `darklens train`; `darklens config show NAME` prints one with all its defaults.",
        ),
        ("populations", populations, "A name for `darklens simulate`. Each has a [card](/cards/index.md)."),
    ):
        text = f"# {folder.capitalize()[:-1]} files\n\n{about}\nA copy of one, edited, is given by its path.\n"
        for name in kind.names():
            source = ROOT / "src/darklens" / folder / f"{name}.yaml"
            if not source.exists():  # a plug-in's
                continue
            body = source.read_text(encoding="utf-8")
            described = yaml.safe_load(body)["description"].strip()
            text += f"\n## {name}\n\n{described}\n\n```yaml\n{body.rstrip()}\n```\n"
        pages[f"reference/{folder}.md"] = text
    return pages


def architecture() -> str:
    """Return the page of the levels, from the contract that the import linter enforces."""
    import ast

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contract if c["type"] == "layers")
    text = (
        "# Architecture\n\nImports point downwards only: a module may use those of rows below its own and of its own "
        "folder, never those above or\nbeside. `make lint` fails otherwise. This table is made from that contract "
        "(`pyproject.toml`) and from what each module says of itself.\n\n"
        "| row | modules | what it is for |\n| --- | --- | --- |\n"
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
        text += f"\n{other['name']}: {names} may not be imported by {users}.\n"
    return text


def make(_app=None) -> None:
    """Write all pages."""
    copy_results()
    write("reference/command-line.md", command_line())
    write("reference/architecture.md", architecture())
    for name, text in yaml_pages().items():
        write(name, text)


def plain_bars(_app, _what, _name, _object, _options, lines):
    """Keep |theta| in docstrings from being read as a substitution."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app):
    """Make the pages before Sphinx looks for them."""
    app.connect("builder-inited", make)
    app.connect("autodoc-process-docstring", plain_bars)
    return {"parallel_read_safe": True}
