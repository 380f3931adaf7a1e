"""Two levels of classifiers: the first names the two most probable classes, a specialist decides between them."""

from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.models.classifiers import ClassifierConfig, classifier
from darklens.models.resnet_simple import ResNetSimpleConfig


class TwoStageConfig(Frozen):
    """A classifier of all classes, and one of each pair that decides between the two most probable."""

    kind: Literal["two_stage"] = "two_stage"
    first: ClassifierConfig = ResNetSimpleConfig()
    specialist: ClassifierConfig = ResNetSimpleConfig()


class TwoStage(nn.Module):
    """One classifier of all classes and one of each pair.

    With p from the first level and {a, b} its two most probable classes, the specialist's q shares out what the first
    gives to the pair: P(a) = (p_a + p_b) q, P(b) = (p_a + p_b) (1 - q), the others keep p. So probabilities sum to
    one, and are calibrated where both levels are: q is the probability of a for an image that is a or b.
    """

    pairs: Tensor

    def __init__(self, config: TwoStageConfig, *, n_pixels: int, n_classes: int) -> None:
        super().__init__()
        pairs = list(combinations(range(n_classes), 2))
        self.register_buffer("pairs", torch.tensor(pairs), persistent=False)
        self.first = classifier(config.first, n_pixels=n_pixels, n_classes=n_classes)
        self.specialists = nn.ModuleList(classifier(config.specialist, n_pixels=n_pixels, n_classes=2) for _ in pairs)

    def levels(self, images: Float[Tensor, "b 1 n n"]) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b pairs 2"]]:
        """Return log-probabilities of the classes at the first level, and of either class of each pair."""
        decided = torch.stack([specialist(images) for specialist in self.specialists], dim=1)
        return self.first(images).float().log_softmax(1), decided.float().log_softmax(2)

    def forward(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b classes"]:
        """Return log-probabilities, which are logits."""
        first, decided = self.levels(images)
        # The pair of the two most probable classes is the one of the largest sum.
        sums = torch.logsumexp(first[:, self.pairs], dim=2)
        chosen = sums.argmax(1)
        pair = self.pairs[chosen]
        own = decided.gather(1, chosen[:, None, None].expand(-1, 1, 2))[:, 0]
        return first.scatter(1, pair, sums.gather(1, chosen[:, None]) + own)

    def losses(self, images: Float[Tensor, "b 1 n n"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return each image's loss in training: the first level's, and the mean of those of the pairs it is in.

        Every network learns from all images of its classes, chosen or not, so that each is calibrated by itself.
        """
        first, decided = self.levels(images)
        place = self.pairs == labels[:, None, None]
        of_pairs = -torch.where(place, decided, 0.0).sum((1, 2)) / place.any(2).sum(1)
        return of_pairs - first.gather(1, labels[:, None])[:, 0]
