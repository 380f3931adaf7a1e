"""Links of a page that is also read in the repository, made right for the built pages.

Tables of results and the files at the root are pages of the documentation too (`generated_pages`); anything else
outside docs/ has no page, so its path is shown instead.
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
    """Return the page (from the top of the documentation) of a file of the repository, or None if it has none."""
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
    """Return the text of a file of the repository with links to pages of the documentation.

    Args:
        text: Its Markdown.
        file: Its path from the root of the repository.
    """
    folder = posixpath.dirname(file)

    def mended(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        place, _, anchor = target.partition("#")
        if place.startswith("/"):
            return match[0]
        where = posixpath.normpath(posixpath.join(folder, place))
        page = page_of(where)
        if page and (ROOT / where).exists():
            return f"{image}[{words}]({page}{'#' + anchor if anchor else ''})"
        return f"{words} (`{where}`)" if words and words.strip("`") != where else f"`{where}`"

    parts = _FENCE.split(text)  # odd ones are code
    return "".join(part if i % 2 else _LINK.sub(mended, part) for i, part in enumerate(parts))


def _on_source_read(app, docname, content):
    if not docname.startswith(COPIES) and Path(app.env.doc2path(docname)).suffix == ".md":
        content[0] = rewritten(content[0], f"docs/{docname}.md")


def setup(app):
    """Rewrite each page as it is read; copies were rewritten when they were made."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True}
