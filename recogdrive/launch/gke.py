"""Command line: `python -m recogdrive.launch.gke --name=... --image=... --type=v6e-8 -- --experiment=2b_il`.

Runs an experiment on TPUs of a GKE cluster: as a JobSet by kubectl, or by xpk.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.shell import quoted
from recogdrive.launch.steps import Step, check_run_flags, perform, split_arguments, with_print_only
from recogdrive.launch.tpu_types import find_tpu_type

_TEMPLATE = Path(__file__).with_name("jobset.yaml.j2")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_RUN = ("python", "-m", "recogdrive.main")


def main(arguments: Sequence[str] | None = None) -> int:
    """Submits the run; returns the process's exit code."""
    own, flags = split_arguments(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own)
    try:
        check_run_flags(flags)
        if not _NAME.fullmatch(options.name):
            raise ConfigurationError(f"--name={options.name!r}: Kubernetes takes at most 40 of a-z, 0-9 and '-'.")
        variables = [text.split("=", 1) for text in options.env]
        if not all(len(pair) == 2 for pair in variables):
            raise ConfigurationError(f"--env={options.env}: each must read NAME=value.")
        steps = xpk_steps(options, flags) if options.xpk else jobset_steps(options, flags, variables)
        return perform(*steps, print_only=options.print_only)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recogdrive.launch.gke",
        description="Runs an experiment on TPUs of a GKE cluster; docs/launching.md.",
    )
    parser.add_argument("--name", required=True, help="of the workload")
    parser.add_argument("--image", required=True, help="container built by launch/Dockerfile.tpu")
    parser.add_argument("--type", required=True, help="v6e-8, v6e-256, v5p-8, v5litepod-16, ...")
    parser.add_argument("--claim", default="recogdrive", help="volume claim for data and runs, at /mnt/recogdrive")
    parser.add_argument("--restarts", type=int, default=10, help="how often a run that ended early is started again")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken away")
    parser.add_argument("--env", action="append", default=[], help="NAME=value for the run; repeatable")
    parser.add_argument("--xpk", metavar="CLUSTER", help="submit by xpk to this cluster instead of kubectl")
    parser.add_argument("--zone", help="of the cluster, for xpk")
    parser.add_argument("--project", help="of the cluster, for xpk")
    return with_print_only(parser)


def jobset(options: argparse.Namespace, flags: Sequence[str], variables: Sequence[Sequence[str]]) -> str:
    """The JobSet as YAML.

    Args:
      options: Parsed flags.
      flags: Of the run.
      variables: Names and values for its environment.
    """
    template = jinja2.Template(_TEMPLATE.read_text(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return template.render(
        name=options.name,
        image=options.image,
        tpu=find_tpu_type(options.type),
        claim=options.claim,
        restarts=options.restarts,
        spot=options.spot,
        flags=[json.dumps(flag) for flag in flags],  # A JSON text is one of YAML.
        env=[(name, json.dumps(value)) for name, value in variables],
    )


def jobset_steps(
    options: argparse.Namespace, flags: Sequence[str], variables: Sequence[Sequence[str]]
) -> tuple[list[Step], list[Step]]:
    """Submission by kubectl, and the commands for later; arguments as for `jobset`."""
    text = jobset(options, flags, variables)
    label = f"--selector=jobset.sigs.k8s.io/jobset-name={options.name}"
    return [Step("submits the run", ["kubectl", "apply", "--filename=-"], text)], [
        Step("follows the log of the first host", ["kubectl", "logs", "--follow", f"job/{options.name}-run-0"]),
        Step("shows the hosts", ["kubectl", "get", "pods", label]),
        Step("stops the run after its step, which is saved", ["kubectl", "delete", "jobset", options.name]),
    ]


def xpk_steps(options: argparse.Namespace, flags: Sequence[str]) -> tuple[list[Step], list[Step]]:
    """Submission by xpk, and the commands for later.

    Args:
      options: Parsed flags.
      flags: Of the run.

    Raises:
      ConfigurationError: The type is unknown, or spot nodes are asked for.
    """
    tpu = find_tpu_type(options.type)
    if options.spot:
        raise ConfigurationError("--spot: xpk takes what its cluster was created with; leave the flag out.")
    cluster = [f"--cluster={options.xpk}"]
    cluster += [f"--zone={options.zone}"] if options.zone else []
    cluster += [f"--project={options.project}"] if options.project else []
    workload = f"--workload={options.name}"
    create = [
        *("xpk", "workload", "create", *cluster, workload, f"--tpu-type={tpu.name}", "--num-slices=1"),
        *(f"--docker-image={options.image}", f"--max-restarts={options.restarts}"),
        *(f"--env={text}" for text in ["JAX_PLATFORMS=tpu,cpu", *options.env]),
        f"--command={' '.join(map(quoted, [*_RUN, *flags]))}",
    ]
    return [Step("submits the run", create)], [
        Step("lists what runs", ["xpk", "workload", "list", *cluster]),
        Step("stops the run after its step, which is saved", ["xpk", "workload", "delete", *cluster, workload]),
    ]


if __name__ == "__main__":
    sys.exit(main())
