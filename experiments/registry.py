"""Every experiment of the product; `<name>.gin` beside this file is its configuration."""

from recogdrive.experiment import Experiment, Reference

_UPSTREAM = "upstream README, navtest table"


def _family(size: str, vlm_pdms: float, il_pdms: float, rl_pdms: float) -> list[Experiment]:
    """The pipeline of one model size, from fine-tuning to evaluation."""

    def reference(pdms: float) -> Reference:
        return Reference(pdms=pdms, split="navtest", source=_UPSTREAM)

    name = size.upper()
    return [
        Experiment(
            name=f"{size}_sft",
            description=f"InternVL3-{name} fine-tuned on driving conversations; VLM_WEIGHTS names InternVL3's folder.",
            parent_macro="VLM_WEIGHTS",
            reference=reference(vlm_pdms),
        ),
        Experiment(
            name=f"{size}_vlm_eval",
            description=f"The fine-tuned {name} model alone as a planner: trajectories as text, on navtest.",
            reads=f"{size}_sft",
            reference=reference(vlm_pdms),
        ),
        Experiment(
            name=f"{size}_cache",
            description=f"Hidden states of the fine-tuned {name} model for navtrain.",
            starts_from=f"{size}_sft",
            parent_macro="VLM_WEIGHTS",
        ),
        Experiment(
            name=f"{size}_cache_navtest",
            description="The same for navtest, for evaluations that read a cache.",
            starts_from=f"{size}_sft",
            parent_macro="VLM_WEIGHTS",
        ),
        Experiment(
            name=f"{size}_il",
            description="Diffusion planner imitating navtrain on cached hidden states.",
            reads=f"{size}_cache",
            reference=reference(il_pdms),
        ),
        Experiment(
            name=f"{size}_il_ema",
            description="The same with an exponential moving average of the weights, which is what is evaluated.",
            reads=f"{size}_cache",
        ),
        Experiment(
            name=f"{size}_rl",
            description="DiffGRPO on navtrain from the imitation planner.",
            starts_from=f"{size}_il",
            reference=reference(rl_pdms),
        ),
        Experiment(
            name=f"{size}_eval",
            description="Score of a planner on navtest, the VLM in its program: any planner's weights, no cache.",
            starts_from=f"{size}_rl",
            reference=reference(rl_pdms),
        ),
        Experiment(
            name=f"{size}_drive",
            description="One front image or scene: the VLM's answer and, with PARENT, the planner's trajectory.",
            reads=f"{size}_sft",
        ),
    ]


EXPERIMENTS = [
    Experiment(
        name="quickstart_sft",
        description="Small VLM that learns, from random weights, to answer about the synthetic town; minutes on a CPU.",
        parent_macro="VLM_WEIGHTS",
    ),
    Experiment(
        name="quickstart_vlm_eval",
        description="That VLM alone as a planner: it writes its trajectories as text, seen on new scenes.",
        reads="quickstart_sft",
    ),
    Experiment(
        name="quickstart_cache",
        description="Hidden states of that VLM for the scenes that quickstart learns from and is seen on.",
        starts_from="quickstart_sft",
        parent_macro="VLM_WEIGHTS",
    ),
    Experiment(
        name="quickstart",
        description="Small planner imitating the town's expert on these hidden states, seen on new scenes.",
        reads="quickstart_cache",
    ),
    Experiment(
        name="quickstart_drive",
        description="One scene of the town: the VLM's answer and the planner's trajectory, printed and drawn.",
        starts_from="quickstart",
    ),
    Experiment(
        name="quickstart_rl",
        description="That planner goes on learning from the score of its own plans; both seen on new scenes.",
        starts_from="quickstart",
    ),
    Experiment(
        name="town_il",
        description="Imitation on map and agents as vectors instead of a VLM's states: perfect perception.",
    ),
    Experiment(
        name="town_rl",
        description="DiffGRPO in the synthetic town from the planner of town_il.",
        starts_from="town_il",
    ),
    Experiment(
        name="mini_il",
        description="Small planner imitating one log of real driving, evaluated on it and on another log.",
    ),
    Experiment(
        name="mini_cache_metrics",
        description="Scenes to score in of both logs of real driving: route, centre line, PDM-Closed.",
    ),
    Experiment(
        name="mini_eval",
        description="PDMS and EPDMS of the planner of mini_il, human and constant velocity on both logs.",
        starts_from="mini_il",
    ),
    Experiment(
        name="mini_rl",
        description="DiffGRPO on real driving from the planner of mini_il, evaluated on its log and on another.",
        starts_from="mini_il",
    ),
    Experiment(
        name="navtrain_cache_metrics", description="Scenes to score in of navtrain, from NAVSIM logs and nuPlan maps."
    ),
    Experiment(
        name="navtest_cache_metrics", description="Scenes to score in of navtest, from NAVSIM logs and nuPlan maps."
    ),
    Experiment(
        name="mini_submission",
        description="Leaderboard submission with the plans of a mini_il run for both logs of navsim_mini.",
        starts_from="mini_il",
    ),
    Experiment(
        name="mini_score_submission",
        description="The submission of mini_submission, scored beside the baselines on both logs of navsim_mini.",
    ),
    Experiment(
        name="doctor",
        description="Whether this machine can run experiments: devices, versions, memory, disk, data, and what to do.",
    ),
    Experiment(
        name="data_check",
        description="What is there of NAVSIM's data, and whether navtrain and navtest are complete.",
    ),
    Experiment(
        name="mini_data_check", description="What is there of navsim_mini, and whether its two logs are complete."
    ),
    Experiment(
        name="baseline_constant_velocity", description="Straight ahead at the current speed, in the synthetic town."
    ),
    Experiment(name="baseline_stopped", description="Staying in place, in the synthetic town."),
    Experiment(name="baseline_human", description="The recorded drive, in the synthetic town: the upper bound."),
    Experiment(
        name="baseline_ego_status_mlp",
        description="Planner that sees only its own speed, acceleration and command, trained in the synthetic town.",
    ),
    Experiment(name="debug_il", description="Tiny planner, 200 steps in the synthetic town: checks an installation."),
    Experiment(name="debug_il_ema", description="The same with an exponential moving average of the weights."),
    Experiment(
        name="debug_eval",
        description="Evaluates a planner of debug_il on other scenes of the synthetic town.",
        starts_from="debug_il",
    ),
    Experiment(
        name="debug_sft",
        description="Tiny VLM with InternVL3's tokenizer, some steps on conversations about the synthetic town.",
        parent_macro="VLM_WEIGHTS",
    ),
    Experiment(
        name="debug_vlm_eval",
        description="That VLM alone as a planner; after so few steps its answers are no trajectories.",
        reads="debug_sft",
    ),
    Experiment(
        name="debug_cache",
        description="Hidden states of the tiny VLM for some scenes of the synthetic town.",
        starts_from="debug_sft",
        parent_macro="VLM_WEIGHTS",
    ),
    Experiment(
        name="debug_cached_il",
        description="Tiny planner on the hidden states of debug_cache.",
        reads="debug_cache",
    ),
    Experiment(
        name="debug_online_eval",
        description="Evaluates a planner of debug_cached_il with the VLM in its program.",
        starts_from="debug_cached_il",
    ),
    Experiment(
        name="debug_rl",
        description="Some steps of DiffGRPO in the synthetic town from the planner of debug_il.",
        starts_from="debug_il",
    ),
    *_family("2b", vlm_pdms=84.1, il_pdms=86.5, rl_pdms=90.8),
    *_family("8b", vlm_pdms=86.4, il_pdms=86.5, rl_pdms=90.4),
]
