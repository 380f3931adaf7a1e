"""Rewrite links in pages that are read both in the repository and in the built documentation.

Tables of results and the files at the root have pages of their own (`generated_pages`). Other files outside docs/ have
none, so the path replaces the link.
"""

import posixpath
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
COPIES = "_generated"
AT_ROOT = {"CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing", "README.md": "readme"}
_LINK = re.compile(r"(!?)\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
_FENCE = re.compile(r"(^ *(?:```|~~~).*?^ *(?:```|~~~) *$)", re.MULTILINE | re.DOTALL)


def page_of(file: str) -> str | None:
    """Return the page of a file of the repository, from the root of the documentation, or None if it has none."""
    path = PurePosixPath(file)
    if file in AT_ROOT:
        return f"/{COPIES}/{AT_ROOT[file]}.md"
    if path.parts[:2] == ("src", "darklens") and path.parts[2:3] in (("recipes",), ("populations",)):
        anchor = f"#{path.stem}" if path.suffix else ""
        return f"/{COPIES}/reference/{path.parts[2]}.md{anchor}"
    if path.parts[:1] == ("results",) and path.suffix in (".md", ".png"):
        return f"/{COPIES}/{file}"
    if path.parts[:1] == ("docs",) and path.suffix in (".md", ".png"):
        return "/" + path.relative_to("docs").as_posix()
    return None


def rewritten(text: str, file: str) -> str:
    """Return the text of a file with its links changed to pages of the documentation.

    Args:
        text: Markdown of the file.
        file: Path from the root of the repository.
    """
    folder = posixpath.dirname(file)

    def new_link(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if path.startswith("/"):
            return match[0]
        file_path = posixpath.normpath(posixpath.join(folder, path))
        page = page_of(file_path)
        if page and (ROOT / file_path).exists():
            return f"{image}[{words}]({page}{'#' + anchor if anchor else ''})"
        return f"{words} (`{file_path}`)" if words and words.strip("`") != file_path else f"`{file_path}`"

    parts = _FENCE.split(text)  # parts with an odd index are code
    return "".join(part if i % 2 else _LINK.sub(new_link, part) for i, part in enumerate(parts))


def _on_source_read(app, docname, content):
    if not docname.startswith(COPIES) and Path(app.env.doc2path(docname)).suffix == ".md":
        content[0] = rewritten(content[0], f"docs/{docname}.md")


def setup(app):
    """Rewrite each page when Sphinx reads it; generated pages are rewritten when they are written."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True}
