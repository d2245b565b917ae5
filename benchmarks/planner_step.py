"""Measures the small planner's training step and 5-step DDIM sampling beside plain PyTorch on the same torch module.

    python benchmarks/planner_step.py                      # 2,800 tokens x 1,536, batch 16
    python benchmarks/planner_step.py --sweep              # and how time grows with tokens and with the batch
    python benchmarks/planner_step.py --memory             # and each variant's peak memory, in a process of its own

All variants run in this process, in turn within every round, so that whatever else the machine does meets them alike;
ratios are medians of per-round ratios. Eager baselines:
  module     the torch module as the JAX program runs it (cheaper order of value projection and pooling in training)
  reference  cross-attention as upstream writes it: project keys and values, normalise keys, fused attention
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from eager_planner import reference_attention, torch_module

from recogdrive.models.planner.normalization import normalize
from recogdrive.models.planner.planner import DiffusionPlanner

STEPS = 5
Run = Callable[[], object]


def main() -> None:
    """Prints the tables asked for on the command line."""
    arguments = _parse()
    if arguments.only:
        _run_alone(arguments)
        return
    print(f"{jax.devices()}, {torch.get_num_threads()} torch threads, JAX computes in {arguments.dtype}")
    peak = {name: _matmul_peak(name) for name in ("jax", "torch")}
    print(f"(11200 x 384) @ (384 x 3072) in float32: jax {peak['jax']:.0f}, torch {peak['torch']:.0f} GFLOP/s")
    measured = _measure(arguments, arguments.batch, arguments.tokens)
    _report(arguments, measured, peak)
    if arguments.sweep:
        _sweep(arguments)
    if arguments.memory:
        _memory(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2800)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the JAX compute")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", choices=sorted(VARIANTS), help="run one variant twice and print its peak memory")
    return parser.parse_args()


class Problem:
    """One set of weights and one batch, as both frameworks see them."""

    def __init__(self, arguments: argparse.Namespace, batch: int, tokens: int):
        rng = np.random.default_rng(0)
        self.size = batch
        self.planner = DiffusionPlanner(arguments.width, denoising_steps=STEPS, compute_dtype=arguments.dtype)
        self.weights = {
            row.name: rng.normal(0, 0.02, row.shape).astype(np.float32) for row in self.planner.parameter_table()
        }
        self.batch = {
            "context": rng.normal(size=(batch, tokens, arguments.width)).astype(np.float32),
            "history_trajectory": rng.normal(size=(batch, 4, 3)).astype(np.float32),
            "status_feature": rng.normal(size=(batch, 8)).astype(np.float32),
            "trajectory": rng.normal(size=(batch, 8, 3)).astype(np.float32),
        }
        self.noise = rng.normal(size=(batch, 1, 8, 3)).astype(np.float32)

    def torch_module(self) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        """The planner's own network with these weights, and the inputs of its `encode`."""
        network = torch_module(self.planner, self.weights)
        history = self.batch["history_trajectory"].reshape(self.size, -1)
        inputs = (self.batch["context"], history, self.batch["status_feature"])
        return network, tuple(torch.from_numpy(array) for array in inputs)


def _jax_train(problem: Problem) -> Run:
    planner, batch = problem.planner, jax.tree.map(jnp.asarray, problem.batch)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b2=0.95, weight_decay=1e-4))
    params = jax.tree.map(jnp.asarray, problem.weights)
    state = {"params": params, "optimiser": optimiser.init(params), "step": jnp.zeros((), jnp.int32)}

    def step(state: dict, batch: dict) -> tuple[dict, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), state["step"])
        (loss, _), gradients = jax.value_and_grad(planner.loss, has_aux=True)(state["params"], batch, key)
        updates, optimiser_state = optimiser.update(gradients, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimiser": optimiser_state, "step": state["step"] + 1}, loss

    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    holder = {"state": state}

    def run() -> None:
        holder["state"], loss = compiled(holder["state"], batch)
        jax.block_until_ready((holder["state"], loss))

    return run


def _jax_sample(problem: Problem) -> Run:
    batch = {k: jnp.asarray(v) for k, v in problem.batch.items() if k != "trajectory"}
    params, key = jax.tree.map(jnp.asarray, problem.weights), jax.random.key(0)
    compiled = jax.jit(problem.planner.sample).lower(params, batch, key).compile()
    return lambda: jax.block_until_ready(compiled(params, batch, key))


def _eager_train(problem: Problem, values: bool = False) -> Run:
    network, inputs = problem.torch_module()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4)
    kept = torch.from_numpy(problem.planner.diffusion.buffers(STEPS)["ddpm_alphas_cumprod"])
    clean = torch.from_numpy(np.array(normalize(problem.batch["trajectory"])))[:, None]

    def run() -> None:
        noise, time_index = torch.randn_like(clean), torch.randint(0, 100, (problem.size, 1))
        share = kept[time_index][:, :, None, None]
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        encoding = network.encode(*inputs, values=values)
        loss = (network.denoise(encoding, noisy, time_index) - noise).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    return run


def _eager_sample(problem: Problem, every_step: bool, values: bool = False) -> Run:
    network, inputs = problem.torch_module()
    steps = problem.planner.diffusion.transitions(STEPS)
    initial = torch.from_numpy(problem.noise)

    @torch.no_grad()
    def run() -> None:
        x = initial
        encoding = network.encode(*inputs, values=values)
        for k, (t, alpha, previous) in enumerate(zip(steps["t"], steps["alpha"], steps["previous"], strict=True)):
            if every_step and k:
                encoding = network.encode(*inputs, values=values)
            predicted = network.denoise(encoding, x, torch.full((problem.size, 1), int(t)))
            x0 = ((x - float(1 - alpha) ** 0.5 * predicted) / float(alpha) ** 0.5).clamp(-1, 1)
            noise = (x - float(alpha) ** 0.5 * x0) / float(1 - alpha) ** 0.5
            variance = float((1 - previous) / (1 - alpha) * (1 - alpha / previous))
            mean = float(previous) ** 0.5 * x0 + max(float(1 - previous) - variance, 0.0) ** 0.5 * noise
            x = mean + max(variance**0.5, 1e-4) * torch.randn_like(x).clamp(-1, 1)

    return run


def _with_reference_attention(make: Callable[[Problem], Run]) -> Callable[[Problem], Run]:
    """Runs an eager variant with cross-attention in upstream's form instead of the module's."""

    def wrapped(problem: Problem) -> Run:
        run = make(problem)

        def patched() -> None:
            with reference_attention():
                run()

        return patched

    return wrapped


VARIANTS: dict[str, Callable[[Problem], Run]] = {
    "train jax": _jax_train,
    "train eager module": _eager_train,
    "train eager reference": _with_reference_attention(_eager_train),
    "sample jax": _jax_sample,
    "sample eager module, context once": lambda problem: _eager_sample(problem, every_step=False),
    "sample eager module, context every step": lambda problem: _eager_sample(problem, every_step=True),
    # Keys and values belong to the network's call here, so the context is projected in every step.
    "sample eager reference": _with_reference_attention(lambda problem: _eager_sample(problem, every_step=True)),
}


def _measure(arguments: argparse.Namespace, batch: int, tokens: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round, the first (warm-up) round left out."""
    runs = {name: make(Problem(arguments, batch, tokens)) for name, make in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(arguments.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def flops(arguments: argparse.Namespace, batch: int, tokens: int) -> dict[str, float]:
    """Floating point operations of the large matrix products, multiply and add counted apart."""
    planner = DiffusionPlanner(arguments.width)
    heads, dim = planner.network.model.heads, planner.network.fusion_projector.out_features
    cross = len(planner.network.model.transformer_blocks) // 2
    encode = 2.0 * tokens * arguments.width * dim
    project = 2.0 * tokens * dim * dim * cross
    attend = 2.0 * tokens * 8 * dim * cross
    pool = attend * heads
    return {
        # Gradients of a product cost two products, except the first layer's, whose input needs none.
        "train jax": batch * (2 * encode + 3 * (project + attend + pool)),
        "train eager module": batch * (2 * encode + 3 * (project + attend + pool)),
        "train eager reference": batch * (2 * encode + 3 * (2 * project + 2 * attend)),
        "sample jax": batch * (encode + 2 * project + STEPS * 2 * attend),
        "sample eager module, context once": batch * (encode + project + STEPS * (attend + pool)),
        "sample eager module, context every step": batch * STEPS * (encode + project + attend + pool),
        "sample eager reference": batch * STEPS * (encode + 2 * project + 2 * attend),
    }


def _report(arguments: argparse.Namespace, seconds: dict[str, list[float]], peak: dict[str, float]) -> None:
    print(f"\nbatch {arguments.batch}, {arguments.tokens} tokens x {arguments.width}, {arguments.rounds} rounds\n")
    print(f"{'variant':42} {'median s':>9} {'samples/s':>10} {'GFLOP':>7} {'of peak':>8}")
    work = flops(arguments, arguments.batch, arguments.tokens)
    for name, values in seconds.items():
        median = statistics.median(values)
        share = work[name] / 1e9 / median / peak["jax" if "jax" in name else "torch"]
        print(f"{name:42} {median:9.3f} {arguments.batch / median:10.2f} {work[name] / 1e9:7.0f} {share:8.0%}")
    print("\nratio to JAX (above 1: JAX is faster)")
    for name in seconds:
        if "eager" in name:
            print(f"{name:42} {_ratio(seconds, name, name.split()[0] + ' jax'):9.2f}")


def _sweep(arguments: argparse.Namespace) -> None:
    """Median seconds of the JAX programs while one size varies."""
    print(f"\n{'batch':>6} {'tokens':>7} {'train s':>9} {'sample s':>9}")
    sizes = [(arguments.batch, t) for t in (350, 700, 1400, 2800)] + [(b, arguments.tokens) for b in (1, 2, 4, 8, 16)]
    for batch, tokens in dict.fromkeys(sizes):
        medians = []
        for name in ("train jax", "sample jax"):
            run = VARIANTS[name](Problem(arguments, batch, tokens))
            run()
            medians.append(statistics.median(_timed(run) for _ in range(arguments.rounds)))
        print(f"{batch:6} {tokens:7} {medians[0]:9.3f} {medians[1]:9.3f}")


def _timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _memory(arguments: argparse.Namespace) -> None:
    """Peak resident memory of each variant, in a fresh process each."""
    print("\npeak resident memory (VmHWM), imports and batch included")
    for name in VARIANTS:
        command = [sys.executable, __file__, "--only", name, "--dtype", arguments.dtype]
        for option in ("tokens", "width", "batch"):
            command += [f"--{option}", str(getattr(arguments, option))]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name:42} {finished.stdout.strip()}")


def _run_alone(arguments: argparse.Namespace) -> None:
    run = VARIANTS[arguments.only](Problem(arguments, arguments.batch, arguments.tokens))
    run()
    run()
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"{kib / 2**20:.2f} GiB")


def _matmul_peak(framework: str) -> float:
    """GFLOP/s of the planner's commonest large product: the best of ten."""
    shape_a, shape_b = (11200, 384), (384, 3072)
    a, b = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in (shape_a, shape_b))
    if framework == "jax":
        product, x, y = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)
        best = min(_timed(lambda: product(x, y).block_until_ready()) for _ in range(10))
    else:
        x, y = torch.from_numpy(a), torch.from_numpy(b)
        best = min(_timed(lambda: x @ y) for _ in range(10))
    return 2 * shape_a[0] * shape_a[1] * shape_b[1] / best / 1e9


if __name__ == "__main__":
    main()
