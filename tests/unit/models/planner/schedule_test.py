import math

import numpy as np
import pytest

from recogdrive.models.planner import schedule


def test_betas_follow_the_cosine_and_stop_at_0_999():
    betas = schedule.cosine_betas()
    g = [math.cos((i / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (0, 1, 2)]
    np.testing.assert_allclose(betas[:2], [1 - g[1] / g[0], 1 - g[2] / g[1]], rtol=1e-6)
    assert betas[-1] == np.float32(0.999)
    assert betas.shape == (100,)


def test_alpha_bar_is_the_share_of_signal_left():
    constants = schedule.ddpm_constants()
    product = math.prod(1 - float(b) for b in constants["ddpm_betas"][:41])
    assert constants["ddpm_alphas_cumprod"][40] == pytest.approx(product, rel=1e-6)
    assert constants["ddpm_alphas_cumprod_prev"][0] == 1
    assert constants["ddpm_alphas_cumprod_prev"][41] == constants["ddpm_alphas_cumprod"][40]


@pytest.mark.parametrize(
    ("steps", "times"),
    [(5, [80, 60, 40, 20, 0]), (7, [84, 70, 56, 42, 28, 14, 0]), (1, [0]), (2, [50, 0])],
)
def test_ddim_takes_k_times_from_a_floored_stride(steps, times):
    assert schedule.ddim_constants(steps)["ddim_t"].tolist() == times


@pytest.mark.parametrize(("steps", "times"), [(5, [80, 60, 40, 20, 0]), (7, [98, 84, 70, 56, 42, 28, 14, 0]), (1, [0])])
def test_ddpm_takes_every_multiple_of_the_stride_below_100(steps, times):
    assert schedule.ddpm_sampling_times(steps).tolist() == times


@pytest.mark.parametrize(("steps", "times"), [(5, [0, 200, 400, 600, 800]), (7, [0, 142, 285, 428, 571, 714, 857])])
def test_flow_indices_are_truncated_thousandths(steps, times):
    assert schedule.flow_sampling_times(steps, 1000).tolist() == times


def test_the_last_ddim_step_goes_to_a_clean_trajectory():
    constants = schedule.ddim_constants(7)
    assert constants["ddim_alphas_prev"][-1] == 1
    np.testing.assert_array_equal(constants["ddim_alphas_prev"][:-1], constants["ddim_alphas"][1:])


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match=f"denoising_steps={steps}"):
        schedule.strided_times(steps)
    with pytest.raises(ValueError, match="denoising_steps"):
        schedule.flow_sampling_times(min(steps, 0), 1000)
