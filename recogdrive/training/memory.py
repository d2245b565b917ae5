"""How much memory a training step takes on each device, asked of the compiler before anything runs."""

from recogdrive.training.abstract_step import AbstractStep, StepShapes


def training_memory(shapes: StepShapes) -> dict[str, int]:
    """Compiles the training step for this machine's devices and reads off what it needs on each of them.

    Args:
      shapes: What is compiled.

    Returns:
      What needs memory -> bytes on one device: `weights`, `optimizer`, where there are any `frozen weights`, `kept
      weights` and `moving average`, `batch` (times the number of batches put there ahead), `step` (gradients,
      activations and everything else that lives during a step).

    Raises:
      ValueError: The batch does not divide over devices and accumulation steps.
    """
    step = AbstractStep(shapes)
    compiled = step.lower().compile()
    needed = step.argument_bytes()
    needed["batch"] += step.waiting_bytes()
    return {**needed, "step": compiled.memory_analysis().temp_size_in_bytes}
