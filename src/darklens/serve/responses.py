"""What the server answers, as schemas of the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, Field


class Quantity(BaseModel):
    """A fitted parameter."""

    value: float
    error: float | None = Field(description="one standard deviation; none where it was not computed (maps=false)")
    unit: str


class Fit(BaseModel):
    """The fit of the smooth lens."""

    converged: bool
    chi2_per_pixel: float = Field(description="deviance per block of pixels that the smooth lens alone leaves")
    parameters: dict[str, Quantity]
    message: str | None = Field(default=None, description="what is wrong with the fit")


class Suggestion(BaseModel):
    """The substructure that explains the image best."""

    kind: Literal["point", "line"]
    x: float = Field(description="arcsec")
    y: float = Field(description="arcsec")
    mass: float | None = Field(description="solar masses, where the smooth lens has the population's mass")
    theta_E_squared: float = Field(description="the mass as squared Einstein radius, arcsec^2")
    length: float | None = Field(default=None, description="arcsec, of a line")
    angle: float | None = Field(default=None, description="degrees from x towards y, of a line")
    units: dict[str, str]


class OutOfDistribution(BaseModel):
    """Whether the image is one of a kind that the model knows."""

    score: float
    threshold: float = Field(description="that 99 % of familiar images stay below")
    unfamiliar: bool


class Map(BaseModel):
    """A picture of numbers."""

    label: str
    unit: str
    shape: list[int] = Field(description="rows, columns")
    extent: list[float] = Field(description="x0, x1, y0, y1 of the outer edges, arcsec")
    min: float
    max: float
    data: str = Field(description="little-endian float32 in base64, row 0 at the bottom")


class ImageResult(BaseModel):
    """What was found of one image."""

    name: str
    status: Literal["ok", "error"]
    message: str = Field(default="", description="why there is no result")
    predicted: str | None = None
    probabilities: dict[str, float] = {}
    set: list[str] = Field(default=[], description="classes; for images like those of the calibration, holds the truth")
    coverage: float | None = Field(default=None, description="the part of images whose set holds the truth, at least")
    dont_know: bool = Field(default=False, description="the set does not hold exactly one class")
    ood: OutOfDistribution | None = None
    changes: list[str] = Field(default=[], description="what was done to the image before the model saw it")
    fit: Fit | None = None
    hypotheses: dict[str, float] | None = Field(default=None, description="chi2 (deviance) over all blocks of pixels")
    suggestion: Suggestion | None = None
    maps: dict[str, Map] | None = None


class Prediction(BaseModel):
    """Results in the order of the files."""

    model: str
    version: str
    images: list[ImageResult]


class LensPrediction(Prediction):
    """The result of a simulated lens, and what it was simulated with."""

    truth: dict[str, float | int | str]


class Input(BaseModel):
    """The images that a model takes; others are cropped, padded and resampled."""

    height: int
    width: int
    pixel_scale: float = Field(description="arcsec")
    normalisation: str


class ModelCard(BaseModel):
    """What a model is."""

    name: str
    recipe: str
    population: str | None
    classes: list[str]
    parameters: int
    input: Input
    metrics: dict[str, float] | None = Field(description="on its validation images")
    bundle_sha256: str
    licence: str
    has_maps: bool
    fits: bool = Field(description="whether it fits lenses to images")


class Models(BaseModel):
    """The models that the server has."""

    models: list[ModelCard]
    default: str


class Limits(BaseModel):
    """What a request may ask for."""

    max_bytes: int = Field(description="of a request body")
    max_files: int
    max_pixels: int = Field(description="of an image")
    timeout_s: float
    queue: int = Field(description="images that may wait")
    per_client: int = Field(description="requests of one address at a time")
    formats: list[str]
    token_needed: bool


class State(BaseModel):
    """Whether the server lives, or takes requests."""

    status: str


class Slider(BaseModel):
    """One number that a simulated lens is made from."""

    name: str
    label: str
    unit: str
    min: float
    max: float
    step: float = Field(description="decades where the scale is log")
    default: float
    scale: Literal["linear", "log"] = "linear"
    classes: list[str] | None = Field(default=None, description="classes that it matters to; none: all")


class Example(BaseModel):
    """A lens to begin with."""

    name: str
    label: str
    parameters: dict[str, float | int | str]


class Sliders(BaseModel):
    """What a simulated lens can be made from."""

    parameters: list[Slider]
    examples: list[Example]
