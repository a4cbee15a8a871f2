"""What can be computed from a released tensor: the best guess of the image, and which of N images it was made from.

All work on y = x_n / sqrt(alpha_bar_n) = x_0 + w, w normal with variance s = (1 - alpha_bar_n) / alpha_bar_n, the form
in which looks at one image are compared and averaged.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array

FloatArray = npt.NDArray[np.float64]

_MOST_REFERENCES = 1000
"""Images a prior is made of at most: its directions are kept in memory."""
_BLOCK = 64


@dataclass(frozen=True)
class LinearPrior:
    """First and second moments of a set of images, as two attackers know them.

    Attributes:
        mean: (C, H, W).
        directions: (K, C H W), orthonormal: where the images vary.
        variances: (K,) along them, shrunk.
        floor: variance along all other directions.
        spectrum: (C, H, W): mean power per frequency, for images whose statistics are the same everywhere.
    """

    mean: FloatArray
    directions: FloatArray
    variances: FloatArray
    floor: float
    spectrum: FloatArray


def fit_prior(images: Float32Array) -> LinearPrior:
    """The prior of an attacker who holds images like those that were released.

    The covariance is shrunk towards a multiple of the identity by the oracle approximating shrinkage (Chen et al.
    2010, eq. 23), as there are fewer images than pixels.

    Args:
        images: (N, C, H, W) in [-1, 1], N >= 2; of more than 1000 the first 1000.
    """
    x = images[:_MOST_REFERENCES].astype(np.float64)
    mean = x.mean(axis=0)
    centred = (x - mean).reshape(len(x), -1)
    n, p = centred.shape
    values, vectors = np.linalg.eigh(centred @ centred.T / n)  # those of the covariance, but for zeros
    kept = values > max(values.max(), 0.0) * 1e-10
    values, vectors = values[kept], vectors[:, kept]
    directions = (vectors / np.sqrt(n * values)).T @ centred
    trace, squares = values.sum(), (values**2).sum()
    spread = (n + 1 - 2 / p) * (squares - trace**2 / p)
    share = 1.0 if spread <= 0 else min(1.0, ((1 - 2 / p) * squares + trace**2) / spread)
    floor = share * trace / p
    power = np.abs(np.fft.fft2(x - mean)) ** 2
    return LinearPrior(
        mean, directions, (1 - share) * values + floor, floor, power.mean(axis=0) / (x.shape[2] * x.shape[3])
    )


def wiener_by_covariance(prior: LinearPrior, y: Float32Array, s: float) -> Float32Array:
    """E[x_0 | y] if images were normal with the prior's mean and covariance: Sigma (Sigma + s I)^-1 (y - mean) + mean.

    Args:
        y: (N, C, H, W), noise of variance ``s``.
    """
    flat = y.reshape(len(y), -1) - prior.mean.ravel()
    elsewhere = prior.floor / (prior.floor + s)
    gains = prior.variances / (prior.variances + s) - elsewhere
    guess = elsewhere * flat + (flat @ prior.directions.T * gains) @ prior.directions
    return _image(guess + prior.mean.ravel(), y.shape)


def wiener_by_spectrum(prior: LinearPrior, y: Float32Array, s: float) -> Float32Array:
    """The same with one gain per frequency, P / (P + s): fewer numbers to know, so better where images are few."""
    gains = prior.spectrum / (prior.spectrum + s)
    guess = np.fft.ifft2(np.fft.fft2(y - prior.mean) * gains).real + prior.mean
    return _image(guess, y.shape)


def _image(values: FloatArray, shape: tuple[int, ...]) -> Float32Array:
    clipped: Float32Array = values.reshape(shape).clip(-1, 1).astype(np.float32)
    return clipped


def psnr(guess: Float32Array, x_0: Float32Array) -> FloatArray:
    """(N,) peak signal-to-noise ratio in dB of guesses in [-1, 1]: 10 log10(2^2 / mean squared error)."""
    error = ((guess.clip(-1, 1) - x_0) ** 2).reshape(len(x_0), -1).mean(axis=1, dtype=np.float64)
    decibels: FloatArray = 10 * np.log10(4 / np.maximum(error, 1e-12))
    return decibels


def identify(y: Float32Array, candidates: Float32Array) -> npt.NDArray[np.int64]:
    """(N,): of each y the candidate of the greatest likelihood, that is the least ||y - x_0||^2.

    The tensor as it is tells more than a guess made from it: the noise is independent of the image, so the distance to
    the right one is the smallest wherever the images differ by more than chance.

    Args:
        y: (N, C, H, W).
        candidates: (M, C, H, W) images.
    """
    flat = candidates.reshape(len(candidates), -1)
    half_norms = np.einsum("ij,ij->i", flat, flat, dtype=np.float64) / 2
    blocks = [y[start : start + _BLOCK].reshape(-1, flat.shape[1]) for start in range(0, len(y), _BLOCK)]
    return np.concatenate([(block @ flat.T - half_norms).argmax(axis=1) for block in blocks])
