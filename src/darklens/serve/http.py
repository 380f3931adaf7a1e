"""The application: routes to the service, problems to JSON."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

import darklens
from darklens.bundle import Bundle
from darklens.data.readers import SUFFIXES
from darklens.serve import lens
from darklens.serve.pages import pages
from darklens.serve.refusal import REASONS, ErrorAnswer, Refusal
from darklens.serve.responses import LensPrediction, Limits, Models, Prediction, Sliders, State
from darklens.serve.service import Service
from darklens.serve.settings import Settings
from darklens.serve.uploads import FIELD, uploads
from darklens.serve.wire import Wire

T = TypeVar("T")
_PROBLEMS: dict[int, str] = {
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    408: "The request did not arrive in time.",
    413: "Too many bytes or files.",
    415: "The body is of another kind.",
    421: "The server answers to another name.",
    422: "A value is wrong; `field` says which.",
    429: "Too many requests of one client are in flight.",
    503: "The queue is full, or the server is starting or stopping; `Retry-After` says when to try again.",
}


class PredictQuery(BaseModel):
    """What is asked of files."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="the classifier; none: the default one")
    maps: bool = Field(default=False, description="whether maps and errors of parameters are wanted")
    pixel_scale: float | None = Field(
        default=None, gt=0, le=100, description="of the images, arcsec, in place of what the files say"
    )
    image: str | None = Field(default=None, max_length=200, description="which image of files that hold several")


class NoQuery(BaseModel):
    """Nothing can be asked."""

    model_config = ConfigDict(extra="forbid")


def create_app(models: Mapping[str, Bundle], digests: Mapping[str, str], settings: Settings) -> FastAPI:
    """Return the application; its state has the `Service`.

    Args:
        models: Bundles by the names that requests call them; the first is the default.
        digests: Of each.
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
        docs_url=None,  # FastAPI's loads scripts from another host
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Wire, settings=settings, metrics=service.metrics)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    bearer = HTTPBearer(auto_error=False)

    async def known(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), (settings.token or "").encode()):
            raise Refusal(401, "This server asks for a token; send it as Authorization: Bearer TOKEN.")

    guarded = [Depends(known)] if settings.token else []

    @app.get("/v1/limits", responses=_problems(), tags=["v1"])
    async def limits(_: Annotated[NoQuery, Query()]) -> Limits:
        """What a request may ask for; needs no token."""
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

    @app.get("/v1/models", responses=_problems(401), dependencies=guarded, tags=["v1"])
    async def models_(_: Annotated[NoQuery, Query()]) -> Models:
        """The models that this server has."""
        return Models(models=service.cards, default=service.default)

    @app.post(
        "/v1/predict",
        responses=_problems(401, 408, 413, 415, 429, 503),
        dependencies=guarded,
        openapi_extra={"requestBody": _multipart(settings)},
        tags=["v1"],
    )
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Prediction:
        """Classify image files. A file that cannot be read gets a result with status `error`; the others go on."""
        with service.gate.request(_client(request)):
            model = service.model(query.model)
            files = await uploads(request, settings)
            results = await _unless_gone(
                request,
                service.predict(model, files, maps=query.maps, pixel_scale=query.pixel_scale, image=query.image),
                service,
            )
        return Prediction(model=model.card.name, version=darklens.__version__, images=results)

    @app.get("/v1/lens", responses=_problems(401), dependencies=guarded, tags=["v1"])
    async def sliders(_: Annotated[NoQuery, Query()]) -> Sliders:
        """What a lens can be simulated from: ranges, steps, and examples."""
        return lens.sliders()

    @app.post(
        "/v1/lens",
        responses=_problems(401, 408, 413, 415, 429, 503),
        dependencies=guarded,
        openapi_extra={"requestBody": _json_body(lens.LensRequest, service.names)},
        tags=["v1"],
    )
    async def simulated(request: Request, _: Annotated[NoQuery, Query()]) -> LensPrediction:
        """Simulate a lens and classify it, with maps."""
        with service.gate.request(_client(request)):
            wanted = await _lens_of(request)
            model = service.model(wanted.model)
            result = await _unless_gone(request, service.simulate(model, wanted), service)
        return LensPrediction(
            model=model.card.name, version=darklens.__version__, truth=wanted.truth(), images=[result]
        )

    @app.get("/healthz", responses=_problems(), tags=["operation"])
    async def healthz(_: Annotated[NoQuery, Query()]) -> State:
        """Whether the server lives."""
        return State(status="ok")

    @app.get("/readyz", responses=_problems(503), tags=["operation"])
    async def readyz(_: Annotated[NoQuery, Query()]) -> State:
        """Whether the server takes requests: models are loaded, the queue is not full, and it is not stopping."""
        if not service.is_ready:
            raise Refusal(503, "The server is loading its models, full, or stopping.", reason="not_ready")
        return State(status="ready")

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems()},
        tags=["operation"],
    )
    async def metrics(_: Annotated[NoQuery, Query()]) -> Response:
        """Counts, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.include_router(pages())
    _name_models(app, service.names)
    return app


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route beside its success, for the OpenAPI document."""
    return {code: {"model": ErrorAnswer, "description": _PROBLEMS[code]} for code in sorted({403, 421, 422, *codes})}


def _multipart(settings: Settings) -> dict[str, Any]:
    # Not maxItems: too many files are an answer of its own, 413.
    files: dict[str, Any] = {"type": "array", "minItems": 1, "description": f"up to {settings.max_files} images"}
    files["items"] = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": [FIELD], "properties": {FIELD: files}, "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _json_body(model: type[BaseModel], names: list[str]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True)
    named = _one_of(schema["properties"]["model"], names)
    schema["properties"]["model"] = named | {"type": ["string", "null"], "enum": [*names, None]}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _one_of(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {"type": "string", "enum": names, "default": names[0], "description": schema.get("description", "")}


def _name_models(app: FastAPI, names: list[str]) -> None:
    """Say in the OpenAPI document which models there are."""
    document = app.openapi()
    for parameter in document["paths"]["/v1/predict"]["post"]["parameters"]:
        if parameter["name"] == "model":
            parameter["schema"] = _one_of(parameter["schema"], names)


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _lens_of(request: Request) -> lens.LensRequest:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Send the lens as application/json.")
    body = await request.body()
    try:
        return lens.LensRequest.model_validate_json(body)
    except ValidationError as error:
        raise _of_pydantic(error.errors()[0]) from None


def _of_pydantic(error: Any) -> Refusal:
    place = [str(part) for part in error["loc"] if part not in ("query", "body")]
    name = place[0] if place else None
    text = str(error["msg"]).rstrip(".")
    return Refusal(422, f"{name}: {text[0].lower()}{text[1:]}." if name else f"{text}.", field=name)


async def _unless_gone(request: Request, work: Awaitable[T], service: Service) -> T:
    """Return what comes of the work, and drop it if the client leaves before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        service.metrics.gone.add()
        raise Refusal(408, "The client left.", reason="gone")
    finally:
        for each in (task, gone):
            each.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Response(error.body, error.code, error.headers, "application/json")


async def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.status_code if error.status_code in REASONS else 400
    text = {404: "There is no such address; GET /docs lists them.", 405: "This address takes other methods."}
    refusal = Refusal(code, text.get(code, f"{str(error.detail).rstrip('.')}."))
    headers = {**refusal.headers, **(error.headers or {})}
    if code == 405:  # Starlette names the methods of the first route that has the address
        there = request.scope["path"]
        routes = [route for route in request.app.routes if getattr(route, "path", None) == there]
        headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    return Response(refusal.body, code, headers, "application/json")


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    refusal = _of_pydantic(error.errors()[0])
    return Response(refusal.body, refusal.code, refusal.headers, "application/json")
