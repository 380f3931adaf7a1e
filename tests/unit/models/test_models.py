"""All systems, and the gradient of the classification loss in the physics."""

import pytest
import torch
from torch import nn

from darklens.bundle import Bundle, storage
from darklens.bundle.contract import Contract
from darklens.config import load
from darklens.errors import ConfigError
from darklens.models import resnet_18
from darklens.models.autoencoder import AutoencoderConfig
from darklens.models.informed import Informed, SISAutoencoder2Config, SISAutoencoderConfig
from darklens.models.lens_layer import KRange, LensLayer
from darklens.models.resnet_18 import ResNet18Config
from darklens.models.resnet_simple import ResNetSimpleConfig, conv_block
from darklens.models.transformer import TransformerConfig
from darklens.models.two_stage import TwoStage, TwoStageConfig
from darklens.models.zoo import build, count_parameters, kinds, task_of
from darklens.physics.grid import Grid
from darklens.recipes import names
from darklens.training.recipe import get

N = 48
CONFIGS = {
    "resnet_simple": ResNetSimpleConfig(),
    "resnet_18": ResNet18Config(),
    "resnet_18 legacy": ResNet18Config(legacy=True),
    "autoencoder_resnet_simple": AutoencoderConfig(latent=32),
    "sis_autoencoder": SISAutoencoderConfig(k_network=AutoencoderConfig(latent=32)),
    "sis_autoencoder2": SISAutoencoder2Config(k_network=AutoencoderConfig(latent=32)),
    "sis_autoencoder2 exact": SISAutoencoder2Config(k_network=AutoencoderConfig(latent=32), grad_k="exact"),
    "sis_autoencoder2 gather": SISAutoencoder2Config(k_network=AutoencoderConfig(latent=32), reduction="gather"),
    "sis_autoencoder2 transformer": SISAutoencoder2Config(k_network=TransformerConfig(width=16, depth=2)),
    "two_stage": TwoStageConfig(),
    "sis_autoencoder2 resnet_18": SISAutoencoder2Config(
        k_network=AutoencoderConfig(latent=32), classifier=ResNet18Config()
    ),
}


def make(config, n_pixels=N, pixel_scale=0.1):
    torch.manual_seed(0)
    return build(config, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=3)


def rings(batch=6, n=N, pixel_scale=0.1):
    """Rings of several radii: images with light where k matters."""
    x, y = Grid(n_pixels=n, pixel_scale=pixel_scale).coordinates()
    radius = torch.linspace(0.8, 1.6, batch)[:, None, None]
    g = torch.Generator().manual_seed(1)
    image = torch.exp(-(((torch.sqrt(x**2 + y**2) - radius) / 0.2) ** 2)) + 0.02 * torch.rand(batch, n, n, generator=g)
    return image[:, None] / image.amax((1, 2))[:, None, None, None]


def test_every_system_is_covered():
    elsewhere = {"lens_residual", "unrolled_residual"}  # tested in other files
    assert {name.split()[0] for name in CONFIGS} | elsewhere == set(kinds())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
class TestEverySystem:
    @pytest.fixture(autouse=True)
    def _narrow_resnet_18(self, monkeypatch):
        monkeypatch.setattr(resnet_18, "_WIDTHS", (8, 8, 16, 16))  # weights that take most of the time otherwise

    def test_output_is_finite_and_does_not_depend_on_the_batch(self, kind):
        model, images = make(CONFIGS[kind]).eval(), rings()
        with torch.no_grad():
            together, alone = model(images), torch.cat([model(image[None]) for image in images])
        assert together.shape == ((6, 3) if task_of(CONFIGS[kind]) == "classify" else images.shape)
        assert torch.isfinite(together).all()
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)

    def test_a_bundle_of_it_can_be_loaded_again(self, kind, tmp_path):
        contract = Contract.untrained(CONFIGS[kind], n_pixels=N, pixel_scale=0.1)
        made = Bundle(contract, contract.build())
        made.save(tmp_path)
        received, output = made.run(rings().numpy())
        assert torch.equal(Bundle.load(tmp_path).run(rings().numpy())[1], output)
        assert received.shape == rings().shape
        assert torch.equal(made.run(rings())[1], output)
        with pytest.raises(ValueError, match=r"takes images of shape \(b, 1, 48, 48\), got \(6, 1, 44, 44\)"):
            made.run(rings(n=44))

    def test_a_bundle_of_half_the_size_gives_almost_the_same(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "LARGE", 500)
        contract = Contract.untrained(CONFIGS[kind], n_pixels=N, pixel_scale=0.1)
        made = Bundle(contract, contract.build())
        made.save(tmp_path / "full")
        made.save(tmp_path / "half", half=True)
        full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
        assert half < 0.7 * full
        output, rounded = made.run(rings())[1], Bundle.load(tmp_path / "half").run(rings())[1]
        assert rounded.dtype == torch.float32 and not torch.equal(rounded, output)
        torch.testing.assert_close(rounded, output, rtol=0, atol=2e-3 * float(1 + output.abs().max()))

    def test_bfloat16_is_close(self, kind):
        model = make(CONFIGS[kind]).eval()
        with torch.no_grad():
            exact = model(rings())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded = model(rings()).float()
        assert (rounded - exact).abs().max() <= 0.03 * (1 + exact.abs().max())

    def test_every_parameter_has_a_gradient_which_a_seed_fixes(self, kind):
        def gradients():
            model = make(CONFIGS[kind]).train()
            losses = getattr(model, "losses", None)
            (losses(rings(), torch.arange(6) % 3) if losses else model(rings()).square()).sum().backward()
            return {name: p.grad for name, p in model.named_parameters()}

        first, second = gradients(), gradients()
        assert [name for name, grad in first.items() if grad is None or not grad.any()] == []
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_other_sizes(self, kind):
        assert torch.isfinite(make(CONFIGS[kind], n_pixels=45).eval()(rings(2, 45))).all()


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (ResNetSimpleConfig(), 6.63),
        (ResNet18Config(legacy=True), 13.96),
        (AutoencoderConfig(), 14.10),
        (SISAutoencoderConfig(), 20.72),
        (SISAutoencoder2Config(), 20.72),
    ],
)
def test_sizes_are_the_studys_to_half_a_percent(config, millions):
    # Counted in the study's code. Projections and normalisations in our shortcuts add 0.03 M per trunk.
    assert count_parameters(make(config, n_pixels=150)) / 1e6 == pytest.approx(millions, rel=5e-3)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("n", [50, 101])
def test_resnet_18_takes_any_size_with_the_same_weights(n, legacy):
    model, other = (make(ResNet18Config(legacy=legacy), n_pixels=size).eval() for size in (n, 64))
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert model(rings(2, n)).shape == (2, 3)
        assert torch.isfinite(other(rings(2, n))).all()


def test_images_too_small_for_the_trunk_are_refused():
    with pytest.raises(ConfigError, match="too small"):
        make(ResNetSimpleConfig(), n_pixels=30)


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1)])
def test_pooling_before_relu_gives_the_bits_of_relu_before_pooling(kernel, padding):
    x = torch.randn(4, 3, 21, 21, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # has ties and zeros
    pool, results = nn.MaxPool2d(kernel, stride=2, padding=padding), []
    block = conv_block(3, 3, kernel=1, pool=pool)
    conv, norm = block[:2]
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None])
    for layers in (block, nn.Sequential(conv, norm, nn.ReLU(), pool)):
        images = x.clone().requires_grad_()
        out = layers(images)
        out.square().sum().backward()
        results.append((out, images.grad))
    assert all(torch.equal(ours, usual) for ours, usual in zip(*results, strict=True))
    assert results[0][1].count_nonzero() > 100


def test_names_of_weights_are_those_of_released_bundles():
    def layers(config):
        return {name.rpartition(".")[0] for name in make(config).state_dict()}

    plain = {f"trunk.layers.{i}.{j}" for i in (0, 2, 4, 5, 9) for j in (0, 1)}
    blocks = {f"trunk.layers.{i}.{part}.{j}" for i in (7, 8) for part in ("first", "second") for j in (0, 1)}
    projection = {f"trunk.layers.7.shortcut.{j}" for j in (0, 1)}
    assert layers(ResNetSimpleConfig()) == plain | blocks | projection | {f"head.{i}" for i in (1, 4, 7)}
    blocks = {f"stages.{i}.{part}.{j}" for i in range(8) for part in ("first", "second") for j in (0, 1)}
    projections = {f"stages.{i}.shortcut.{j}" for i in (2, 4, 6) for j in (0, 1)}
    assert layers(ResNet18Config()) == {"stem.0", "stem.1", "head.1"} | blocks | projections


class TestTwoStage:
    def probabilities(self, first, pairwise):
        model = make(TwoStageConfig()).eval()
        assert isinstance(model, TwoStage)
        stages = torch.tensor(first).log(), torch.tensor(pairwise).log(), torch.zeros(len(first), 1)
        model.stages = lambda images: stages
        return model(rings(len(first))).exp()

    def test_the_specialist_divides_the_probability_of_its_pair(self):
        # Pairs are (0, 1), (0, 2), (1, 2).
        pairwise = [[[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]]
        result = self.probabilities([[0.5, 0.1, 0.4]], pairwise)
        torch.testing.assert_close(result, torch.tensor([[0.27, 0.1, 0.63]]))

    def test_probabilities_sum_to_one(self):
        logits = make(TwoStageConfig()).eval()(rings())
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(6))

    def test_a_specialist_learns_only_from_images_of_its_two_classes(self):
        model = make(TwoStageConfig()).train()
        model.losses(rings(), torch.zeros(6, dtype=torch.long)).sum().backward()
        reached = [any(p.grad.any() for p in specialist.parameters()) for specialist in model.specialists]
        assert reached == [True, True, False]


class TestPhysicsGradients:
    """In the study no gradient of the classification loss reached the network of k (error 1)."""

    def gradients(self, **settings):
        config = SISAutoencoder2Config(k_network=AutoencoderConfig(latent=32), **settings)
        model = make(config).train()
        nn.functional.cross_entropy(model(rings()), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        return {
            name: p.grad
            for name, p in model.named_parameters()
            if name.split(".")[0] in ("k_network", "k_range") and p.requires_grad
        }, model

    @pytest.mark.parametrize("settings", [{}, {"grad_k": "exact"}, {"reduction": "normalised"}, {"inputs": "source"}])
    def test_the_classification_loss_reaches_every_parameter_of_k(self, settings):
        gradients, model = self.gradients(**settings)
        assert len(gradients) == len(model.k_parameters()) > 30
        idle = [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().max() > 0]
        assert idle == []

    def test_the_legacy_switch_restores_the_error(self):
        gradients, model = self.gradients(legacy_rounding=True)
        reached = [name for name, gradient in gradients.items() if gradient is not None and gradient.abs().max() > 0]
        assert reached == []
        assert all(p.grad is not None and p.grad.any() for p in model.classifier.parameters())

    def test_a_few_steps_change_k(self):
        config = SISAutoencoder2Config(k_network=AutoencoderConfig(latent=32))
        model = make(config).train()
        before = model.maps(rings())["k"].detach()
        optimiser = torch.optim.Adam(model.k_parameters(), lr=1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(rings()), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
            optimiser.step()
        assert (model.maps(rings())["k"] - before).abs().max() > 1e-3


class TestLegacySwitches:
    def test_k_in_pixels_cannot_delens(self):
        model = make(SISAutoencoder2Config(legacy_pixel_k=True))
        assert isinstance(model, Informed)
        low, high = (float(v) / 0.1 for v in model.k_range.bounds())
        assert (low, high) == (pytest.approx(0.8), pytest.approx(1.2))
        assert not any(p.requires_grad for p in model.k_range.parameters())

    def test_dividing_by_the_batch_makes_predictions_depend_on_neighbours(self):
        images = rings() * torch.linspace(0.1, 1, 6)[:, None, None, None]
        for legacy, depends in ((False, False), (True, True)):
            model = make(SISAutoencoder2Config(legacy_batch_scale=legacy)).eval()
            assert isinstance(model, Informed)
            together, alone = model.maps(images)["source"][:1], model.maps(images[:1])["source"]
            assert bool((together - alone).abs().max() > 0.05) == depends

    def test_dropping_the_origin_sets_a_pixel_to_zero(self):
        grid = Grid(n_pixels=21, pixel_scale=0.1)
        images, k = torch.ones(1, 1, 21, 21), torch.zeros(1, 21, 21)
        for legacy, value in ((False, 1.0), (True, 0.0)):
            layer = LensLayer(grid, reduction="sum", legacy_drop_origin=legacy)
            assert float(layer(images, k)[0, 0, 10, 10]) == value


def test_k_stays_within_bounds_that_include_real_einstein_radii():
    k_range = KRange(0.3, 2.1)
    low, high = (float(v) for v in k_range.bounds())
    assert (low, high) == (pytest.approx(0.3), pytest.approx(2.1))
    k = k_range(torch.linspace(-50, 50, 64).reshape(1, 8, 8))
    assert k.min() >= low and k.max() <= high


def test_the_layer_with_the_true_k_focuses_the_ring():
    images, grid = rings(1), Grid(n_pixels=N, pixel_scale=0.1)
    layer = LensLayer(grid, reduction="sum")
    source = layer(images, torch.full((1, N, N), 0.8))[0, 0]
    x, y = grid.coordinates()
    inner = (x**2 + y**2) < 0.5**2
    assert float(source[inner].sum() / source.sum()) > 0.6 > float(images[0, 0][inner].sum() / images.sum())


def test_the_old_key_of_the_reduction_is_still_read():
    assert get("sis_autoencoder2", ["model.collide=normalised"]).model.reduction == "normalised"


@pytest.mark.parametrize("name", names())
def test_every_recipe_loads_and_builds(name):
    recipe = get(name)
    assert recipe.name == name
    assert recipe.description
    assert isinstance(make(recipe.model), nn.Module)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="k_low"):
        load(SISAutoencoder2Config, {"kind": "sis_autoencoder2", "k_low": 3})
    for override, sentence in (
        ("stages.0.task=reconstruct", "cannot reconstruct"),
        ("pretrained=x", "no autoencoder"),
        ("stages.0.epochs=0", "stages.0.epochs"),
        ("model.kind=resnet", "resnet"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            get("resnet_simple", [override])
    with pytest.raises(ConfigError, match="last stage must classify"):
        get("sis_autoencoder2", ["stages.1.task=reconstruct"])
    with pytest.raises(ConfigError, match="did you mean 'resnet_simple'"):
        get("resnet_simpel")
