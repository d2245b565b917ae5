"""Constants of the diffusion schedules: cosine noise over 100 training steps, and what DDPM and DDIM derive from it."""

import numpy as np
from jaxtyping import Float, Int

TRAINING_STEPS = 100
_OFFSET = 0.008
_BETA_MAX = 0.999
_VARIANCE_FLOOR = 1e-20


def cosine_betas(steps: int = TRAINING_STEPS) -> Float[np.ndarray, "N"]:
    """Cosine noise schedule, formed in float64 and rounded to float32.

    Source: Nichol & Dhariwal 2021, eq. 17; upstream `cosine_beta_schedule`.
    """
    grid = np.arange(steps + 1, dtype=np.float64) / steps
    g = np.cos((grid + _OFFSET) / (1 + _OFFSET) * np.pi / 2) ** 2
    return np.minimum(1 - g[1:] / g[:-1], _BETA_MAX).astype(np.float32)


def strided_times(steps: int) -> Int[np.ndarray, "K"]:
    """Times of a K-step sampler, in ascending order: multiples of floor(100 / K).

    Raises:
      ValueError: `steps` is not in [1, 100].
    """
    if not 1 <= steps <= TRAINING_STEPS:
        raise ValueError(f"denoising_steps={steps} must lie in 1 ... {TRAINING_STEPS}, the training steps")
    return np.arange(steps, dtype=np.int64) * (TRAINING_STEPS // steps)


def ddpm_constants() -> dict[str, Float[np.ndarray, "N"]]:
    """The twelve `ddpm_*` buffers of the official checkpoint, float32, indexed by training time."""
    one = np.float32(1)
    betas = cosine_betas()
    alphas = one - betas
    # torch accumulates the running product in float64 and rounds each entry.
    cumprod = np.cumprod(alphas, dtype=np.float64).astype(np.float32)
    previous = np.concatenate([[one], cumprod[:-1]]).astype(np.float32)
    variance = betas * (one - previous) / (one - cumprod)
    return {
        "ddpm_betas": betas,
        "ddpm_alphas": alphas,
        "ddpm_alphas_cumprod": cumprod,
        "ddpm_alphas_cumprod_prev": previous,
        "ddpm_sqrt_alphas_cumprod": np.sqrt(cumprod),
        "ddpm_sqrt_one_minus_alphas_cumprod": np.sqrt(one - cumprod),
        "ddpm_sqrt_recip_alphas_cumprod": np.sqrt(one / cumprod),
        "ddpm_sqrt_recipm1_alphas_cumprod": np.sqrt(one / cumprod - one),
        "ddpm_var": variance,
        "ddpm_logvar_clipped": np.log(np.maximum(variance, np.float32(_VARIANCE_FLOOR))),
        "ddpm_mu_coef1": betas * np.sqrt(previous) / (one - cumprod),
        "ddpm_mu_coef2": (one - previous) * np.sqrt(alphas) / (one - cumprod),
    }


def ddim_constants(steps: int) -> dict[str, np.ndarray]:
    """The seven `ddim_*` buffers of the official checkpoint for a K-step sampler, noisiest step first.

    `ddim_t_schedule` alone is ascending. `ddim_sigmas` is zero; samplers compute their own.
    """
    one = np.float32(1)
    schedule = strided_times(steps)
    cumprod = ddpm_constants()["ddpm_alphas_cumprod"]
    alphas = cumprod[schedule]
    previous = np.concatenate([[one], cumprod[schedule[:-1]]]).astype(np.float32)
    ascending = {
        "ddim_t": schedule,
        "ddim_alphas": alphas,
        "ddim_alphas_sqrt": np.sqrt(alphas),
        "ddim_alphas_prev": previous,
        "ddim_sqrt_one_minus_alphas": np.sqrt(one - alphas),
        "ddim_sigmas": np.zeros_like(alphas),
    }
    return {"ddim_t_schedule": schedule} | {name: values[::-1].copy() for name, values in ascending.items()}


def ddpm_sampling_times(steps: int) -> Int[np.ndarray, "N"]:
    """Times DDPM samples at, noisiest first: every multiple of floor(100 / K) below 100.

    More than K of them where K does not divide 100 (K = 7 gives eight, from 98).
    """
    stride = TRAINING_STEPS // len(strided_times(steps))
    return np.arange(0, TRAINING_STEPS, stride, dtype=np.int64)[::-1].copy()


def flow_sampling_times(steps: int, buckets: int) -> Int[np.ndarray, "K"]:
    """Time indices of the K Euler steps of flow matching, from noise to data."""
    if steps < 1:
        raise ValueError(f"denoising_steps={steps} must be at least 1")
    return np.array([int(step / steps * buckets) for step in range(steps)], dtype=np.int64)
