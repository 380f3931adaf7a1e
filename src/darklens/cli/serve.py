"""The command that starts the web server."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from darklens.cli.root import Device, Positive, app, print_error
from darklens.errors import ConfigError

_MISSING_EXTRA = 'The server needs FastAPI, uvicorn and python-multipart: pip install "darklens[serve]".'


@app.command
def serve(
    models: Annotated[
        list[Path] | None,
        Parameter(help="Run folders, bundle folders or shipped models; by default all shipped models."),
    ] = None,
    *,
    host: Annotated[str, Parameter(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="Port; 0 chooses a free one.", validator=validators.Number(gte=0, lte=65535))
    ] = 8000,
    token: Annotated[
        str | None,
        Parameter(
            env_var="DARKLENS_TOKEN",
            help="Bearer token that requests must carry. Set it in the environment: other users can see command lines.",
        ),
    ] = None,
    max_mb: Annotated[float, Parameter(help="Largest request, MB.")] = 64.0,
    max_files: Annotated[Positive, Parameter(help="Files per request.")] = 64,
    max_pixels: Annotated[Positive, Parameter(help="Pixels per image.")] = 4_000_000,
    timeout: Annotated[float, Parameter(help="Time limit of a request, s.")] = 60.0,
    search_timeout: Annotated[float, Parameter(help="Time limit of a search for perturbers, s.")] = 120.0,
    queue: Annotated[Positive, Parameter(help="Images waiting or being classified.")] = 256,
    batch: Annotated[Positive, Parameter(help="Images per batch.")] = 16,
    per_client: Annotated[Positive, Parameter(help="Simultaneous requests per client address.")] = 16,
    device: Device = "cpu",
) -> int:
    """Start a web server: a page at /, and an HTTP API below /v1 that /docs describes.

    On SIGTERM or Ctrl-C the server answers the accepted requests and exits with code 0. Needs
    `pip install 'darklens[serve]'`.

    Example: `darklens serve`, then open http://127.0.0.1:8000/
    """
    if not all(find_spec(name) for name in ("fastapi", "python_multipart", "uvicorn")):
        raise ConfigError(_MISSING_EXTRA)
    from pydantic import ValidationError

    from darklens.locate import DEFAULT_MODEL, shipped
    from darklens.serve.limits import Settings

    try:
        settings = Settings(
            host=host,
            token=token or None,
            max_mb=max_mb,
            max_files=max_files,
            max_pixels=max_pixels,
            timeout=timeout,
            search_timeout=search_timeout,
            queue=queue,
            batch=batch,
            per_client=per_client,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}.") from None
    from darklens.memory import keep_freed_memory
    from darklens.serve.http import create_app
    from darklens.serve.server import require_address, run
    from darklens.serve.service import load_models

    require_address(host, port)
    if not settings.is_local and settings.token is None:
        print_error(f"Anyone who can reach {host} can use this server; set DARKLENS_TOKEN to require a token.")
    keep_freed_memory()
    paths = models or sorted(map(Path, shipped()), key=lambda path: path.name != DEFAULT_MODEL)
    run(create_app(*load_models(paths, device), settings), settings, port)
    return 0
