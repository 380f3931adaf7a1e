"""The schema of recipes: all settings of `darklens train` except the store and the output folder."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from darklens.config import Frozen, load
from darklens.data.preprocess import Affine, Augment, Preprocess
from darklens.errors import ConfigError
from darklens.models.resnet_18 import MIN_PIXELS
from darklens.models.zoo import ModelConfig, has_k_network, has_lens_step, requires_fitting, takes_any_size, task_of
from darklens.recipes import load_tree
from darklens.simulate.backend import Backend


class Optimiser(Frozen):
    """AdamW, or the study's Adam."""

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, description="maximum learning rate of the schedule")
    weight_decay: float = Field(default=0.01, ge=0)


class OneCycle(Frozen):
    """Warm-up, then annealing to zero over the stage (Smith & Topin 2017)."""

    kind: Literal["one_cycle"] = "one_cycle"
    warm_up: float = Field(default=0.3, gt=0, lt=1, description="fraction of the stage with a rising learning rate")


class Plateau(Frozen):
    """The study's schedule: reduce the learning rate when the training loss stops decreasing."""

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=2, ge=0, description="epochs without improvement before a reduction")
    factor: float = Field(default=0.1, gt=0, lt=1, description="factor on the learning rate")


class ConstantRate(Frozen):
    """A constant learning rate."""

    kind: Literal["constant"] = "constant"


class Stage(Frozen):
    """One stage of training with its loss and optimiser. It starts from the best weights of the previous stage."""

    task: Literal["classify", "reconstruct"]
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=2)
    optimiser: Optimiser = Optimiser()
    schedule: Annotated[OneCycle | Plateau | ConstantRate, Field(discriminator="kind")] = OneCycle()
    gradient_clip: float | None = Field(default=None, gt=0, description="maximum norm of the gradient; none: no limit")
    ema_decay: float = Field(
        default=0.99, ge=0, lt=1, description="average the weights over about 1/(1 - ema_decay) steps; 0: no average"
    )
    overrides: tuple[str, ...] = Field(
        default=(), description="stream: further overrides of the population in this stage"
    )
    substructure_scale: float = Field(
        default=1.0,
        gt=0,
        description="stream: factor on the masses of the substructure in this stage, so that easy lenses come first",
    )
    images_per_epoch: int | None = Field(default=None, ge=2, description="stream: replaces data.images_per_epoch")
    bin: int = Field(
        default=1,
        ge=1,
        le=8,
        description="average blocks of this many pixels along a side in this stage, to start with small images",
    )
    legacy_double_softmax: bool = Field(default=False, description="apply a second softmax before that of the loss")
    legacy_last_epoch: bool = Field(default=False, description="keep the weights of the last epoch instead of the best")


class DataConfig(Frozen):
    """The source of the images, and their split, preprocessing and augmentation.

    `kind: stream` simulates a population during training: each epoch has `images_per_epoch` new images, and the
    `validation_images` validation images are the same in every epoch.
    """

    kind: Literal["store", "stream"] = "store"
    population: str | None = Field(default=None, description="stream: a name from `darklens populations`, or a file")
    overrides: tuple[str, ...] = Field(default=(), description="stream: its overrides, such as lens.gamma=0")
    images_per_epoch: int = Field(default=9000, ge=2, description="stream: images of an epoch")
    validation_images: int = Field(default=900, ge=3, description="stream: images for validation")
    repeat: bool = Field(default=False, description="stream: repeat the images of the first epoch of each stage")
    workers: int = Field(default=1, ge=0, description="stream: processes that simulate during training")
    backend: Backend = Field(
        default="eager", description="backend of the simulation of a stream, or of the fits of a store"
    )
    preprocess: Preprocess = Preprocess()
    augment: Annotated[Augment, Field(discriminator="kind")] = Affine()
    n_per_class: int | None = Field(
        default=None, ge=2, description="store: use only the first n_per_class images of each class"
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    legacy_augmented_validation: bool = Field(default=False, description="augment validation images, as in the study")

    @model_validator(mode="after")
    def _population_of_a_stream(self) -> "DataConfig":
        if (self.kind == "stream") != (self.population is not None):
            raise ValueError("data.population is needed for data.kind stream, and only for it")
        if self.repeat and self.kind == "store":
            raise ValueError("data.repeat is for data.kind stream; a store repeats its images")
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
        default=None, description="run or bundle of an autoencoder that replaces the `reconstruct` stages"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = Field(default=False, description="compile the network for training; needs a C++ compiler")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for i, stage in enumerate(self.stages):
            if stage.task != task_of(self.model) and not (stage.task == "reconstruct" and has_k_network(self.model)):
                raise ValueError(f"stages.{i}.task: {self.model.kind} cannot {stage.task}")
        if self.stages[-1].task != task_of(self.model):
            raise ValueError(f"the last stage must {task_of(self.model)}, which is the task of {self.model.kind}")
        if self.pretrained is not None and not has_k_network(self.model):
            raise ValueError(f"pretrained: {self.model.kind} has no autoencoder to load")
        if requires_fitting(self.model):
            affine, augment = self.data.augment.kind == "affine", "set data.augment.kind to none or dihedral"
            if has_lens_step(self.model) and affine:  # it fits its inputs, which may be crops and blocks of pixels
                raise ValueError(f"data: {self.model.kind} fits images that must not be resampled; {augment}")
            if not has_lens_step(self.model) and (affine or self.data.preprocess != Preprocess()):
                raise ValueError(
                    f"data: {self.model.kind} fits whole images in their original pixels; omit data.preprocess and "
                    f"{augment}"
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
            raise ValueError("stages: the last must have bin 1, the image size of predictions")
        return self

    def check_sizes(self, n_pixels: int) -> None:
        """Check that the blocks of all stages divide the preprocessed images.

        Args:
            n_pixels: Pixels along a side of the images before preprocessing.

        Raises:
            ConfigError: If they do not, or if the images become too small.
        """
        size = self.data.preprocess.output_size(n_pixels)
        for i, stage in enumerate(self.stages):
            if size % stage.bin:
                raise ConfigError(f"stages.{i}.bin: {size} pixels cannot be divided into blocks of {stage.bin}.")
            if stage.bin > 1 and size // stage.bin < MIN_PIXELS:
                raise ConfigError(
                    f"stages.{i}.bin: {size // stage.bin} pixels remain; at least {MIN_PIXELS} are needed."
                )


def get(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name, or a YAML file by path, with overrides such as `stages.0.epochs=3`.

    Raises:
        ConfigError: If there is no such recipe, file or base, or a key or value is wrong.
    """
    return load(Recipe, load_tree(name_or_path, overrides), name=name_or_path)
