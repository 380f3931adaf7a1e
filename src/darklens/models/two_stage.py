"""Two stages: a classifier finds the two most probable classes, a specialist separates them."""

from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.models.base import NetworkOutput
from darklens.models.classifiers import ClassifierConfig, classifier
from darklens.models.resnet_simple import ResNetSimpleConfig


class TwoStageConfig(Frozen):
    """A classifier of all classes, and a specialist for each pair that separates the two most probable."""

    kind: Literal["two_stage"] = "two_stage"
    first: ClassifierConfig = ResNetSimpleConfig()
    specialist: ClassifierConfig = ResNetSimpleConfig()


class TwoStage(nn.Module):
    """A classifier of all classes and a specialist for each pair of classes.

    Let p be the probabilities of the classifier and {a, b} its two most probable classes. The specialist gives the
    conditional probability q of a for an image of class a or b. Then P(a) = (p_a + p_b) q, P(b) = (p_a + p_b) (1 - q),
    and the other classes keep p. Probabilities sum to one, and they are calibrated if both stages are.
    """

    pairs: Tensor

    def __init__(self, config: TwoStageConfig, *, n_pixels: int, n_classes: int) -> None:
        super().__init__()
        pairs = list(combinations(range(n_classes), 2))
        self.register_buffer("pairs", torch.tensor(pairs), persistent=False)
        self.first = classifier(config.first, n_pixels=n_pixels, n_classes=n_classes)
        self.specialists = nn.ModuleList(classifier(config.specialist, n_pixels=n_pixels, n_classes=2) for _ in pairs)

    def stages(
        self, images: Float[Tensor, "b 1 n n"]
    ) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b pairs 2"], Float[Tensor, "b f"]]:
        """Return the log-probabilities of the classifier for all classes and of each specialist, and its features."""
        pairwise = torch.stack([specialist(images) for specialist in self.specialists], dim=1)
        logits, features = self.first.forward_features(images)
        return logits.float().log_softmax(1), pairwise.float().log_softmax(2), features

    def encode(self, inputs: Float[Tensor, "b 1 n n"]) -> Tensor:
        """Return the representation of images by the classifier for all classes."""
        return self.first.encode(inputs)

    def forward(self, inputs: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b classes"]:
        """Return log-probabilities, which are logits."""
        return self.forward_features(inputs).logits

    def forward_features(self, inputs: Float[Tensor, "b 1 n n"]) -> NetworkOutput:
        """Return log-probabilities, and the features of the classifier for all classes."""
        first, pairwise, features = self.stages(inputs)
        # The two most probable classes are the pair with the largest sum.
        sums = torch.logsumexp(first[:, self.pairs], dim=2)
        index = sums.argmax(1)
        conditional = pairwise.gather(1, index[:, None, None].expand(-1, 1, 2))[:, 0]
        logits = first.scatter(1, self.pairs[index], sums.gather(1, index[:, None]) + conditional)
        return NetworkOutput(logits, features)

    def losses(self, images: Float[Tensor, "b 1 n n"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the training loss of each image: the classifier's plus the mean over the specialists of its class.

        Each network learns from all images of its classes, so that each is calibrated separately.
        """
        first, pairwise, _ = self.stages(images)
        is_label = self.pairs == labels[:, None, None]
        specialist_loss = -torch.where(is_label, pairwise, 0.0).sum((1, 2)) / is_label.any(2).sum(1)
        return specialist_loss - first.gather(1, labels[:, None])[:, 0]
