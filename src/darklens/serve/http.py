"""The FastAPI application: its routes, the parsing of requests, and error responses."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import darklens
from darklens.bundle import Bundle
from darklens.data.readers import SUFFIXES
from darklens.serve import search_request, simulated_lens
from darklens.serve.limits import Settings
from darklens.serve.middleware import Middleware
from darklens.serve.responses import (
    REASONS,
    ErrorResponse,
    Health,
    LensPrediction,
    Limits,
    Models,
    Prediction,
    RequestError,
    SearchChoices,
    SearchResponse,
    Sliders,
    no_space,
)
from darklens.serve.search_request import SearchQuery
from darklens.serve.service import Service, Upload
from darklens.serve.simulated_lens import LensRequest
from darklens.serve.web_page import page_routes

T = TypeVar("T")
FILES_FIELD = "files"
_MAX_NAME_LENGTH = 200
_ERROR_DESCRIPTIONS: dict[int, str] = {
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    408: "The request did not arrive in time.",
    413: "The request has too many bytes or files.",
    415: "The content type of the body is wrong.",
    421: "The server does not answer to this host name.",
    422: "A value is invalid; `field` names it.",
    429: "The client has too many requests in flight.",
    503: "The queue is full, or the server is starting or stopping; `Retry-After` says when to try again.",
}


class PredictQuery(BaseModel):
    """Options of a classification."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="name of the model; by default the first one")
    maps: bool = Field(default=False, description="whether to compute maps and errors of the fitted parameters")
    pixel_scale: float | None = Field(
        default=None, gt=0, le=100, description="pixel scale of the images, arcsec; overrides that of the files"
    )
    image: str | None = Field(default=None, max_length=200, description="name of the image in files that hold several")


class NoQuery(BaseModel):
    """No query parameters."""

    model_config = ConfigDict(extra="forbid")


def create_app(models: Mapping[str, Bundle], digests: Mapping[str, str], settings: Settings) -> FastAPI:
    """Return the application, with its `Service` as `app.state.service`.

    Args:
        models: Bundles by name; the first is the default.
        digests: SHA-256 of each bundle by name.
        settings: Limits.
    """
    service = Service(models, digests, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="darklens",
        version=darklens.__version__,
        summary="Classifies dark-matter substructure in strong-lens images.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Middleware, settings=settings, metrics=service.metrics)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    bearer = HTTPBearer(auto_error=False)

    async def require_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        token = (settings.token or "").encode()
        if credentials is None or not secrets.compare_digest(credentials.credentials.encode(), token):
            raise RequestError(401, "This server requires a token; send it as Authorization: Bearer TOKEN.")

    dependencies = [Depends(require_token)] if settings.token else []

    @app.get("/v1/limits", responses=_error_responses(), tags=["v1"])
    async def limits(_: Annotated[NoQuery, Query()]) -> Limits:
        """The limits of a request. Needs no token."""
        return Limits(
            max_bytes=settings.max_bytes,
            max_files=settings.max_files,
            max_pixels=settings.max_pixels,
            timeout_s=settings.timeout,
            queue=settings.queue,
            per_client=settings.per_client,
            formats=list(SUFFIXES),
            token_needed=settings.token is not None,
        )

    @app.get("/v1/models", responses=_error_responses(401), dependencies=dependencies, tags=["v1"])
    async def list_models(_: Annotated[NoQuery, Query()]) -> Models:
        """The models of this server."""
        return Models(models=service.cards, default=service.default)

    @app.post(
        "/v1/predict",
        responses=_error_responses(401, 408, 413, 415, 429, 503),
        dependencies=dependencies,
        openapi_extra={"requestBody": _multipart_body(settings)},
        tags=["v1"],
    )
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Prediction:
        """Classify image files. A file that cannot be read gives a result with status `error`."""
        with service.admission.request(_client(request)):
            model = service.model(query.model)
            files = [upload for _, upload in await _uploads(request, [FILES_FIELD], settings.max_files)]
            results = await _unless_disconnected(
                request,
                service.predict(model, files, maps=query.maps, pixel_scale=query.pixel_scale, image=query.image),
                service,
            )
        return Prediction(model=model.card.name, version=darklens.__version__, images=results)

    @app.get("/v1/lens", responses=_error_responses(401), dependencies=dependencies, tags=["v1"])
    async def sliders(_: Annotated[NoQuery, Query()]) -> Sliders:
        """The parameters of a simulated lens: ranges, steps, and examples."""
        return simulated_lens.sliders()

    @app.post(
        "/v1/lens",
        responses=_error_responses(401, 408, 413, 415, 429, 503),
        dependencies=dependencies,
        openapi_extra={"requestBody": _json_body(LensRequest, service.names)},
        tags=["v1"],
    )
    async def simulate(request: Request, _: Annotated[NoQuery, Query()]) -> LensPrediction:
        """Simulate a lens and classify it, with maps."""
        with service.admission.request(_client(request)):
            lens = await _lens_request(request)
            model = service.model(lens.model)
            result = await _unless_disconnected(request, service.simulate(model, lens), service)
        return LensPrediction(model=model.card.name, version=darklens.__version__, truth=lens.truth(), images=[result])

    @app.get("/v1/search", responses=_error_responses(401), dependencies=dependencies, tags=["v1"])
    async def search_choices(_: Annotated[NoQuery, Query()]) -> SearchChoices:
        """The scenes and perturbers of searches, and their limits."""
        return SearchChoices(
            scenes=search_request.scenes(),
            perturbers=search_request.perturbers(),
            max_pixels=settings.max_search_pixels,
            timeout_s=settings.search_timeout,
            queue=settings.searches,
        )

    @app.post(
        "/v1/search",
        responses=_error_responses(401, 408, 413, 415, 429, 503),
        dependencies=dependencies,
        openapi_extra={"requestBody": _body("multipart/form-data", search_request.multipart_schema())},
        tags=["v1"],
    )
    async def search(request: Request, query: Annotated[SearchQuery, Query()]) -> SearchResponse:
        """Fit a lens to a telescope image and search it for a dark perturber, in seconds to a minute.

        A file that cannot be used gives status `error`.
        """
        with service.admission.request(_client(request)):
            service.model(None)  # the server is ready
            uploads = await _uploads(request, list(search_request.FILES), settings.max_files)
            files = dict(uploads)
            if "image" not in files or len(files) < len(uploads):
                raise RequestError(
                    422, "image: send one file in the field image, and at most one in each other.", field="image"
                )
            return await _unless_disconnected(request, service.search(query, files), service)

    @app.get("/healthz", responses=_error_responses(), tags=["operation"])
    async def healthz(_: Annotated[NoQuery, Query()]) -> Health:
        """Whether the server is running."""
        return Health(status="ok")

    @app.get("/readyz", responses=_error_responses(503), tags=["operation"])
    async def readyz(_: Annotated[NoQuery, Query()]) -> Health:
        """Whether the server accepts images: the models are loaded, the queue has room, and it is not stopping."""
        if not service.is_ready:
            raise RequestError(503, "The server is loading its models, full, or stopping.", reason="not_ready")
        return Health(status="ready")

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_error_responses()},
        tags=["operation"],
    )
    async def metrics(_: Annotated[NoQuery, Query()]) -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.include_router(page_routes())
    _list_models_in_schema(app, service.names)
    return app


def _error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for the OpenAPI document."""
    return {
        code: {"model": ErrorResponse, "description": _ERROR_DESCRIPTIONS[code]}
        for code in sorted({403, 421, 422, *codes})
    }


def _multipart_body(settings: Settings) -> dict[str, Any]:
    # No maxItems: too many files give a 413, not a 422.
    files: dict[str, Any] = {"type": "array", "minItems": 1, "description": f"up to {settings.max_files} image files"}
    files["items"] = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "required": [FILES_FIELD],
        "properties": {FILES_FIELD: files},
        "additionalProperties": False,
    }
    return _body("multipart/form-data", schema)


def _body(content_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {content_type: {"schema": schema}}}


def _json_body(model: type[BaseModel], names: list[str]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True)
    choices = _one_of(schema["properties"]["model"], names)
    schema["properties"]["model"] = choices | {"type": ["string", "null"], "enum": [*names, None]}
    return _body("application/json", schema)


def _one_of(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {"type": "string", "enum": names, "default": names[0], "description": schema.get("description", "")}


def _list_models_in_schema(app: FastAPI, names: list[str]) -> None:
    """Enumerate the names of the models in the OpenAPI document."""
    document = app.openapi()
    for parameter in document["paths"]["/v1/predict"]["post"]["parameters"]:
        if parameter["name"] == "model":
            parameter["schema"] = _one_of(parameter["schema"], names)


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _uploads(request: Request, fields: Sequence[str], max_files: int) -> list[tuple[str, Upload]]:
    """Return the files of a multipart request with their fields.

    Raises:
        RequestError: 415 if the request is not multipart, 422 if it has no files or other fields, 413 if it has too
            many files, 503 if the disk is full.
    """
    if _content_type(request) != "multipart/form-data":
        raise RequestError(415, f"Send files as multipart/form-data, in the field {' or '.join(map(repr, fields))}.")
    try:
        async with request.form(max_files=max_files, max_fields=1) as form:
            return [await _upload(key, value, fields) for key, value in form.multi_items()] or _no_files(fields[0])
    except HTTPException as error:  # raised by Starlette's parser
        detail = str(error.detail).rstrip(".")
        if "Too many files" in detail:
            raise RequestError(
                413, f"A request may have at most {max_files} files; send the rest in another request."
            ) from None
        raise RequestError(422, f"The multipart body cannot be parsed ({detail}).") from None
    except OSError as error:
        raise no_space(error) from None


async def _upload(key: str, value: Any, fields: Sequence[str]) -> tuple[str, Upload]:
    if key not in fields:
        names = " or ".join(map(repr, fields))
        message = f"{key[:_MAX_NAME_LENGTH]!r}: unknown field; send files in the field {names}."
        raise RequestError(422, message, field=fields[0])
    if not isinstance(value, UploadFile):
        raise RequestError(422, f"{key}: a part has no file name; send it as a file.", field=key)
    return key, Upload(display_name(value.filename or ""), await value.read())


def _no_files(field: str) -> NoReturn:
    raise RequestError(422, f"{field}: the request has no files.", field=field)


def display_name(name: str) -> str:
    """Return the last part of a file name, with unprintable characters replaced; the server never opens it."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(c if c.isprintable() else "?" for c in last).strip()
    return printable[:_MAX_NAME_LENGTH] or "file"


async def _lens_request(request: Request) -> LensRequest:
    if _content_type(request) != "application/json":
        raise RequestError(415, "Send the lens as application/json.")
    body = await request.body()
    try:
        return LensRequest.model_validate_json(body)
    except ValidationError as error:
        raise _from_pydantic(error.errors()[0]) from None


def _from_pydantic(error: Any) -> RequestError:
    location = [str(part) for part in error["loc"] if part not in ("query", "body")]
    name = location[0] if location else None
    text = str(error["msg"]).rstrip(".")
    return RequestError(422, f"{name}: {text[0].lower()}{text[1:]}." if name else f"{text}.", field=name)


async def _unless_disconnected(request: Request, work: Awaitable[T], service: Service) -> T:
    """Return the result of the work; cancel the work if the client disconnects first."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        service.metrics.disconnects.inc()
        raise RequestError(408, "The client disconnected.", reason="gone")
    finally:
        task.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return Response(error.body, error.code, error.headers, "application/json")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.status_code if error.status_code in REASONS else 400
    messages = {404: "No such address; /docs lists them all.", 405: "This address does not accept the method."}
    response = RequestError(code, messages.get(code, f"{str(error.detail).rstrip('.')}."))
    headers = {**response.headers, **(error.headers or {})}
    if code == 405:  # Starlette only names the methods of the first route with this address
        path = request.scope["path"]
        routes = [route for route in request.app.routes if getattr(route, "path", None) == path]
        headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    return Response(response.body, code, headers, "application/json")


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    response = _from_pydantic(error.errors()[0])
    return Response(response.body, response.code, response.headers, "application/json")
