"""The command that serves models on the web."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from darklens.cli.root import Positive, app, complain
from darklens.errors import ConfigError

_EXTRA = 'The server needs FastAPI, uvicorn and python-multipart: pip install "darklens[serve]".'


@app.command
def serve(
    models: Annotated[
        list[Path] | None,
        Parameter(help="Run folders, bundle folders or shipped models' names; none: all shipped ones."),
    ] = None,
    *,
    host: Annotated[str, Parameter(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0: any that is free.")] = 8000,
    token: Annotated[
        str | None,
        Parameter(
            env_var="DARKLENS_TOKEN",
            help="Bearer token that requests must bring. Give it in the environment: other users see command lines.",
        ),
    ] = None,
    max_mb: Annotated[float, Parameter(help="Of a request.")] = 64.0,
    max_files: Annotated[Positive, Parameter(help="In a request.")] = 64,
    max_pixels: Annotated[Positive, Parameter(help="Of an image.")] = 4_000_000,
    timeout: Annotated[float, Parameter(help="Seconds until a request is given up.")] = 60.0,
    queue: Annotated[Positive, Parameter(help="Images that wait or are classified at a time.")] = 256,
    batch: Annotated[Positive, Parameter(help="Images that are classified together, at most.")] = 16,
    per_client: Annotated[Positive, Parameter(help="Requests of one address at a time.")] = 16,
) -> int:
    """Serve models: a page at /, an interface for programs below /v1 (described at /docs). Needs `darklens[serve]`.

    SIGTERM or Ctrl-C: takes no more requests, finishes those it has, and ends with code 0.

    Example: `darklens serve`, then open http://127.0.0.1:8000/
    """
    if not all(find_spec(name) for name in ("fastapi", "python_multipart", "uvicorn")):
        raise ConfigError(_EXTRA)
    from pydantic import ValidationError

    from darklens.locate import DEFAULT_MODEL, shipped
    from darklens.serve.settings import Settings

    try:
        settings = Settings(
            host=host,
            token=token or None,
            max_mb=max_mb,
            max_files=max_files,
            max_pixels=max_pixels,
            timeout=timeout,
            queue=queue,
            batch=batch,
            per_client=per_client,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}.") from None
    from darklens.memory import keep_freed_memory
    from darklens.serve.http import create_app
    from darklens.serve.server import run
    from darklens.serve.service import load

    if not settings.is_local and settings.token is None:
        complain(f"Whoever reaches {host} can use this server: set DARKLENS_TOKEN to ask for a token.")
    keep_freed_memory()
    paths = models or sorted(map(Path, shipped()), key=lambda path: path.name != DEFAULT_MODEL)
    run(create_app(*load(paths), settings), settings, port)
    return 0
