"""AdamW with global-norm clipping, learning-rate schedules, and the moving average of weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import gin
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from recogdrive.training.state import Params

LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]
"""Updates done so far -> learning rate of the next one."""


class Schedule(Protocol):
    """Makes the learning rate a function of the step, given how many steps an epoch and the run have."""

    def learning_rate_at(self, batch_size: int, samples_per_epoch: int, steps: int | None = None) -> LearningRate:
        """Binds the schedule to a data set, a global batch size and, where it is known, the length of the run."""
        ...


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a positive number.")


def epoch_of(step: Int[Array, ""], batch_size: int, samples_per_epoch: int) -> Int[Array, ""]:
    """Epoch, from 0, that the update after `step` updates belongs to: (step * batch_size) // samples_per_epoch.

    Written so that int32 does not overflow before `samples_per_epoch * batch_size` does.
    """
    rounds, rest = step // samples_per_epoch, step % samples_per_epoch
    return rounds * batch_size + rest * batch_size // samples_per_epoch


@gin.register
@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step.

    Attributes:
      learning_rate: Its value.
    """

    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        _check_positive(learning_rate=self.learning_rate)

    def learning_rate_at(self, batch_size: int, samples_per_epoch: int, steps: int | None = None) -> LearningRate:
        """Binds the schedule to a data set and a run; without effect here."""
        del batch_size, samples_per_epoch, steps
        return lambda step: jnp.full_like(step, self.learning_rate, dtype=jnp.float32)


@gin.register
@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then a half cosine, changed once an epoch.

    Epoch e < W has `learning_rate * (e + 1) / W`, later ones
    `minimum + (learning_rate - minimum) / 2 * (1 + cos(pi * (e - W) / (E - W)))`; `minimum` from epoch E on.

    Attributes:
      learning_rate: Highest value.
      minimum: Value at the end of the schedule.
      warmup_epochs: W; 0 starts at the highest value.
      epochs: E, the length of the schedule, which may be longer than the run.

    Source: spec/planner.md section 7 (upstream `WarmupCosLR`).
    """

    learning_rate: float = 1e-4
    minimum: float = 1e-6
    warmup_epochs: int = 3
    epochs: int = 200

    def __post_init__(self) -> None:
        _check_positive(learning_rate=self.learning_rate, epochs=self.epochs)
        if not 0 <= self.minimum <= self.learning_rate:
            raise ValueError(f"minimum={self.minimum} must lie between 0 and learning_rate={self.learning_rate}.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be at least 0 and below epochs={self.epochs}; "
                f"shorten the warm-up or lengthen the schedule."
            )

    def learning_rate_at(self, batch_size: int, samples_per_epoch: int, steps: int | None = None) -> LearningRate:
        """Binds the schedule to a global batch size and a data set's size, both in samples; it has its own length."""
        del steps
        _check_positive(batch_size=batch_size, samples_per_epoch=samples_per_epoch)

        def learning_rate(step: Int[Array, ""]) -> Float[Array, ""]:
            epoch = epoch_of(step, batch_size, samples_per_epoch)
            warm = self.learning_rate * (epoch + 1) / max(self.warmup_epochs, 1)
            progress = jnp.clip((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs), 0.0, 1.0)
            cold = self.minimum + (self.learning_rate - self.minimum) / 2 * (1 + jnp.cos(jnp.pi * progress))
            return jnp.where(epoch < self.warmup_epochs, warm, cold).astype(jnp.float32)

        return learning_rate


@gin.register
@dataclass(frozen=True)
class StepCosine:
    """Linear warm-up from zero, then half a cosine down to zero, changed at every update and as long as the run.

    Update k (from 0) of T has `learning_rate * k / w` in the warm-up of `w = ceil(T * warmup_ratio)` updates, then
    `learning_rate / 2 * (1 + cos(pi * (k - w) / (T - w)))`.

    Attributes:
      learning_rate: Highest value.
      warmup_ratio: Part of the run that warms up, in [0, 1).

    Source: spec/vlm_sft.md A6 (transformers `get_cosine_schedule_with_warmup`).
    """

    learning_rate: float = 4e-5
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(learning_rate=self.learning_rate)
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio} must be in [0, 1).")

    def learning_rate_at(self, batch_size: int, samples_per_epoch: int, steps: int | None = None) -> LearningRate:
        """Binds the schedule to a run of `steps` updates.

        Raises:
          ValueError: The length of the run is not known.
        """
        del batch_size, samples_per_epoch
        if steps is None:
            raise ValueError("StepCosine needs the number of updates of the run.")
        warmup = math.ceil(steps * self.warmup_ratio)

        def learning_rate(step: Int[Array, ""]) -> Float[Array, ""]:
            warm = self.learning_rate * step / max(warmup, 1)
            progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            cold = self.learning_rate / 2 * (1 + jnp.cos(jnp.pi * progress))
            return jnp.where(step < warmup, warm, cold).astype(jnp.float32)

        return learning_rate


@gin.register
@dataclass(frozen=True)
class AdamW:
    """AdamW after clipping by the global norm; weight decay reaches every trainable tensor, biases and norms included.

    A model may exempt tensors of its own from the decay (`decayed` of its objective).

    Attributes:
      schedule: Learning rate over time; None is `WarmupCosine()`.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled decay, scaled by the learning rate as in torch.
      clip_norm: Gradients with a larger global norm are scaled down to it; None does not clip.

    Source: spec/planner.md section 7 (upstream `configure_optimizers`).
    """

    schedule: Schedule | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1).")
        _check_positive(eps=self.eps)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative.")
        if self.clip_norm is not None:
            _check_positive(clip_norm=self.clip_norm)

    def build(
        self,
        batch_size: int,
        samples_per_epoch: int,
        steps: int | None = None,
        decayed: Callable[[str], bool] | None = None,
    ) -> tuple[optax.GradientTransformation, LearningRate]:
        """The optimiser and its learning rate as a function of the step.

        Args:
          batch_size: Rows of a global batch.
          samples_per_epoch: Size of the data set.
          steps: Updates of the run, for schedules that are as long as it.
          decayed: Whether weight decay reaches the tensor of that name; None decays all.
        """
        schedule = self.schedule or WarmupCosine()
        learning_rate = schedule.learning_rate_at(batch_size, samples_per_epoch, steps)
        mask = None if decayed is None else lambda params: {name: decayed(name) for name in params}
        adamw = optax.adamw(
            learning_rate, b1=self.beta1, b2=self.beta2, eps=self.eps, weight_decay=self.weight_decay, mask=mask
        )
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        return optax.chain(clip, adamw), learning_rate


def ema_update(ema: Params, params: Params, decay: float = 0.999) -> Params:
    """One step of the moving average: `ema + (1 - decay) * (params - ema)`, with neither warm-up nor bias correction.

    Source: spec/planner.md section 7 (upstream EMA callback).
    """
    return jax.tree.map(lambda average, value: average + (1.0 - decay) * (value - average), ema, params)
