"""Measures one DiffGRPO step: sampling, reward, loss, gradient and update in one program, beside the reference's way.

    python benchmarks/grpo_step.py                    # 8 scenes x 8 samples, 5 denoising steps, 300 tokens x 1,536
    python benchmarks/grpo_step.py --tokens=2800 --no_reference --memory

The reference's way, in eager PyTorch on the same network: the context is repeated for every group member and encoded in
every denoising step, cross-attention as upstream writes it, the rollout tracks gradients that are thrown away, and
log-probabilities come from a copy of the context for every scene, member and step. Its rewards are computed on the
host, one trajectory a call (by this product's scorer; the public one takes 27 ms each). All variants run in this
process, in turn within every round, so that whatever else the machine does meets them alike; ratios are medians of
per-round ratios.

Scenes to score in are real ones of the golden set (RECOGDRIVE_GOLDEN, default ../shared/golden), or with
--scenes=town the synthetic town's.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from eager_planner import reference_attention, torch_module

from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.pdm.rewards.pdms import PdmsReward
from recogdrive.pdm.rewards.reward import KNOWN, DeviceReward, RewardScores
from recogdrive.pdm.rewards.scene_layout import PdmLayout, rows_of
from recogdrive.pdm.scene import PdmScene
from recogdrive.pdm.scorer import PdmScorer
from recogdrive.pdm.scores import REINFORCEMENT_WEIGHTS
from recogdrive.training.first_state import FirstState
from recogdrive.training.grpo import REFERENCE_PREFIX, DiffGrpoObjective, GrpoSettings, denoising_discounts
from recogdrive.training.optim import AdamW
from recogdrive.training.sharding import DataParallel
from recogdrive.training.step import make_train_step

STEPS = 5
REFERENCE_SCORER_S = 1 / 37
"""Seconds a trajectory and core of the public scorer, from the issue; it does not run here."""
Run = Callable[[], object]


class NoReward(DeviceReward):
    """Costs nothing: what a step takes without its reward."""

    def __call__(self, batch: dict, trajectories: jax.Array) -> RewardScores:
        """Prefers plans that end further ahead."""
        return RewardScores(trajectories[..., -1, 0], {})


class Problem:
    """Weights, scenes and a batch, as both frameworks see them."""

    def __init__(self, arguments: argparse.Namespace):
        rng = np.random.default_rng(0)
        self.scenes, self.group, self.width = arguments.batch, arguments.group, arguments.width
        self.planner = DiffusionPlanner(self.width, denoising_steps=STEPS, compute_dtype=arguments.dtype)
        self.weights = {
            row.name: rng.normal(0, 0.02, row.shape).astype(np.float32) for row in self.planner.parameter_table()
        }
        self.records = _town(self.scenes) if arguments.scenes == "town" else _golden(self.scenes)
        layout = PdmLayout()
        sizes = layout.measure(self.records[0])
        for record in self.records[1:]:
            sizes = sizes.union(layout.measure(record))
        rows = [rows_of(record, (layout,), {layout.prefix: layout.rounded(sizes)}) for record in self.records]
        self.batch = {
            "context": rng.normal(size=(self.scenes, arguments.tokens, self.width)).astype(np.float32),
            "history_trajectory": rng.normal(size=(self.scenes, 4, 3)).astype(np.float32),
            "status_feature": rng.normal(size=(self.scenes, 8)).astype(np.float32),
            KNOWN: np.ones(self.scenes, bool),
            **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
        }


def _golden(count: int) -> list[PdmScene]:
    """The first real scenes of the golden set."""
    from recogdrive.pdm.reference_scenes import ReferenceScenes

    folder = (
        Path(os.environ.get("RECOGDRIVE_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden")) / "pdm"
    )
    reference = ReferenceScenes(folder)
    real = [i for i in range(len(reference)) if not reference.tokens[i].startswith("synthetic")]
    return [reference[i] for i in real[:count]]


def _town(count: int) -> list[PdmScene]:
    from recogdrive.data.synthetic.town import SyntheticTown
    from recogdrive.pdm.from_scene import pdm_scene

    town = SyntheticTown(num_scenes=count)
    return [pdm_scene(town[i]) for i in range(count)]


def _step(problem: Problem, reward: DeviceReward) -> Run:
    """The product's training step, update included."""
    sharding = DataParallel(1)
    objective = DiffGrpoObjective(problem.planner, reward, GrpoSettings(group_size=problem.group))
    transformation, rate = AdamW().build(problem.scenes, problem.scenes, 100, None)
    first = FirstState(
        objective,
        transformation,
        sharding,
        seed=0,
        with_ema=False,
        init_params=problem.weights,
        kept={REFERENCE_PREFIX + name: value for name, value in problem.weights.items()},
    )
    state, batch = first.make(), sharding.put_batch(problem.batch, problem.scenes)
    step = make_train_step(objective, transformation, rate, sharding, first.placement)
    compiled = step.lower(state, batch, {}).compile()
    holder = {"state": state}

    def run() -> None:
        holder["state"], metrics = compiled(holder["state"], batch, {})
        jax.block_until_ready((holder["state"], metrics))

    return run


def _reward_alone(problem: Problem) -> Run:
    """The reward's part of the program, alone."""
    reward = PdmsReward()
    trajectories = _some_trajectories(problem)
    batch = jax.tree.map(jnp.asarray, problem.batch)
    compiled = jax.jit(reward).lower(batch, trajectories).compile()
    return lambda: jax.block_until_ready(compiled(batch, trajectories))


def _some_trajectories(problem: Problem) -> jax.Array:
    """Human plans with a rollout's noise."""
    human = np.stack([record.human_poses for record in problem.records])[:, None]
    noise = np.random.default_rng(1).normal(size=(problem.scenes, problem.group, 8, 3)) * (1.3, 0.8, 0.07)
    return jnp.asarray(human + noise, jnp.float32)


def _one_by_one(problem: Problem) -> Run:
    """Rewards on the host, one trajectory a call, every call with its scene's normaliser as in the reference."""
    scorer = PdmScorer(REINFORCEMENT_WEIGHTS)
    trajectories = np.asarray(_some_trajectories(problem), np.float64)

    def run() -> None:
        for record, group in zip(problem.records, trajectories, strict=True):
            for trajectory in group:
                scorer.score([record], trajectory[None, None])

    return run


def _eager(problem: Problem) -> Run:
    """The reference's step in eager PyTorch, its reward left out."""
    network = torch_module(problem.planner, problem.weights)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4)
    reference = DiffusionPlanner(problem.width, denoising_steps=STEPS)
    teacher = torch_module(reference, problem.weights).requires_grad_(False)
    constants = problem.planner.diffusion.transitions(STEPS)
    history = problem.batch["history_trajectory"].reshape(problem.scenes, -1)
    inputs = [torch.from_numpy(a) for a in (problem.batch["context"], history, problem.batch["status_feature"])]
    discounts = torch.from_numpy(denoising_discounts(STEPS, 0.6))

    def mean_of(net: torch.nn.Module, rows: list[torch.Tensor], x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Mean of the step at positions k, the rows' context encoded anew."""
        t = torch.from_numpy(constants["t"].astype(np.int64))[k]
        predicted = net.denoise(net.encode(*rows, values=True), x[:, None], t[:, None])[:, 0]
        alpha, previous = (torch.from_numpy(constants[n].astype(np.float32))[k][:, None, None] for n in _ALPHAS)
        x0 = ((x - (1 - alpha).sqrt() * predicted) / alpha.sqrt()).clamp(-1, 1)
        noise = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        return previous.sqrt() * x0 + (1 - previous - _variance(alpha, previous)).clamp(min=0).sqrt() * noise

    def chain_of(net: torch.nn.Module, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        x = torch.randn(len(rows[0]), 8, 3)
        chain = [x]
        for k in range(STEPS):
            at = torch.full((len(x),), k)
            alpha, previous = (torch.from_numpy(constants[n].astype(np.float32))[k] for n in _ALPHAS)
            std = _variance(alpha, previous).sqrt().clamp(min=0.04)
            x = mean_of(net, rows, x, at) + std * torch.randn_like(x).clamp(-5, 5)
            chain.append(x)
        chain[-1] = chain[-1].clamp(-1, 1)
        return chain

    def log_probs_of(rows: list[torch.Tensor], chain: list[torch.Tensor]) -> torch.Tensor:
        copies = [row.repeat_interleave(STEPS, 0) for row in rows]
        k = torch.arange(STEPS).repeat(len(rows[0]))
        before, after = (torch.stack(part, 1).detach().flatten(0, 1) for part in (chain[:-1], chain[1:]))
        alpha, previous = (torch.from_numpy(constants[n].astype(np.float32))[k][:, None, None] for n in _ALPHAS)
        std = _variance(alpha, previous).sqrt().clamp(min=0.1)
        log_probs = (
            -0.5 * ((after - mean_of(network, copies, before, k)) / std) ** 2 - std.log() - 0.5 * np.log(2 * np.pi)
        )
        return log_probs.clamp(-5, 2).mean((-2, -1)).reshape(-1, STEPS)

    def run() -> None:
        repeated = [tensor.repeat_interleave(problem.group, 0) for tensor in inputs]
        chain = chain_of(network, repeated)
        rewards = chain[-1][:, -1, 0].detach().reshape(-1, problem.group)  # The reward itself is timed apart.
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-8)).flatten()
        policy_loss = -(log_probs_of(repeated, chain) * advantages[:, None] * discounts).mean()
        with torch.no_grad():
            taught = chain_of(teacher, inputs)
        loss = policy_loss - 0.1 * log_probs_of(inputs, taught).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    def patched() -> None:
        with reference_attention():
            run()

    return patched


_ALPHAS = ("alpha", "previous")


def _variance(alpha: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    return ((1 - previous) / (1 - alpha) * (1 - alpha / previous)).clamp(min=0)


VARIANTS: dict[str, Callable[[Problem], Run]] = {
    "step, PDMS reward": lambda problem: _step(problem, PdmsReward()),
    "step, no reward": lambda problem: _step(problem, NoReward()),
    "reward alone, in float32": _reward_alone,
    "reward on the host, one trajectory a call": _one_by_one,
    "reference's way in eager PyTorch, no reward": _eager,
}
OWN = tuple(VARIANTS)[:3]


def main() -> None:
    """Prints the table."""
    arguments = _parse()
    if arguments.only:
        run = VARIANTS[arguments.only](Problem(arguments))
        run()
        run()
        status = Path("/proc/self/status").read_text()
        kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(f"{kib / 2**20:.2f} GiB")
        return
    names = OWN if arguments.no_reference else tuple(VARIANTS)
    print(
        f"{jax.devices()}, {torch.get_num_threads()} torch threads, {arguments.batch} scenes x {arguments.group}, "
        f"{STEPS} denoising steps, {arguments.tokens} tokens x {arguments.width}, {arguments.dtype}\n"
    )
    problem = Problem(arguments)
    runs = {name: VARIANTS[name](problem) for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(arguments.rounds + 1):
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            if round_number:  # The first one warms up.
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    _report(arguments, wall, cpu)
    if arguments.memory:
        _memory(arguments, names)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the JAX compute")
    parser.add_argument("--scenes", choices=["golden", "town"], default="golden")
    parser.add_argument("--no_reference", action="store_true", help="leave out what runs the reference's way")
    parser.add_argument("--memory", action="store_true", help="and each variant's peak memory, in a process of its own")
    parser.add_argument("--only", choices=sorted(VARIANTS), help="run one variant twice and print its peak memory")
    return parser.parse_args()


def _report(arguments: argparse.Namespace, wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    print(f"{'variant':46} {'median s':>9} {'CPU s':>8}")
    for name in wall:
        print(f"{name:46} {statistics.median(wall[name]):9.3f} {statistics.median(cpu[name]):8.2f}")
    whole, without, alone = OWN
    share = statistics.median(r / w for r, w in zip(wall[alone], wall[whole], strict=True))
    print(f"\nreward's share of the step: {share:.1%} (alone / step)")
    difference = statistics.median((w - n) / w for w, n in zip(wall[whole], wall[without], strict=True))
    print(f"step with reward beside step without: {difference:.1%} of the step")
    if arguments.no_reference:
        return
    host, eager = tuple(VARIANTS)[3:]
    count = arguments.batch * arguments.group
    for title, times in (("wall", wall), ("CPU", cpu)):
        ratio = statistics.median(e / n for e, n in zip(times[eager], times[without], strict=True))
        print(f"reference's way beside the step, {title} time, both without reward: {ratio:.1f} times")
        rewarded = [e + h for e, h in zip(times[eager], times[host], strict=True)]
        ratio = statistics.median(e / w for e, w in zip(rewarded, times[whole], strict=True))
        print(f"reference's way with rewards one by one beside the step, {title} time: {ratio:.1f} times")
    print(f"the public scorer takes {count * REFERENCE_SCORER_S:.2f} s for the {count} trajectories on one core")


def _memory(arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
    print("\npeak resident memory (VmHWM), imports and batch included")
    for name in names:
        command = [sys.executable, __file__, "--only", name, "--dtype", arguments.dtype, "--scenes", arguments.scenes]
        for option in ("tokens", "width", "batch", "group"):
            command += [f"--{option}", str(getattr(arguments, option))]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name:46} {finished.stdout.strip()}")


if __name__ == "__main__":
    main()
