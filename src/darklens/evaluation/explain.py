"""Which pixels speak for a class: integrated gradients or occlusion of the log-odds, through captum.

What is explained is ln p - ln(1 - p) of one class before calibration. Attributions are of what a network is shown:
the image scaled to 0..1 (every pixel of it, also where the network crops and bins), or of a system that fits lenses its
maps and numbers. They are counted from a baseline: the image's own sky everywhere, no residual and no evidence, and of
the numbers those of a lens that the smooth model explains perfectly.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from darklens.bundle import Bundle
from darklens.errors import ConfigError
from darklens.fit.features import MAP_NAMES, SUMMARY_NAMES, FitFeatures
from darklens.fit.summary import fit_succeeded

Method = Literal["integrated_gradients", "occlusion"]

_STEPS = (32, 128, 512)  # of the integral; images for which it is not complete get the next
_COMPLETE = 0.01  # of the difference in log-odds (of 1, if that is larger)
_AT_ONCE = 64
_WINDOW = 10  # a side of the window that is covered, as a part of the image's
_BORDER = 1 / 18
_EXPLAINED = ("delta_chi2", "peak", "mass")  # in names of numbers that are 0 where nothing is left to explain


@dataclass(frozen=True)
class Explanation:
    """What speaks for one class in each of b images.

    Attributes:
        method: How it was found.
        label: The class (b,).
        log_odds: Of that class for the image (b,).
        baseline: The same where the baseline is shown (b,).
        channels: Names of the maps.
        inputs: The maps that the network is shown (b, c, m, m): the image from 0 to 1, or standard deviations.
        attribution: What each pixel adds to the log-odds (b, c, m, m).
        numbers: What each number of a fit adds to the log-odds, by name (b,); empty without fits.
        pixel_scale: Of the maps, arcsec.
    """

    method: Method
    label: Int[np.ndarray, " b"]
    log_odds: Float[np.ndarray, " b"]
    baseline: Float[np.ndarray, " b"]
    channels: tuple[str, ...]
    inputs: Float[np.ndarray, "b c m m"]
    attribution: Float[np.ndarray, "b c m m"]
    numbers: dict[str, Float[np.ndarray, " b"]]
    pixel_scale: float

    @property
    def missing(self) -> Float[np.ndarray, " b"]:
        """Log-odds that the attributions do not account for: 0 for integrated gradients, anything for occlusion."""
        total = self.attribution.sum((1, 2, 3), dtype=np.float64)
        return np.asarray(self.log_odds - self.baseline - total - sum(self.numbers.values(), np.zeros_like(total)))


def explain(
    bundle: Bundle,
    images: Float[np.ndarray, "b 1 n n"],
    *,
    method: Method = "integrated_gradients",
    label: int | None = None,
    features: FitFeatures | None = None,
) -> Explanation:
    """Attribute a class' log-odds to pixels.

    Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) add up to the difference in log-odds between image
    and baseline; the integral is refined until they do, to 1 %, or 512 steps were taken. Occlusion (Zeiler & Fergus
    2014, arXiv:1311.2901) is the log-odds lost when a window of a tenth of the side is covered by the baseline.

    Args:
        bundle: A classifier.
        images: Raw images.
        method: See above.
        label: The class to explain; none: of each image the one that the system prefers.
        features: Fits of these images, if they have been made.

    Raises:
        ConfigError: If captum is not installed.
        InputError: If the bundle does not classify.
    """
    bundle.require_classifier("explain")
    try:
        from captum import attr
    except ImportError:
        raise ConfigError("Explanations need captum; install it with: pip install 'darklens[explain]'.") from None
    shown, zero, logits = _view(bundle, images, features)
    with torch.no_grad():
        at_image = logits(*shown)
        chosen = at_image.argmax(1) if label is None else torch.full_like(at_image[:, 0], label, dtype=torch.long)
        at_zero = logits(*zero)

    def log_odds(*given: Tensor) -> Tensor:
        return _log_odds(logits(*given[:-1]), given[-1])

    attribute = _integrated if method == "integrated_gradients" else _occluded
    found = attribute(attr, log_odds, shown, zero, chosen)
    fits = len(shown) > 1
    return Explanation(
        method=method,
        label=chosen.cpu().numpy(),
        log_odds=_log_odds(at_image, chosen).double().cpu().numpy(),
        baseline=_log_odds(at_zero, chosen).double().cpu().numpy(),
        channels=MAP_NAMES if fits else ("image",),
        inputs=shown[0].cpu().numpy(),
        attribution=found[0].detach().float().cpu().numpy(),
        numbers=dict(zip(SUMMARY_NAMES, found[1].detach().double().cpu().numpy().T, strict=True)) if fits else {},
        pixel_scale=bundle.map_pixel_scale if fits else bundle.contract.pixel_scale,
    )


def with_random_weights(bundle: Bundle, *, seed: int) -> Bundle:
    """Return the system as it was before training: an explanation that stays the same with it explains nothing.

    The sanity check of Adebayo et al. (2018), arXiv:1810.03292.
    """
    other = copy.copy(bundle)
    other.network = copy.deepcopy(bundle.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in other.network.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return other


def agreement(first: Explanation, second: Explanation) -> Float[np.ndarray, " b"]:
    """Return each image's Spearman rank correlation of two attributions, signs kept, over all pixels of all maps."""
    from scipy.stats import spearmanr

    pairs = zip(first.attribution, second.attribution, strict=True)
    return np.array([spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs])


def _view(
    bundle: Bundle, images: Float[np.ndarray, "b 1 n n"], features: FitFeatures | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """Return what the network is shown, the baseline, and the function from either to logits."""
    network = bundle.network
    raw = torch.from_numpy(images).to(next(network.parameters()).device)
    if bundle.fit_settings is None:
        prepare = bundle.contract.preprocess
        scaled = prepare.normalise(raw)
        return (scaled,), (_sky(scaled),), lambda image: network(prepare.cut(image))
    if features is None:
        inputs = bundle.inputs_of(images)
        assert isinstance(inputs, FitFeatures)
        features = inputs
    features = features.clone()  # tensors made in inference mode have no gradients
    maps = torch.zeros_like(features.maps)
    maps[:, :1] = _sky(features.maps[:, :1])
    zero = FitFeatures(maps, features.summary.clone())
    for i, name in enumerate(SUMMARY_NAMES):
        if any(word in name for word in _EXPLAINED):
            zero.summary[:, i] = 0
    zero.column("deviance").copy_(zero.column("n_pixels_fitted"))
    # The summary of a failed fit only says that it failed, which is no matter of more or less.
    summary = torch.where(fit_succeeded(features)[:, None], zero.summary, features.summary)
    return (features.maps, features.summary), (maps, summary), lambda m, k: network(FitFeatures(m, k))


def _sky(images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b 1 n n"]:
    """Return images that are all sky: the median of each one's border."""
    width = max(2, round(images.shape[-1] * _BORDER))
    frame = torch.ones_like(images[0, 0], dtype=torch.bool)
    frame[width:-width, width:-width] = False
    return images[:, 0, frame].median(1).values[:, None, None, None].expand_as(images).clone()


def _log_odds(logits: Float[Tensor, "b classes"], label: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    own = nn.functional.one_hot(label, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)


def _integrated(
    attr: Any, function: Callable[..., Tensor], shown: tuple[Tensor, ...], zero: tuple[Tensor, ...], label: Tensor
) -> list[Tensor]:
    method = attr.IntegratedGradients(function, multiply_by_inputs=True)
    found = [torch.zeros_like(v) for v in shown]
    with torch.no_grad():
        wanted = function(*shown, label) - function(*zero, label)
    rows = torch.arange(len(label))
    for steps in _STEPS:
        values, error = method.attribute(
            tuple(v[rows] for v in shown),
            baselines=tuple(v[rows] for v in zero),
            additional_forward_args=(label[rows],),
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=_AT_ONCE,
            return_convergence_delta=True,
        )
        for whole, part in zip(found, values, strict=True):
            whole[rows] = part.detach()
        rows = rows[(error.detach().abs() > _COMPLETE * wanted[rows].abs().clamp_min(1)).cpu()]
        if not len(rows):
            break
    return found


def _occluded(
    attr: Any, function: Callable[..., Tensor], shown: tuple[Tensor, ...], zero: tuple[Tensor, ...], label: Tensor
) -> list[Tensor]:
    side = max(1, shown[0].shape[-1] // _WINDOW)
    stride = max(1, side // 2)
    windows: list[tuple[int, ...]] = [(1, side, side), (1,)]
    strides: list[tuple[int, ...]] = [(1, stride, stride), (1,)]
    with torch.no_grad():
        found = attr.Occlusion(function).attribute(
            shown,
            sliding_window_shapes=tuple(windows[: len(shown)]),
            strides=tuple(strides[: len(shown)]),
            baselines=zero,
            additional_forward_args=(label,),
            perturbations_per_eval=max(1, _AT_ONCE // len(label)),
        )
    return list(found)
