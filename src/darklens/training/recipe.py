"""A recipe: everything that decides what `darklens train` does, apart from the data and the place of the results."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from darklens.config import Frozen, load
from darklens.data.preprocess import Affine, Augment, Preprocess
from darklens.errors import ConfigError
from darklens.models.resnet_18 import MIN_PIXELS
from darklens.models.zoo import ModelConfig, has_k_network, requires_fitting, takes_any_size, task_of
from darklens.recipes import load_tree
from darklens.simulate.backend import Backend


class Optimiser(Frozen):
    """AdamW, or the study's Adam."""

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, description="the largest rate that the schedule reaches")
    weight_decay: float = Field(default=0.01, ge=0)


class OneCycle(Frozen):
    """Warm up, then anneal to zero over the stage (Smith & Topin 2017)."""

    kind: Literal["one_cycle"] = "one_cycle"
    warm_up: float = Field(default=0.3, gt=0, lt=1, description="fraction of the stage in which the rate rises")


class Plateau(Frozen):
    """The study's schedule: divide the rate when the training loss has stalled."""

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=2, ge=0, description="epochs")
    factor: float = Field(default=0.1, gt=0, lt=1)


class ConstantRate(Frozen):
    """The same rate throughout."""

    kind: Literal["constant"] = "constant"


class Stage(Frozen):
    """One training with its own loss and optimiser, from the best weights of the stage before."""

    task: Literal["classify", "reconstruct"]
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=2)
    optimiser: Optimiser = Optimiser()
    schedule: Annotated[OneCycle | Plateau | ConstantRate, Field(discriminator="kind")] = OneCycle()
    gradient_clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient; none: any")
    ema_decay: float = Field(
        default=0.99, ge=0, lt=1, description="keep a running mean of the weights over some 1/(1 - this) steps; 0: none"
    )
    overrides: tuple[str, ...] = Field(
        default=(), description="stream: further changes to the population in this stage"
    )
    substructure_scale: float = Field(
        default=1.0,
        gt=0,
        description="stream: factor on the masses of the substructure in this stage, so that easy lenses come first",
    )
    images_per_epoch: int | None = Field(default=None, ge=2, description="stream: in place of data.images_per_epoch")
    bin: int = Field(
        default=1,
        ge=1,
        le=8,
        description="side of further blocks of pixels to average in this stage: small images first",
    )
    legacy_double_softmax: bool = Field(default=False, description="softmax before a loss that applies it again")
    legacy_last_epoch: bool = Field(default=False, description="keep the last epoch's weights, not the best's")


class DataConfig(Frozen):
    """Where images come from, and how they are split, scaled, and moved.

    `kind: stream` simulates a population during training: an epoch is `images_per_epoch` images, none of which comes
    again, and validation uses `validation_images` others, the same in every epoch.
    """

    kind: Literal["store", "stream"] = "store"
    population: str | None = Field(default=None, description="stream: a name from `darklens populations`, or a file")
    overrides: tuple[str, ...] = Field(default=(), description="stream: changes to it, such as lens.gamma=0")
    images_per_epoch: int = Field(default=9000, ge=2, description="stream")
    validation_images: int = Field(default=900, ge=3, description="stream")
    workers: int = Field(default=1, ge=0, description="stream: processes that simulate beside the training")
    backend: Backend = Field(
        default="eager", description="by which a stream simulates, or by which a store is fitted for lens_residual"
    )
    preprocess: Preprocess = Preprocess()
    augment: Annotated[Augment, Field(discriminator="kind")] = Affine()
    n_per_class: int | None = Field(
        default=None, ge=2, description="store: train and validate on the first so many images of each class alone"
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    legacy_augmented_validation: bool = Field(default=False, description="move validation images too, as the study did")

    @model_validator(mode="after")
    def _population_of_a_stream(self) -> "DataConfig":
        if (self.kind == "stream") != (self.population is not None):
            raise ValueError("data.population is needed for data.kind stream, and for it alone")
        return self


class Recipe(Frozen):
    """The contents of a recipe file."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    description: str
    model: ModelConfig
    data: DataConfig = DataConfig()
    stages: list[Stage] = Field(min_length=1)
    pretrained: str | None = Field(
        default=None, description="run or bundle of an autoencoder; stands in for the `reconstruct` stages"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = Field(default=False, description="fuse the network's passes in training; needs a C++ compiler")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for i, stage in enumerate(self.stages):
            if stage.task != task_of(self.model) and not (stage.task == "reconstruct" and has_k_network(self.model)):
                raise ValueError(f"stages.{i}.task: {self.model.kind} cannot {stage.task}")
        if self.stages[-1].task != task_of(self.model):
            raise ValueError(f"the last stage must {task_of(self.model)}, which is what {self.model.kind} is for")
        if self.pretrained is not None and not has_k_network(self.model):
            raise ValueError(f"pretrained: {self.model.kind} has no autoencoder to load")
        if requires_fitting(self.model) and (
            self.data.augment.kind == "affine" or self.data.preprocess != Preprocess()
        ):
            raise ValueError(
                f"data: {self.model.kind} fits whole images on their own pixels; leave data.preprocess out and choose "
                "data.augment.kind none or dihedral"
            )
        for i, stage in enumerate(self.stages):
            if self.data.kind == "store" and (
                stage.overrides or stage.images_per_epoch or stage.substructure_scale != 1
            ):
                raise ValueError(
                    f"stages.{i}: overrides, substructure_scale and images_per_epoch are for data.kind stream"
                )
            if stage.bin > 1 and not takes_any_size(self.model):
                raise ValueError(f"stages.{i}.bin: {self.model.kind} takes images of one size; use data.preprocess.bin")
        if self.stages[-1].bin > 1:
            raise ValueError("stages: the last must have bin 1, the size that the system is used at")
        return self

    def check_sizes(self, n_pixels: int) -> None:
        """Refuse stages whose blocks do not divide what the network receives for images of `n_pixels`.

        Raises:
            ConfigError: With the stage and the numbers.
        """
        size = self.data.preprocess.output_size(n_pixels)
        for i, stage in enumerate(self.stages):
            if size % stage.bin:
                raise ConfigError(f"stages.{i}.bin: {size} pixels cannot be divided in blocks of {stage.bin}.")
            if stage.bin > 1 and size // stage.bin < MIN_PIXELS:
                raise ConfigError(
                    f"stages.{i}.bin: {size // stage.bin} pixels are left; at least {MIN_PIXELS} are needed."
                )


def get(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name, or a YAML file by path, with overrides such as `stages.0.epochs=3`.

    Raises:
        ConfigError: If there is no such recipe, file or base, or a key or value is wrong.
    """
    return load(Recipe, load_tree(name_or_path, overrides), name=name_or_path)
