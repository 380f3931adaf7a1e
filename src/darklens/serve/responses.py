"""Responses of the server, as schemas of the OpenAPI document, and the exception that becomes an error response."""

from typing import Literal

from pydantic import BaseModel, Field

REASONS = {
    400: "bad_request",
    401: "unauthorized",
    403: "foreign_origin",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    422: "invalid",
    429: "too_many_requests",
    500: "unexpected",
    503: "busy",
}
RETRY_AFTER = 1  # s


class Quantity(BaseModel):
    """A fitted parameter."""

    value: float
    error: float | None = Field(description="standard deviation; null if it was not computed (maps=false)")
    unit: str


class Fit(BaseModel):
    """The fit of the smooth lens."""

    converged: bool
    chi2_per_pixel: float = Field(description="deviance of the smooth lens per fitted pixel; near 1 for a good fit")
    parameters: dict[str, Quantity]
    message: str | None = Field(default=None, description="why the fit failed; null if it succeeded")


class Suggestion(BaseModel):
    """The best-fitting perturber of the predicted class."""

    kind: Literal["point", "line"]
    x: float = Field(description="position of the centre, arcsec")
    y: float = Field(description="position of the centre, arcsec")
    mass: float | None = Field(description="solar masses; null if the population does not fix the mass of the lens")
    theta_E_squared: float = Field(description="mass as the squared Einstein radius, arcsec^2")
    length: float | None = Field(default=None, description="length of a line, arcsec")
    angle: float | None = Field(default=None, description="direction of a line, degrees from the x axis towards y")
    units: dict[str, str]


class OutOfDistribution(BaseModel):
    """The out-of-distribution score of the image."""

    score: float
    threshold: float = Field(description="99th percentile of the score on held-out images of the training population")
    unfamiliar: bool = Field(description="whether the score exceeds the threshold: the image is out of distribution")


class Map(BaseModel):
    """A two-dimensional map."""

    label: str
    unit: str
    shape: list[int] = Field(description="rows, columns")
    extent: list[float] = Field(description="x0, x1, y0, y1 of the outer edges, arcsec")
    min: float
    max: float
    data: str = Field(description="little-endian float32 in base64, row 0 at the bottom")


class ImageResult(BaseModel):
    """The classification of one image."""

    name: str
    status: Literal["ok", "error"]
    message: str = Field(default="", description="why the image could not be classified")
    predicted: str | None = Field(default=None, description="most probable class")
    probabilities: dict[str, float] = Field(default={}, description="calibrated probability of each class")
    set: list[str] = Field(default=[], description="conformal prediction set")
    coverage: float | None = Field(default=None, description="coverage of the prediction set, such as 0.9")
    dont_know: bool = Field(
        default=False,
        description="whether the verdict is unknown, or the prediction set does not have exactly one class",
    )
    verdict: str | None = Field(
        default=None, description="predicted class, or `unknown` if there are reasons to doubt it"
    )
    reasons: list[str] = Field(default=[], description="reasons not to trust the class; probabilities are then widened")
    fallback: str | None = Field(
        default=None, description="model that classified the image in place of the requested one, which doubted it"
    )
    fallback_reasons: list[str] = Field(default=[], description="reasons of the requested model to doubt the image")
    ood: OutOfDistribution | None = None
    changes: list[str] = Field(default=[], description="changes made to the image to fit the model's pixel grid")
    offset: list[float] = Field(
        default=[0.0, 0.0],
        description="position (x, y) of the centre of the classified image relative to the centre of the uploaded one, "
        "arcsec; positions and maps are relative to the former",
    )
    fit: Fit | None = None
    hypotheses: dict[str, float] | None = Field(
        default=None, description="chi2 (deviance) of the best fit under the hypothesis of each class"
    )
    suggestion: Suggestion | None = None
    maps: dict[str, Map] | None = None


class SearchRow(BaseModel):
    """Numbers of a search, named as the columns of `darklens search`; null where there is no perturber."""

    detected: bool
    delta_chi2: float = Field(description="difference in chi2 without and with the perturber, all parameters refitted")
    threshold: float = Field(description="delta chi2 of a detection")
    x: float | None = Field(description="position of the perturber, arcsec")
    y: float | None = Field(description="position of the perturber, arcsec")
    log10_mass: float | None = Field(description="M200 of a halo, total mass of a point or line, M_sun")
    log10_mass_error: float | None = Field(description="standard deviation")
    concentration: float | None = Field(default=None, description="c200 of a halo of free concentration")
    concentration_error: float | None = Field(default=None, description="standard deviation")
    chi2_per_pixel: float = Field(description="with the perturber")
    chi2_per_pixel_smooth: float
    theta_E: float = Field(description="effective Einstein radius of the smooth fit, arcsec")
    theta_E_error: float | None = Field(description="standard deviation")
    seconds: float = Field(description="processor time")


class SearchResponse(BaseModel):
    """A search for a perturber in one telescope image."""

    name: str
    version: str
    scene: str
    perturber: str
    status: Literal["ok", "error"]
    message: str = Field(default="", description="why the image could not be searched, or why no detection is claimed")
    summary: str = Field(default="", description="the result in one sentence")
    notes: list[str] = Field(default=[], description="the threshold, its rate of false alarms, and redshifts of masses")
    row: SearchRow | None = None
    changes: list[str] = Field(default=[], description="what was assumed about the files, converted and left out")
    maps: dict[str, Map] | None = Field(default=None, description="NaN outside the image and far from the arcs")


class Choice(BaseModel):
    """A value that a parameter may have."""

    name: str
    description: str


class SearchChoices(BaseModel):
    """What a search can be asked for, and its limits."""

    scenes: list[Choice]
    perturbers: list[Choice]
    max_pixels: int = Field(description="pixels of the image, or of its central square")
    timeout_s: float = Field(description="time to answer a request, with the wait for other searches, s")
    queue: int = Field(description="searches waiting or running")


class Prediction(BaseModel):
    """Classifications in the order of the files."""

    model: str
    version: str
    images: list[ImageResult]


class LensPrediction(Prediction):
    """The classification of a simulated lens, and the true parameters of that lens."""

    truth: dict[str, float | int | str]


class ModelInput(BaseModel):
    """The images that a model takes; the server crops, pads and resamples others."""

    height: int
    width: int
    pixel_scale: float = Field(description="arcsec")
    normalisation: str


class ModelCard(BaseModel):
    """A model in brief."""

    name: str
    recipe: str
    population: str | None
    classes: list[str]
    parameters: int = Field(description="number of trainable parameters")
    input: ModelInput
    metrics: dict[str, float] | None = Field(description="metrics on the validation images")
    bundle_sha256: str
    licence: str
    has_maps: bool
    fits: bool = Field(description="whether the model fits a lens to each image")


class Models(BaseModel):
    """The models of the server."""

    models: list[ModelCard]
    default: str


class Limits(BaseModel):
    """Limits of a request."""

    max_bytes: int = Field(description="largest request body, bytes")
    max_files: int = Field(description="files per request")
    max_pixels: int = Field(description="pixels per image")
    timeout_s: float = Field(description="time to answer a request, s")
    queue: int = Field(description="images waiting or being classified")
    per_client: int = Field(description="simultaneous requests per client address")
    formats: list[str] = Field(description="suffixes of the files that can be read")
    token_needed: bool


class Health(BaseModel):
    """Whether the server is running, or ready."""

    status: str


class Slider(BaseModel):
    """One parameter of a simulated lens."""

    name: str
    label: str
    unit: str
    min: float
    max: float
    step: float = Field(description="in dex if the scale is log")
    default: float
    scale: Literal["linear", "log"] = "linear"
    classes: list[str] | None = Field(default=None, description="classes that have the parameter; null: all")


class Example(BaseModel):
    """The parameters of an example lens."""

    name: str
    label: str
    parameters: dict[str, float | int | str]


class Sliders(BaseModel):
    """The parameters of a simulated lens, and examples."""

    parameters: list[Slider]
    examples: list[Example]


class ErrorDetail(BaseModel):
    """What is wrong with a request."""

    code: int = Field(description="HTTP status code")
    reason: str = Field(description="one word, for programs")
    message: str = Field(description="one sentence that says what is wrong and what to do")
    field: str | None = Field(default=None, description="name of the wrong field")


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class RequestError(Exception):
    """Rejects a request.

    Args:
        code: HTTP status code.
        message: One sentence that says what is wrong and what to do.
        reason: One word, for programs; by default the one in `REASONS`.
        field: Name of the wrong field.
    """

    def __init__(self, code: int, message: str, *, reason: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.detail = ErrorDetail(code=code, reason=reason or REASONS[code], message=message, field=field)

    @property
    def code(self) -> int:
        """HTTP status code."""
        return self.detail.code

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the status code requires."""
        if self.code in (429, 503):
            return {"Retry-After": str(RETRY_AFTER)}
        if self.code == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {}

    @property
    def body(self) -> bytes:
        """The response body as JSON."""
        return ErrorResponse(error=self.detail).model_dump_json(exclude_none=True).encode()


def no_space(error: OSError) -> RequestError:
    """Return the error of a request whose files cannot be stored, as on a full disk."""
    reason = (error.strerror or str(error)).lower()
    return RequestError(503, f"The server cannot store the files ({reason}); try again later.", reason="no_space")
