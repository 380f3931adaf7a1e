"""What every classifier provides, and the default for a plug-in that has `forward` and `head` alone."""

import pytest
import torch
from torch import nn

from darklens.errors import ConfigError
from darklens.models.base import Classifier, WithFeatures, forward_features, ood_features
from darklens.models.ensemble import Ensemble, EnsembleConfig
from darklens.models.lens_residual import LensResidualConfig
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.models.unrolled import UnrolledResidualConfig
from darklens.models.zoo import build, task_of
from tests.unit.models.test_models import CONFIGS, make, rings

CLASSIFIERS = sorted(kind for kind, config in CONFIGS.items() if task_of(config) == "classify")


class Plain(nn.Module):
    """A plug-in as small as can be."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, images):
        return 2 * self.head(images.flatten(1)[:, :5])


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_features_are_the_input_of_the_layer_that_makes_the_logits(kind):
    network, images = make(CONFIGS[kind]).eval(), rings()
    assert isinstance(network, Classifier)
    inner = getattr(network, "first", getattr(network, "classifier", network))
    with torch.no_grad():
        logits, features = forward_features(network, images)
        assert torch.equal(logits, network(images)) and len(network.encode(images)) == len(images)
        if inner is network:
            torch.testing.assert_close(network.head[-1](features), logits)
        assert features.shape == (len(images), inner.head[-1].in_features)
        assert all(map(torch.equal, WithFeatures(network)(images), (logits, features)))
    assert ood_features(network, images).shape == (len(images), 0)


@pytest.mark.parametrize("config", [LensResidualConfig, UnrolledResidualConfig])
def test_systems_that_fit_have_the_same_methods(config):
    assert isinstance(
        build(config(population="common-test-i"), n_pixels=150, pixel_scale=0.05, n_classes=3), Classifier
    )


def test_an_ensemble_has_the_features_of_its_first_member():
    config = EnsembleConfig(members=(ResNetSimpleConfig(), ResNetSimpleConfig()))
    network = Ensemble(config, n_pixels=48, pixel_scale=0.1, n_classes=3).eval()
    with torch.no_grad():
        _, features = network.forward_features(rings())
        assert isinstance(network, Classifier) and torch.equal(
            features, network.members[0].forward_features(rings())[1]
        )


@pytest.mark.parametrize("head", [nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))])
def test_a_network_with_forward_and_head_alone_is_a_classifier(head):
    network, images = Plain(head), rings()
    logits, features = forward_features(network, images)
    last = head[-1] if isinstance(head, nn.Sequential) else head
    assert torch.equal(logits, network(images)) and torch.equal(2 * last(features), logits)
    assert all(map(torch.equal, WithFeatures(network)(images), (logits, features)))
    assert not last._forward_pre_hooks


def test_a_network_without_a_head_is_refused():
    with pytest.raises(ConfigError, match="Plain has no `forward_features`, and no `head` that is"):
        forward_features(Plain(nn.Identity()), rings())
