"""Attribution of the log-odds of a class to pixels, by integrated gradients or occlusion, with captum.

The log-odds ln p - ln(1 - p) of one class before calibration are attributed to the inputs of the network: the pixels of
the image scaled to 0..1 (before cropping and binning), or the maps and the summary of the fits. The baseline is an
image of pure sky, maps without residuals and evidence, and the summary of a lens that the smooth model fits perfectly.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from darklens.bundle import Bundle
from darklens.data.arrays import border, float32_tensor
from darklens.errors import ConfigError
from darklens.fit.features import MAP_NAMES, SUMMARY_NAMES, FitFeatures
from darklens.fit.summary import fit_succeeded

Method = Literal["integrated_gradients", "occlusion"]

_STEPS = (32, 128, 512)  # of the integral, increased for images where it has not converged
_TOLERANCE = 0.01  # of the integral, relative to the difference in log-odds, or absolute if that is below 1
_BATCH_SIZE = 64  # evaluations of the network
_WINDOW = 10  # sides of the occlusion window that make up a side of the image
_BORDER = 1 / 18  # of the side of the image
_ZERO_AT_BASELINE = ("delta_chi2", "peak", "mass")  # parts of the summary names that are 0 for a perfect smooth fit


@dataclass(frozen=True)
class Explanation:
    """Attributions of the log-odds of one class for b images.

    Attributes:
        method: Of the attribution.
        label: The class (b,).
        log_odds: Of that class for the image (b,).
        baseline: Log-odds for the baseline (b,).
        map_names: Of the c input maps.
        inputs: Input maps (b, c, m, m): the image from 0 to 1, or standard deviations.
        attribution: Contribution of each pixel to the log-odds (b, c, m, m).
        summary: Contribution of each summary number of the fit to the log-odds, by name (b,); empty without fits.
        pixel_scale: Of the maps, arcsec.
    """

    method: Method
    label: Int[np.ndarray, " b"]
    log_odds: Float[np.ndarray, " b"]
    baseline: Float[np.ndarray, " b"]
    map_names: tuple[str, ...]
    inputs: Float[np.ndarray, "b c m m"]
    attribution: Float[np.ndarray, "b c m m"]
    summary: dict[str, Float[np.ndarray, " b"]]
    pixel_scale: float

    @property
    def unexplained(self) -> Float[np.ndarray, " b"]:
        """Log-odds not accounted for by the attributions: about 0 for integrated gradients, arbitrary for occlusion."""
        total = self.attribution.sum((1, 2, 3), dtype=np.float64)
        return np.asarray(self.log_odds - self.baseline - total - sum(self.summary.values(), np.zeros_like(total)))


def explain(
    bundle: Bundle,
    images: Shaped[np.ndarray, "b 1 n n"],
    *,
    method: Method = "integrated_gradients",
    label: int | None = None,
    features: FitFeatures | None = None,
) -> Explanation:
    """Attribute the log-odds of a class to pixels.

    Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) sum to the difference in log-odds between image
    and baseline; the integral is refined until the sum is accurate to 1 %, up to 512 steps. Occlusion (Zeiler & Fergus
    2014, arXiv:1311.2901) is the loss of log-odds when a window, a tenth of the image wide, is set to the baseline.

    Args:
        bundle: A classifier.
        images: Raw images.
        method: See above.
        label: The class to explain; by default the predicted class of each image.
        features: Fits of these images, if they exist already.

    Raises:
        ConfigError: If captum is not installed.
        InputError: If the bundle does not classify.
    """
    bundle.require_classifier("explain")
    try:
        from captum import attr
    except ImportError:
        raise ConfigError("Explanations need captum; install it with: pip install 'darklens[explain]'.") from None
    inputs, baseline, logits = _inputs_and_baseline(bundle, images, features)
    with torch.no_grad():
        at_image = logits(*inputs)
        target = at_image.argmax(1) if label is None else torch.full_like(at_image[:, 0], label, dtype=torch.long)
        at_baseline = logits(*baseline)

    def log_odds(*arguments: Tensor) -> Tensor:
        return _log_odds(logits(*arguments[:-1]), arguments[-1])

    attribute = _integrated_gradients if method == "integrated_gradients" else _occlusion
    attributions = attribute(attr, log_odds, inputs, baseline, target)
    summary: dict[str, np.ndarray] = {}
    if len(inputs) > 1:
        summary = dict(zip(SUMMARY_NAMES, attributions[1].detach().double().cpu().numpy().T, strict=True))
    return Explanation(
        method=method,
        label=target.cpu().numpy(),
        log_odds=_log_odds(at_image, target).double().cpu().numpy(),
        baseline=_log_odds(at_baseline, target).double().cpu().numpy(),
        map_names=MAP_NAMES if summary else ("image",),
        inputs=inputs[0].cpu().numpy(),
        attribution=attributions[0].detach().float().cpu().numpy(),
        summary=summary,
        pixel_scale=bundle.map_pixel_scale if summary else bundle.contract.pixel_scale,
    )


def with_random_weights(bundle: Bundle, *, seed: int) -> Bundle:
    """Return the system with random weights, for the sanity check of Adebayo et al. (2018), arXiv:1810.03292.

    An attribution that does not change under this randomisation does not explain the trained network.
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
    """Return the Spearman rank correlation of two attributions of each image, over all pixels of all maps."""
    from scipy.stats import spearmanr

    pairs = zip(first.attribution, second.attribution, strict=True)
    return np.array([spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs])


def _inputs_and_baseline(
    bundle: Bundle, images: Shaped[np.ndarray, "b 1 n n"], features: FitFeatures | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """Return the inputs of the network, the baseline, and the function from either to logits."""
    network = bundle.network
    raw = float32_tensor(images).to(next(network.parameters()).device)
    if bundle.fit_settings is None:
        prepare = bundle.contract.preprocess
        scaled = prepare.normalise(raw)
        return (scaled,), (_sky(scaled),), lambda image: network(prepare.cut(image))
    if features is None:
        fitted = bundle.inputs_of(images)
        assert isinstance(fitted, FitFeatures)
        features = fitted
    features = features.clone()  # tensors made in inference mode have no gradients
    maps = torch.zeros_like(features.maps)
    maps[:, :1] = _sky(features.maps[:, :1])
    perfect = FitFeatures(maps, features.summary.clone())
    for i, name in enumerate(SUMMARY_NAMES):
        if any(part in name for part in _ZERO_AT_BASELINE):
            perfect.summary[:, i] = 0
    perfect.column("deviance").copy_(perfect.column("n_pixels_fitted"))
    # The summary of a failed fit only states the failure, so it is its own baseline.
    summary = torch.where(fit_succeeded(features)[:, None], perfect.summary, features.summary)
    return (features.maps, features.summary), (maps, summary), lambda m, k: network(FitFeatures(m, k))


def _sky(images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b 1 n n"]:
    """Return images of pure sky, the median of the border of each image."""
    width = max(2, round(images.shape[-1] * _BORDER))
    frame = torch.from_numpy(border(images.shape[-1], width)).to(images.device)
    return images[:, 0, frame].median(1).values[:, None, None, None].expand_as(images).clone()


def _log_odds(logits: Float[Tensor, "b classes"], label: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    target = nn.functional.one_hot(label, logits.shape[1]).bool()
    return logits[target] - logits.masked_fill(target, -torch.inf).logsumexp(1)


def _integrated_gradients(
    attr: Any, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], baseline: tuple[Tensor, ...], label: Tensor
) -> list[Tensor]:
    method = attr.IntegratedGradients(function, multiply_by_inputs=True)
    attributions = [torch.zeros_like(v) for v in inputs]
    with torch.no_grad():
        difference = function(*inputs, label) - function(*baseline, label)
    rows = torch.arange(len(label))
    for steps in _STEPS:
        values, error = method.attribute(
            tuple(v[rows] for v in inputs),
            baselines=tuple(v[rows] for v in baseline),
            additional_forward_args=(label[rows],),
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=_BATCH_SIZE,
            return_convergence_delta=True,
        )
        for attribution, value in zip(attributions, values, strict=True):
            attribution[rows] = value.detach()
        rows = rows[(error.detach().abs() > _TOLERANCE * difference[rows].abs().clamp_min(1)).cpu()]
        if not len(rows):
            break
    return attributions


def _occlusion(
    attr: Any, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], baseline: tuple[Tensor, ...], label: Tensor
) -> list[Tensor]:
    side = max(1, inputs[0].shape[-1] // _WINDOW)
    stride = max(1, side // 2)
    windows: list[tuple[int, ...]] = [(1, side, side), (1,)]
    strides: list[tuple[int, ...]] = [(1, stride, stride), (1,)]
    with torch.no_grad():
        attributions = attr.Occlusion(function).attribute(
            inputs,
            sliding_window_shapes=tuple(windows[: len(inputs)]),
            strides=tuple(strides[: len(inputs)]),
            baselines=baseline,
            additional_forward_args=(label,),
            perturbations_per_eval=max(1, _BATCH_SIZE // len(label)),
        )
    return list(attributions)
