import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.planner import schedule
from recogdrive.models.planner.diffusion import DDIM, DDPM
from recogdrive.models.planner.flow import FlowMatching

ALPHA_BAR = schedule.ddpm_constants()["ddpm_alphas_cumprod"].astype(np.float64)


class RecordingDenoiser:
    """Returns a constant prediction and keeps what it was asked."""

    def __init__(self, value=0.0, channels=3):
        self.value, self.channels, self.times, self.inputs = value, channels, [], []

    def __call__(self, x, t):
        self.times.append(np.asarray(t))
        self.inputs.append(np.asarray(x))
        return jnp.full((*x.shape[:-1], self.channels), self.value)


@pytest.fixture(autouse=True)
def loops_run_step_by_step():
    with jax.disable_jit():
        yield


def _noise(steps, scenes=1, samples=1, value=0.0):
    return jnp.full((steps, scenes, samples, 8, 3), value)


def test_the_noise_loss_mixes_signal_and_noise_by_alpha_bar():
    denoise = RecordingDenoiser(value=0.5)
    clean, noise = jnp.full((2, 8, 3), 0.2), jnp.full((2, 8, 3), -1.0)
    loss, errors = DDIM().loss(denoise, clean, noise, jnp.array([0, 60]))
    for row, t in enumerate((0, 60)):
        wanted = np.sqrt(ALPHA_BAR[t]) * 0.2 - np.sqrt(1 - ALPHA_BAR[t])
        np.testing.assert_allclose(denoise.inputs[0][row], wanted, rtol=1e-5)
    assert denoise.times[0].tolist() == [[0], [60]]
    assert loss == pytest.approx(1.5**2)
    assert errors.shape == (2, 8, 3)


def test_a_prediction_equal_to_the_noise_has_no_loss():
    loss, _ = DDPM().loss(RecordingDenoiser(value=0.3), jnp.zeros((1, 8, 3)), jnp.full((1, 8, 3), 0.3), jnp.array([5]))
    assert loss == 0


def test_flow_predicts_the_velocity_from_noise_to_data():
    denoise = RecordingDenoiser(value=1.0)
    clean, noise, beta = jnp.full((1, 8, 3), 0.5), jnp.full((1, 8, 3), -0.5), jnp.array([0.25])
    loss, _ = FlowMatching().loss(denoise, clean, noise, beta)
    u = (0.999 - 0.25) / 0.999
    np.testing.assert_allclose(denoise.inputs[0], (1 - u) * -0.5 + u * 0.5, rtol=1e-5)
    assert denoise.times[0].tolist() == [[749]]
    assert loss == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(("beta", "index"), [(0.0, 1000), (0.9985, 0), (1.0, -1), (0.9995, 0), (0.5, 499)])
def test_flow_time_indices_are_truncated_toward_zero(beta, index):
    assert FlowMatching().times(jnp.array([beta]))[1].tolist() == [index]


def _draw(diffusion):
    with jax.disable_jit(False):
        return diffusion.draw(jax.random.key(0), 20_000)


def test_flow_draws_beta_distributed_times():
    _, beta = _draw(FlowMatching())
    # Beta(1.5, 1): mean 3/5, distribution function s^1.5.
    assert float(beta.mean()) == pytest.approx(0.6, abs=0.01)
    assert float((beta < 0.5).mean()) == pytest.approx(0.5**1.5, abs=0.01)


def test_training_times_cover_all_hundred_steps_evenly():
    noise, times = _draw(DDIM())
    counts = np.bincount(times, minlength=100)
    assert len(counts) == 100
    assert counts.min() > 120
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)


def test_the_doubled_flow_head_refuses_to_train():
    flow = FlowMatching(mean_variance_head=True)
    assert flow.output_channels == 6
    with pytest.raises(ValueError, match="mean_variance_head=True"):
        flow.loss(RecordingDenoiser(channels=6), jnp.zeros((1, 8, 3)), jnp.zeros((1, 8, 3)), jnp.array([0.5]))


@pytest.mark.parametrize(
    ("diffusion", "steps", "times"),
    [
        (DDIM(), 5, [80, 60, 40, 20, 0]),
        (DDIM(), 7, [84, 70, 56, 42, 28, 14, 0]),
        (DDPM(), 7, [98, 84, 70, 56, 42, 28, 14, 0]),
        (FlowMatching(), 7, [0, 142, 285, 428, 571, 714, 857]),
    ],
)
def test_samplers_ask_the_network_at_their_times_in_order(diffusion, steps, times):
    denoise = RecordingDenoiser()
    assert diffusion.num_steps(steps) == len(times)
    diffusion.sample(denoise, jnp.zeros((1, 2, 8, 3)), _noise(len(times), samples=2), steps, deterministic=False)
    assert [t.tolist() for t in denoise.times] == [[[t, t]] for t in times]


def test_one_deterministic_ddim_step_by_hand():
    x, prediction, t, previous = 0.9, 0.4, 20, ALPHA_BAR[0]
    ab = ALPHA_BAR[t]
    x0 = min((x - np.sqrt(1 - ab) * prediction) / np.sqrt(ab), 1.0)
    noise = (x - np.sqrt(ab) * x0) / np.sqrt(1 - ab)
    step = {"alpha": jnp.float32(ab), "previous": jnp.float32(previous)}
    mean, std, clean = DDIM().posterior(jnp.array(x), jnp.array(prediction), step, stochastic=False)
    assert float(clean) == pytest.approx(x0, rel=1e-5)
    assert float(mean) == pytest.approx(np.sqrt(previous) * x0 + np.sqrt(1 - previous) * noise, rel=1e-4)
    assert std == 0


def test_ddims_noise_is_rederived_from_the_clamped_estimate():
    ab, previous = 0.5, 0.9
    step = {"alpha": jnp.float32(ab), "previous": jnp.float32(previous)}
    mean, _, x0 = DDIM().posterior(jnp.array(3.0), jnp.array(0.1), step, stochastic=False)
    assert x0 == 1
    noise = (3 - np.sqrt(ab)) / np.sqrt(1 - ab)
    assert float(mean) == pytest.approx(np.sqrt(previous) + np.sqrt(1 - previous) * noise, rel=1e-5)


def test_stochastic_ddim_has_the_ddpm_variance():
    ab, previous = 0.5, 0.9
    step = {"alpha": jnp.float32(ab), "previous": jnp.float32(previous)}
    mean, std, _ = DDIM().posterior(jnp.array(0.3), jnp.array(0.2), step, stochastic=True)
    variance = (1 - previous) / (1 - ab) * (1 - ab / previous)
    x0 = (0.3 - np.sqrt(0.5) * 0.2) / np.sqrt(0.5)
    assert float(std) == pytest.approx(np.sqrt(variance), rel=1e-5)
    assert float(mean) == pytest.approx(np.sqrt(0.9) * x0 + np.sqrt(1 - previous - variance) * 0.2, rel=1e-5)


def _last_step_addition(diffusion, method, deterministic, noise):
    """What the noise adds in a one-step sampler, whose x0 and mean are 0."""
    steps = diffusion.num_steps(1)
    out = getattr(diffusion, method)(
        RecordingDenoiser(), jnp.zeros((1, 1, 8, 3)), _noise(steps, value=noise), 1, deterministic
    )
    return float(out[0][0, 0, 0, 0] if method == "sample" else out[0, 0, -1, 0, 0])


@pytest.mark.parametrize(
    ("diffusion", "method", "deterministic", "noise", "added"),
    [
        (DDIM(), "sample", False, 9.0, 1e-4),  # floor 1e-4, noise clipped to 1
        (DDIM(), "sample", True, 9.0, 0.0),
        (DDIM(), "sample_chain", False, 9.0, 0.04 * 5),  # floor 0.04, noise clipped to 5
        (DDIM(), "sample_chain", True, 9.0, 0.0),
        (DDPM(), "sample", False, 9.0, 0.0),  # zero at t = 0
        (DDPM(), "sample_chain", False, 2.0, 0.04 * 2),
        (DDPM(), "sample_chain", True, 9.0, 0.0),
        (FlowMatching(), "sample", False, 9.0, 0.0),
    ],
)
def test_noise_floors_and_clips_of_the_last_step(diffusion, method, deterministic, noise, added):
    assert _last_step_addition(diffusion, method, deterministic, noise) == pytest.approx(added, abs=1e-7)


@pytest.mark.parametrize(("clip", "limit"), [(True, 1.0), (False, 3.0)])
def test_ddpm_clips_evaluation_noise_only_where_asked_to(clip, limit):
    diffusion = DDPM(clip_evaluation_noise=clip)
    noise = _noise(5).at[0].set(3.0)
    _, steps = diffusion.sample(RecordingDenoiser(), jnp.zeros((1, 1, 8, 3)), noise, 5, deterministic=False)
    added = steps["x"][0] - steps["mean"][0]
    np.testing.assert_allclose(added, limit * float(steps["std"][0]), rtol=1e-6)


@pytest.mark.parametrize("diffusion", [DDIM(), DDPM()])
def test_the_end_of_a_chain_is_clamped_and_stored_clamped(diffusion):
    noise = _noise(5, value=0.0).at[-1].set(1e9)
    chain = diffusion.sample_chain(RecordingDenoiser(value=-9.0), jnp.ones((1, 1, 8, 3)), noise, 5, False)
    np.testing.assert_array_equal(chain[0, 0, -1], 1.0)
    np.testing.assert_array_equal(chain[0, 0, 0], 1.0)
    assert chain.shape == (1, 1, 6, 8, 3)


def test_flow_takes_equal_euler_steps_and_clamps_only_evaluation():
    denoise = RecordingDenoiser(value=2.0)
    start = jnp.zeros((1, 1, 8, 3))
    x, _ = FlowMatching().sample(denoise, start, _noise(4), 4, deterministic=True)
    chain = FlowMatching().sample_chain(denoise, start, _noise(4), 4, deterministic=True)
    np.testing.assert_array_equal(x, 1.0)
    np.testing.assert_allclose(chain[0, 0, :, 0, 0], [0, 0.5, 1, 1.5, 2])


def test_log_probabilities_are_normal_densities_with_a_floored_std():
    diffusion = DDIM()
    steps = diffusion.transitions(2)
    chain = jnp.stack([jnp.full((8, 3), v) for v in (0.3, 0.1, 0.25)])[None, None]
    found = diffusion.log_probs(RecordingDenoiser(value=0.2), chain, 2)
    assert found.shape == (1, 1, 2, 8, 3)
    for k, (x, following) in enumerate([(0.3, 0.1), (0.1, 0.25)]):
        step = {name: jnp.float32(value[k]) for name, value in steps.items()}
        mean, std, _ = diffusion.posterior(jnp.float32(x), jnp.float32(0.2), step, stochastic=True)
        std = max(float(std), 0.1)
        density = np.exp(-(((following - float(mean)) / std) ** 2) / 2) / np.sqrt(2 * np.pi * std**2)
        np.testing.assert_allclose(found[0, 0, k], np.log(density), rtol=1e-4)


def test_log_probabilities_ask_the_network_once_for_all_samples_and_steps():
    denoise = RecordingDenoiser()
    DDIM().log_probs(denoise, jnp.zeros((1, 3, 6, 8, 3)), 5)
    assert len(denoise.times) == 1
    assert denoise.times[0].tolist() == [[80, 60, 40, 20, 0] * 3]


def test_ddpm_pairs_a_chain_with_the_last_times():
    denoise = RecordingDenoiser()
    DDPM().log_probs(denoise, jnp.zeros((1, 1, 6, 8, 3)), 5)
    assert denoise.times[0].tolist() == [[4, 3, 2, 1, 0]]


def test_flow_has_no_log_probabilities():
    with pytest.raises(ValueError, match="use DDIM"):
        FlowMatching().log_probs(RecordingDenoiser(), jnp.zeros((1, 1, 6, 8, 3)), 5)


def test_a_chain_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="chain holds 5 states; 5 transitions need 6"):
        DDIM().log_probs(RecordingDenoiser(), jnp.zeros((1, 1, 5, 8, 3)), 5)


def test_a_wrong_number_of_step_noises_is_refused():
    with pytest.raises(ValueError, match="step_noise holds 5 draws; the sampler takes 8 steps"):
        DDPM().sample(RecordingDenoiser(), jnp.zeros((1, 1, 8, 3)), _noise(5), 7, deterministic=False)
