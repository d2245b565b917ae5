"""The diffusion planner: a torch network, a diffusion process and the tensor contract that ties them to batches."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, Key

from recogdrive.data.types import FUTURE_FRAMES, HISTORY_FRAMES
from recogdrive.models import bridge, partition
from recogdrive.models.bridge import Params
from recogdrive.models.planner import flow as _flow  # noqa: F401  (registers FlowMatching)
from recogdrive.models.planner import initialization
from recogdrive.models.planner.diffusion import DDIM
from recogdrive.models.planner.encoders import STATUS_CHANNELS, AttentionEgoStatus, MLPEgoStatus
from recogdrive.models.planner.network import POSE_CHANNELS, PlannerNetwork
from recogdrive.models.planner.normalization import denormalize, normalize
from recogdrive.models.planner.process import Denoiser, Diffusion
from recogdrive.models.planner.stacking import paired_blocks, split_stacked, stack_pairs
from recogdrive.target import target_platform

Batch = Mapping[str, Any]
Encoding = dict[str, jax.Array | list[jax.Array]]
COORDINATES = ("x", "y", "heading")


class ParameterRow(NamedTuple):
    """One trainable tensor of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int


@gin.register
class DiffusionPlanner:
    """Plans a 4 s trajectory by denoising it, conditioned on context tokens, history and ego status.

    Holds no weights: parameters are a flat dict of the trainable tensors under their official names. The defaults are
    the "small" network of all released models (34,329,219 weights at `context_width` 1536); `large()` is the other.

    Args:
      context_width: V, width of a context token.
      diffusion: The process; DDIM unless given.
      ego_status: Encoder of the ego status; the MLP unless given.
      heads: Attention heads.
      head_dim: Channels a head; the planner's width is heads x head_dim.
      layers: Transformer blocks, alternately self- and cross-attention.
      output_dim: Width the transformer hands to the decoder.
      hidden_dim: Hidden width of the MLPs.
      denoising_steps: Steps of the sampler.
      deterministic: Whether `sample` adds no noise between steps. Off, as upstream evaluates: scores then vary with
        the key.
      use_context_mask: Whether padded context tokens are left out of the mean and of attention. Off, because the
        official planners were trained with padding taking part; on, a scene needs at least one real token.
      compute_dtype: "float32", or "bfloat16" for a network on bfloat16 copies of float32 weights; norms, softmax,
        loss and sampler arithmetic stay in float32.
      scan_blocks: Whether pairs of the transformer's blocks are one scanned step of the program, computed anew in the
        backward pass, instead of all written out; by default on TPUs, where it saves memory and minutes of compiling.
        It copies keys and values before it reads them, which costs more elsewhere. Results differ by rounding.

    Raises:
      ValueError: an argument is out of range.

    Source: upstream `ReCogDriveDiffusionPlanner`.
    """

    name = "planner"
    """What tables and reports call it."""

    def __init__(
        self,
        context_width: int,
        diffusion: Diffusion | None = None,
        ego_status: MLPEgoStatus | AttentionEgoStatus | None = None,
        heads: int = 8,
        head_dim: int = 48,
        layers: int = 16,
        output_dim: int = 512,
        hidden_dim: int = 1024,
        denoising_steps: int = 5,
        deterministic: bool = False,
        use_context_mask: bool = False,
        compute_dtype: str = "float32",
        scan_blocks: bool | None = None,
    ):
        sizes = {
            "context_width": context_width,
            "heads": heads,
            "head_dim": head_dim,
            "layers": layers,
            "output_dim": output_dim,
            "hidden_dim": hidden_dim,
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}={size!r} must be a positive integer")
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim} must be even: the rotary code turns channels in pairs")
        if compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype={compute_dtype!r} must be 'float32' or 'bfloat16'")
        self.context_width = context_width
        self.diffusion: Diffusion = DDIM() if diffusion is None else diffusion
        self.denoising_steps, self.deterministic = denoising_steps, deterministic
        self.use_context_mask, self.compute_dtype = use_context_mask, compute_dtype
        self._layers, self._scan_blocks = layers, scan_blocks
        self.num_steps = self.diffusion.num_steps(denoising_steps)
        self._ego_status = MLPEgoStatus() if ego_status is None else ego_status
        with torch.device("meta"):  # Weights live in JAX; the module only says what to compute with them.
            self.network = PlannerNetwork(
                **sizes, output_channels=self.diffusion.output_channels, ego_status=self._ego_status
            ).eval()
        self._apply = bridge.functional(self.network)
        self._apply_stacked = bridge.functional(self.network, without=paired_blocks(layers))
        self._draw = jax.jit(functools.partial(initialization.draw, self.network))

    @classmethod
    def large(cls, context_width: int, **kwargs: Any) -> "DiffusionPlanner":
        """The 525 M weight network: 32 heads x 48, output width 1536."""
        return cls(context_width, **{"heads": 32, "output_dim": 1536, **kwargs})

    def parameter_table(self) -> list[ParameterRow]:
        """Every trainable tensor; allocates nothing."""
        return [ParameterRow(name, tuple(p.shape), "float32", p.numel()) for name, p in self.network.named_parameters()]

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws initial weights from `key`, distributed as torch's defaults.

        All adaLN linears are zero, so at first every block is the identity; the position embedding is N(0, 0.02).
        """
        return self._draw(key)

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Training loss with noise and times drawn from `key`; see `loss_with_noise`."""
        size = self._check(batch, target=True)
        key, status_key = jax.random.split(key)
        noise, time = self.diffusion.draw(key, size)
        status_masked = None
        if self._ego_status.mask_probability > 0:
            uniform = jax.random.uniform(status_key, (size, self._ego_status.masked_channels))
            status_masked = uniform < self._ego_status.mask_probability
        return self.loss_with_noise(params, batch, noise, time, status_masked)

    def loss_with_noise(
        self,
        params: Params,
        batch: Batch,
        noise: Float[Array, "B 8 3"],
        time: Array,
        status_masked: Array | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Training loss for given draws.

        Args:
          params: Weights.
          batch: See docs/architecture.md.
          noise: Standard normal.
          time: (B,) training steps, or Beta samples for flow matching.
          status_masked: (B, 4) status entries to hide, for the attention status encoder.

        Returns:
          The loss and its parts: the mean squared error of each coordinate, in normalised space.
        """
        self._check(batch, target=True)
        # One evaluation a scene: pooling tokens before the value projection is the cheaper order.
        params = self._arranged(params)
        denoise = self._denoiser(params, self.encode(params, batch, values=False, status_masked=status_masked))
        loss, errors = self.diffusion.loss(denoise, normalize(batch["trajectory"]), noise, time)
        return loss, {f"mse_{name}": errors[..., i].mean() for i, name in enumerate(COORDINATES)}

    def sample(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Float[Array, "B 8 3"]:
        """Plans one trajectory a scene: x, y in metres and heading in radians, scene frame."""
        initial_noise, step_noise = self.draw_sampling_noise(key, self._check(batch))
        return self.sample_with_noise(params, batch, initial_noise, step_noise)

    def plan(self, params: Params, batch: Batch, keys: Key[Array, "B"]) -> Float[Array, "B 8 3"]:
        """The same with a key for each scene, so that a scene's plan does not depend on its neighbours."""
        initial_noise, step_noise = jax.vmap(lambda key: self.draw_sampling_noise(key, 1))(keys)
        return self.sample_with_noise(params, batch, initial_noise[:, 0], jnp.moveaxis(step_noise[:, :, 0], 0, 1))

    def draw_sampling_noise(
        self, key: Key[Array, ""], scenes: int, samples: int = 1
    ) -> tuple[Float[Array, "B S 8 3"], Float[Array, "K B S 8 3"]]:
        """Initial and per-step noise of a sampler."""
        initial_key, step_key = jax.random.split(key)
        shape = (scenes, samples, FUTURE_FRAMES, POSE_CHANNELS)
        return jax.random.normal(initial_key, shape), jax.random.normal(step_key, (self.num_steps, *shape))

    def sample_with_noise(
        self,
        params: Params,
        batch: Batch,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
    ) -> Float[Array, "B 8 3"]:
        """Plans from given noise with S = 1."""
        normalized, _ = self.sample_steps(params, batch, initial_noise, step_noise)
        return denormalize(normalized[:, 0])

    def sample_steps(
        self,
        params: Params,
        batch: Batch,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
    ) -> tuple[Float[Array, "B S 8 3"], dict[str, Array]]:
        """S normalised trajectories a scene, and what every denoising step computed (see `Diffusion.sample`)."""
        denoise = self.bind(params, batch)
        return self.diffusion.sample(denoise, initial_noise, step_noise, self.denoising_steps, self.deterministic)

    def sample_chain(
        self,
        params: Params,
        batch: Batch,
        initial_noise: Float[Array, "B S 8 3"],
        step_noise: Float[Array, "K B S 8 3"],
    ) -> Float[Array, "B S K+1 8 3"]:
        """Rollout of S samples a scene for reinforcement learning: every normalised state, initial noise first.

        The scene is encoded once for all samples. `denormalize(chain[:, :, -1])` are the trajectories.
        """
        denoise = self.bind(params, batch)
        return self.diffusion.sample_chain(denoise, initial_noise, step_noise, self.denoising_steps, self.deterministic)

    def log_probs(self, params: Params, batch: Batch, chain: Float[Array, "B S K+1 8 3"]) -> Float[Array, "B S K 8 3"]:
        """Log-densities of a chain's transitions under these weights, per coordinate, not clamped."""
        denoise = self.bind(params, batch)
        return self.diffusion.log_probs(denoise, chain, self.denoising_steps)

    def encode(self, params: Params, batch: Batch, values: bool = True, status_masked: Array | None = None) -> Encoding:
        """Everything that depends on the scene only, keys and values of all cross-attention blocks included."""
        history = jnp.asarray(batch["history_trajectory"])
        return self._call(
            params,
            "encode",
            batch["context"],
            history.reshape(history.shape[0], -1),
            batch["status_feature"],
            mask=batch["context_mask"] if self.use_context_mask else None,
            status_masked=None if status_masked is None else jnp.asarray(status_masked, jnp.float32),
            values=values,
        )

    def denoise(
        self, params: Params, encoding: Encoding, x: Float[Array, "B S 8 3"], t: Array
    ) -> Float[Array, "B S 8 O"]:
        """The network's prediction for S noisy trajectories of each scene at times `t` (B, S)."""
        return self._call(params, "denoise", encoding, x, t)

    def bind(self, params: Params, batch: Batch) -> Denoiser:
        """The network with its scenes encoded, once for all samples and denoising steps."""
        self._check(batch)
        params = self._arranged(params)
        return self._denoiser(params, self.encode(params, batch))

    def _denoiser(self, params: Params, encoding: Encoding) -> Denoiser:
        return lambda x, t: self.denoise(params, encoding, x, t)

    def _arranged(self, params: Params) -> Params:
        """The parameters as the program reads them, for any number of calls of the network."""
        params = partition.whole(params)
        scan = target_platform() == "tpu" if self._scan_blocks is None else self._scan_blocks
        if not scan or self._layers < 2:
            return params
        shapes = {row.name: row.shape for row in self.parameter_table()}
        bridge.check_names_and_shapes({name: np.shape(value) for name, value in params.items()}, shapes, "parameter")
        return stack_pairs(params, self._layers)

    def _call(self, params: Params, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.compute_dtype == "bfloat16":
            return self._apply_network(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), method, *args, **kwargs)
        with jax.default_matmul_precision("highest"):  # float32 means float32, on accelerators too
            return self._apply_network(params, method, *args, **kwargs)

    def _apply_network(self, params: Params, method: str, *args: Any, **kwargs: Any) -> Any:
        rest, stacked = split_stacked(params)
        if not stacked:
            return self._apply(params, method, *args, **kwargs)
        return self._apply_stacked(rest, method, *args, stacked=stacked, **kwargs)

    def _check(self, batch: Batch, target: bool = False) -> int:
        """Batch size; raises a ValueError naming every entry that is missing or misshapen."""
        if "context" not in batch or np.ndim(batch["context"]) != 3:
            raise ValueError(f"batch['context'] must be (B, T, {self.context_width}); batch has {_shapes(batch)}")
        size, tokens, _ = np.shape(batch["context"])
        expected = {
            "context": (size, tokens, self.context_width),
            "history_trajectory": (size, HISTORY_FRAMES, POSE_CHANNELS),
            "status_feature": (size, STATUS_CHANNELS),
        }
        if self.use_context_mask:
            expected["context_mask"] = (size, tokens)
        if target:
            expected["trajectory"] = (size, FUTURE_FRAMES, POSE_CHANNELS)
        found = {name: np.shape(batch[name]) for name in expected if name in batch}
        bridge.check_names_and_shapes(found, expected, "batch entry")
        return size


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in batch.items()}
