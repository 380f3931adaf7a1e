"""The files of the web page and the list of routes, all held in memory: no request can name a file on disk."""

from importlib import resources

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from darklens.serve.responses import RequestError

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_DOCS = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>darklens: routes</title><link rel="icon" href="data:,"></head>
<body>
<h1>Routes</h1>
<p>The full description for programs: <a href="openapi.json">openapi.json</a>.</p>
{% for path, methods in document.paths.items() %}{% for method, route in methods.items() %}
<h2><code>{{ method.upper() }} {{ path }}</code></h2>
<p>{{ route.description or route.summary }}</p>
{% if route.parameters %}<ul>{% for p in route.parameters %}
<li><code>{{ p.name }}</code>: {{ p.description or p.schema.description or "" }}</li>{% endfor %}
</ul>{% endif %}
<p>Status codes: {{ route.responses | join(", ") }}</p>
{% endfor %}{% endfor %}
</body>
</html>
"""


def page_routes() -> APIRouter:
    """Return the routes of the web page; the OpenAPI document leaves them out."""
    router, files = APIRouter(include_in_schema=False), _files()

    def respond(name: str) -> Response:
        if name not in files:
            raise RequestError(404, "No such page; start at /.")
        return Response(*files[name])

    @router.get("/")
    def index() -> Response:
        return respond("index.html")

    @router.get("/page/{name}")
    def file(name: str) -> Response:
        return respond(name)

    @router.get("/docs")
    def docs(request: Request) -> Response:
        from jinja2 import Environment

        app: FastAPI = request.app
        template = Environment(autoescape=True).from_string(_DOCS)
        return HTMLResponse(template.render(document=app.openapi()))

    return router


def _files() -> dict[str, tuple[bytes, int, dict[str, str]]]:
    """Return content, status code and headers of each file of the page by its name."""
    folder = resources.files("darklens.serve") / "page"
    files = {}
    for item in folder.iterdir() if folder.is_dir() else ():
        content_type = _CONTENT_TYPES.get(item.name[item.name.rfind(".") :])
        if item.is_file() and content_type is not None:
            headers = {"content-type": content_type, "cache-control": "no-cache"}
            files[item.name] = (item.read_bytes(), 200, headers)
    return files
