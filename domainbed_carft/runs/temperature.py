"""Temperature scaling: one number that the logits are divided by (Guo et al., ICML 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from domainbed_carft.results.picture_rows import Temperature

LOWEST = 0.01
HIGHEST = 100.0

MOST_ITERATIONS = 200
PRECISION = 1e-14  # of the inverse temperature, relative


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """The temperature in [LOWEST, HIGHEST] with the least mean negative log-likelihood.

    ``logits``: (N, K), of any floating-point type, N > 0; ``labels``: (N,). In the inverse
    temperature the likelihood is convex, so the root of its derivative is found, by Newton's method
    within a bracket that is halved where that would leave it. If all pictures are predicted
    correctly, the best temperature is 0: the answer is then LOWEST.
    """
    exact_logits = logits.double()
    true_logits = exact_logits.gather(1, labels[:, None]).squeeze(1)

    def slope_and_curvature(inverse: float) -> tuple[float, float]:
        """The first and second derivative of the mean negative log-likelihood."""
        probabilities = (inverse * exact_logits).softmax(dim=1)
        mean = (probabilities * exact_logits).sum(dim=1)
        variance = (probabilities * (exact_logits - mean[:, None]) ** 2).sum(dim=1)
        return float((mean - true_logits).mean()), float(variance.mean())

    low = 1 / HIGHEST
    high = 1 / LOWEST
    if slope_and_curvature(high)[0] <= 0:
        return Temperature(LOWEST, len(labels), is_at_limit=True)
    if slope_and_curvature(low)[0] >= 0:
        return Temperature(HIGHEST, len(labels), is_at_limit=True)

    inverse = 1.0
    for _ in range(MOST_ITERATIONS):
        slope, curvature = slope_and_curvature(inverse)
        if slope > 0:
            high = inverse
        else:
            low = inverse

        proposal = inverse - slope / curvature if curvature else low
        if not low < proposal < high:
            proposal = (low + high) / 2
        is_converged = abs(proposal - inverse) <= PRECISION * inverse
        inverse = proposal
        if is_converged:
            break
    return Temperature(1 / inverse, len(labels), is_at_limit=False)


def probability_columns(logits: Tensor, labels: Tensor, temperature: float) -> list[Tensor]:
    """Of each picture's probabilities at a temperature: (N,) each, float64, on the CPU.

    The highest one, the logarithm of that of the true class, and the sum of squares, as in
    `results.calibration.PredictedProbabilities`. ``logits``: (N, K); ``labels``: (N,).
    """
    log_probabilities = (logits.double() / temperature).log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    columns = torch.stack(
        [
            probabilities.amax(dim=1),
            log_probabilities.gather(1, labels[:, None]).squeeze(1),
            (probabilities**2).sum(dim=1),
        ]
    )
    return [*columns.cpu()]
