"""Temperature scaling, Guo et al., "On calibration of modern neural networks", ICML 2017."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize
from torch import Tensor

from domainbed_carft.results.metrics import PredictionArray, Temperature
from domainbed_carft.runs.run import require_finite

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
_PRECISION = 1e-15  # of the logarithm of the temperature


def make_logit_predictions(logits: Tensor, labels: Tensor) -> PredictionArray:
    """Return "label", "predicted" and "logits" of images, from logits (N, K) and labels (N,)."""
    require_finite(logits.amax(dim=1))
    logits_field = ("logits", "<f4", (logits.shape[1],))
    predictions = np.empty(len(labels), [("label", "<u2"), ("predicted", "<u2"), logits_field])
    predictions["label"] = labels.cpu().numpy()
    predictions["predicted"] = logits.argmax(dim=1).cpu().numpy()
    predictions["logits"] = logits.float().cpu().numpy()
    return predictions


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """Return the temperature with minimal mean negative log-likelihood (Guo et al., ICML 2017).

    Args:
        logits: (N, K), of any floating-point type, N > 0.
        labels: (N,).

    Returns:
        A temperature from MIN_TEMPERATURE to MAX_TEMPERATURE. If all images are predicted
        correctly, the optimum is 0, so MIN_TEMPERATURE is returned.
    """
    exact_logits = logits.double()
    true_logits = exact_logits.gather(1, labels[:, None]).squeeze(1)

    def slope(log_temperature: float) -> float:
        """Return the derivative of the mean negative log-likelihood by the inverse temperature.

        The negative log-likelihood is convex in the inverse temperature, so the derivative has at
        most one root.
        """
        probabilities = (exact_logits / math.exp(log_temperature)).softmax(dim=1)
        mean = (probabilities * exact_logits).sum(dim=1)
        return float((mean - true_logits).mean())

    minimum = math.log(MIN_TEMPERATURE)
    maximum = math.log(MAX_TEMPERATURE)
    if slope(minimum) <= 0:
        return Temperature(MIN_TEMPERATURE, len(labels), is_at_limit=True)
    if slope(maximum) >= 0:
        return Temperature(MAX_TEMPERATURE, len(labels), is_at_limit=True)
    root = optimize.brentq(slope, minimum, maximum, xtol=_PRECISION)
    return Temperature(math.exp(root), len(labels), is_at_limit=False)
