"""Command line: `python -m recogdrive.launch.tpu_vm --name=... --zone=... --type=v6e-8 -- --experiment=2b_il`.

Rents a TPU VM by gcloud, installs recogdrive or pulls its container on every host, and starts the same command on all
of them. A spot machine that was taken away is rented again by the same command, and the run continues.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from recogdrive.experiment import ConfigurationError
from recogdrive.launch.shell import quoted
from recogdrive.launch.steps import Step, check_run_flags, perform, split_arguments, with_print_only
from recogdrive.launch.tpu_types import TpuType, find_tpu_type
from recogdrive.version import __version__

_CHECKOUT = Path(__file__).resolve().parents[2]
_WHEEL = f"recogdrive-{__version__}-py3-none-any.whl"
_TORCH = "torch==2.13.0"
_ENVIRONMENT = "recogdrive-env"
"""Virtual environment on a host, in the home folder, where commands by ssh start."""
_SHARE = "/mnt/recogdrive"
_PLATFORM = "JAX_PLATFORMS=tpu,cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rents, installs and starts; returns the process's exit code."""
    own, flags = split_arguments(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own)
    try:
        check_run_flags(flags)
        steps, afterwards = tpu_vm_steps(options, flags)
        return perform(steps, afterwards, print_only=options.print_only)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recogdrive.launch.tpu_vm",
        description="Runs an experiment on a rented TPU VM; docs/launching.md.",
    )
    parser.add_argument("--name", required=True, help="of the TPU VM")
    parser.add_argument("--zone", required=True, help="such as europe-west4-a")
    parser.add_argument("--type", required=True, help="v6e-8, v6e-256, v5p-8, v5litepod-16, ...")
    parser.add_argument("--project", help="by default gcloud's")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--existing", action="store_true", help="the TPU VM is there: rent none")
    parser.add_argument(
        "--image", help="container built by launch/Dockerfile.tpu; by default this checkout is installed"
    )
    parser.add_argument("--share", help=f"NFS share HOST:/PATH for data and runs, mounted at {_SHARE} on every host")
    parser.add_argument("--env", action="append", default=[], help="NAME=value for the run; repeatable")
    return with_print_only(parser)


def tpu_vm_steps(options: argparse.Namespace, flags: Sequence[str]) -> tuple[list[Step], list[Step]]:
    """The commands of a launch, and those for later.

    Args:
      options: Parsed flags.
      flags: Of the run.

    Raises:
      ConfigurationError: The type is unknown, several hosts have no folder in common, or there is no checkout to
        install.
    """
    tpu = find_tpu_type(options.type)
    _require_common_folder(tpu, options, flags)
    if not all(re.fullmatch(r"[A-Za-z_]\w*=.*", text) for text in options.env):
        raise ConfigurationError(f"--env={options.env}: each must read NAME=value.")
    where = [f"--zone={options.zone}", *([f"--project={options.project}"] if options.project else [])]
    gcloud = ["gcloud", "compute", "tpus", "tpu-vm"]

    def on_all(command: str) -> list[str]:
        return [*gcloud, "ssh", options.name, *where, "--worker=all", f"--command={command}"]

    steps = []
    if not options.existing:
        kind = [f"--accelerator-type={tpu.name}", f"--version={tpu.runtime}", *(["--spot"] if options.spot else [])]
        steps.append(Step(f"rents {tpu.described()}", [*gcloud, "create", options.name, *where, *kind]))
    if options.share:
        steps.append(Step(f"mounts the share at {_SHARE}", on_all(_mount(options.share))))
    if options.image:
        steps.append(Step("pulls the container", on_all(_pull(options.image))))
        steps.append(Step("starts the run on every host", on_all(_container(options, flags))))
        log = "sudo docker logs --follow recogdrive"
        stop = "sudo docker stop --time=600 recogdrive"
    else:
        steps += _install(gcloud, options.name, where, on_all)
        steps.append(Step("starts the run on every host", on_all(_process(options, flags))))
        log = "tail -n 100 -f recogdrive.log"
        stop = "kill -TERM $(cat recogdrive.pid)"
    follow = [*gcloud, "ssh", options.name, *where, "--worker=0", f"--command={log}"]
    return steps, [
        Step("follows the log", follow),
        Step("stops the run after its step, which is saved", on_all(stop)),
        Step("gives the machine back", [*gcloud, "delete", options.name, *where, "--quiet"]),
    ]


def _require_common_folder(tpu: TpuType, options: argparse.Namespace, flags: Sequence[str]) -> None:
    workdirs = [flag.removeprefix("--workdir=") for flag in flags if flag.startswith("--workdir=")]
    if tpu.hosts > 1 and not (options.share and any(workdir.startswith(f"{_SHARE}/") for workdir in workdirs)):
        raise ConfigurationError(
            f"{tpu.name} has {tpu.hosts} hosts, which write one run folder: pass --share=HOST:/PATH (NFS, such as a "
            f"Filestore) and --workdir={_SHARE}/... for the run."
        )


def _mount(share: str) -> str:
    return (
        "sudo apt-get install --yes --quiet nfs-common && "
        f"sudo mkdir -p {_SHARE} && (mountpoint -q {_SHARE} || sudo mount -t nfs {quoted(share)} {_SHARE})"
    )


def _install(gcloud: Sequence[str], name: str, where: Sequence[str], on_all: Callable[[str], list[str]]) -> list[Step]:
    if not (_CHECKOUT / "constraints.txt").is_file():
        raise ConfigurationError("There is no checkout to install from; pass --image with a container.")
    wheel = _CHECKOUT / "dist" / _WHEEL
    pip = f"~/.local/bin/uv pip install --quiet --python {_ENVIRONMENT}/bin/python"
    install = " && ".join(
        [
            "curl -LsSf https://astral.sh/uv/install.sh | sh",
            # The machines bring Python 3.10.
            f"~/.local/bin/uv venv --quiet --allow-existing --python 3.11 {_ENVIRONMENT}",
            f"{pip} --index-url https://download.pytorch.org/whl/cpu {_TORCH}",
            f'{pip} --constraint constraints.txt "./{_WHEEL}[tpu]"',
        ]
    )
    files = [str(wheel), str(_CHECKOUT / "constraints.txt")]
    return [
        Step(
            "builds the wheel of this checkout",
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                f"--wheel-dir={wheel.parent}",
                str(_CHECKOUT),
            ],
        ),
        Step("copies it to every host", [*gcloud, "scp", *files, f"{name}:", *where, "--worker=all"]),
        Step("installs it", on_all(install)),
    ]


def _process(options: argparse.Namespace, flags: Sequence[str]) -> str:
    run = " ".join(
        map(quoted, [_PLATFORM, *options.env, f"{_ENVIRONMENT}/bin/python", "-m", "recogdrive.main", *flags])
    )
    return f"nohup env {run} >> recogdrive.log 2>&1 < /dev/null & echo $! > recogdrive.pid"


def _pull(image: str) -> str:
    host = image.split("/")[0]
    login = f"sudo gcloud auth configure-docker {host} --quiet && " if host.endswith("-docker.pkg.dev") else ""
    return f"{login}sudo docker pull {quoted(image)}"


def _container(options: argparse.Namespace, flags: Sequence[str]) -> str:
    words = ["sudo", "docker", "run", "--detach", "--name=recogdrive", "--init", "--privileged", "--network=host"]
    words += [f"--volume={_SHARE}:{_SHARE}", f"--env={_PLATFORM}", *(f"--env={text}" for text in options.env)]
    return "sudo docker rm --force recogdrive; " + " ".join(map(quoted, [*words, options.image, *flags]))


if __name__ == "__main__":
    sys.exit(main())
