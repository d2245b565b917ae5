"""Launches on other machines: none can run here, so each command is compared with its whole text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recogdrive.hosts.settings import detect
from recogdrive.launch import gke, tpu_vm
from recogdrive.launch.shell import quoted
from recogdrive.launch.tpu_types import TPU_TYPES
from recogdrive.version import __version__

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "launch"
RUN = ["--", "--experiment=debug_il", "--workdir=/mnt/recogdrive/runs/il", "--gin_bindings=PARENT='/data/x y'"]
WHEEL = f"recogdrive-{__version__}-py3-none-any.whl"


def printed(module, capsys, *flags):
    assert module.main([*flags, "--print_only", *RUN]) == 0
    return capsys.readouterr().out


def refused(module, capsys, *arguments):
    assert module.main(list(arguments)) == 2
    return capsys.readouterr().err


def test_a_tpu_vm_is_rented_installed_and_started_by_these_commands(capsys):
    text = printed(tpu_vm, capsys, "--name=drive", "--zone=europe-west4-a", "--type=v6e-8", "--spot", "--env=A=b c")
    assert text == TPU_VM.format(root=ROOT, python=sys.executable, wheel=WHEEL)


TPU_VM = r"""# rents 8 chips (2x4) on 1 host
gcloud compute tpus tpu-vm create drive \
  --zone=europe-west4-a \
  --accelerator-type=v6e-8 \
  --version=v2-alpha-tpuv6e \
  --spot

# builds the wheel of this checkout
{python} -m pip wheel \
  --quiet \
  --no-deps \
  --wheel-dir={root}/dist \
  {root}

# copies it to every host
gcloud compute tpus tpu-vm scp {root}/dist/{wheel} {root}/constraints.txt drive: \
  --zone=europe-west4-a \
  --worker=all

# installs it
gcloud compute tpus tpu-vm ssh drive \
  --zone=europe-west4-a \
  --worker=all \
  --command='curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --quiet --allow-existing """ + (
    "--python 3.11 recogdrive-env && ~/.local/bin/uv pip install --quiet --python recogdrive-env/bin/python "
    "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0 && ~/.local/bin/uv pip install --quiet "
    '--python recogdrive-env/bin/python --constraint constraints.txt "./{wheel}[tpu]"\'\n'
    r"""
# starts the run on every host
gcloud compute tpus tpu-vm ssh drive \
  --zone=europe-west4-a \
  --worker=all \
  --command='nohup env JAX_PLATFORMS=tpu,cpu '"'"'A=b c'"'"' recogdrive-env/bin/python -m recogdrive.main """
    "--experiment=debug_il --workdir=/mnt/recogdrive/runs/il --gin_bindings=\"PARENT='\"'\"'/data/x y'\"'\"'\" "
    r""">> recogdrive.log 2>&1 < /dev/null & echo $! > recogdrive.pid'

# follows the log
gcloud compute tpus tpu-vm ssh drive \
  --zone=europe-west4-a \
  --worker=0 \
  --command='tail -n 100 -f recogdrive.log'

# stops the run after its step, which is saved
gcloud compute tpus tpu-vm ssh drive \
  --zone=europe-west4-a \
  --worker=all \
  --command='kill -TERM $(cat recogdrive.pid)'

# gives the machine back
gcloud compute tpus tpu-vm delete drive \
  --zone=europe-west4-a \
  --quiet
"""
)


def test_a_pod_mounts_its_share_and_runs_the_container_on_every_host(capsys):
    image = "europe-docker.pkg.dev/p/r/recogdrive:tpu"
    flags = ["--name=pod", "--zone=z", "--project=p", "--type=v6e-256", "--share=10.0.0.2:/share", f"--image={image}"]
    text = printed(tpu_vm, capsys, *flags, "--existing")
    assert text.split("# follows the log")[0] == (
        r"""# mounts the share at /mnt/recogdrive
gcloud compute tpus tpu-vm ssh pod \
  --zone=z \
  --project=p \
  --worker=all \
  --command='sudo apt-get install --yes --quiet nfs-common && sudo mkdir -p /mnt/recogdrive && """
        r"""(mountpoint -q /mnt/recogdrive || sudo mount -t nfs 10.0.0.2:/share /mnt/recogdrive)'

# pulls the container
gcloud compute tpus tpu-vm ssh pod \
  --zone=z \
  --project=p \
  --worker=all \
  --command='sudo gcloud auth configure-docker europe-docker.pkg.dev --quiet && """
        rf"""sudo docker pull {image}'

# starts the run on every host
gcloud compute tpus tpu-vm ssh pod \
  --zone=z \
  --project=p \
  --worker=all \
  --command='sudo docker rm --force recogdrive; sudo docker run --detach --name=recogdrive --init --privileged """
        "--network=host --volume=/mnt/recogdrive:/mnt/recogdrive --env=JAX_PLATFORMS=tpu,cpu "
        f"{image} --experiment=debug_il --workdir=/mnt/recogdrive/runs/il "
        "--gin_bindings=\"PARENT='\"'\"'/data/x y'\"'\"'\"'\n\n"
    )
    assert "sudo docker logs --follow recogdrive" in text and "sudo docker stop --time=600 recogdrive" in text


def test_what_a_shell_makes_of_a_printed_command_are_the_flags_that_were_given(tmp_path, capsys):
    """Through both shells: the one it is pasted into, and the one on the host."""
    text = printed(tpu_vm, capsys, "--name=d", "--zone=z", "--type=v6e-8", "--env=A=b c")
    command = text.split("# starts the run on every host\n")[1].split("\n\n")[0]
    (tmp_path / "recogdrive-env" / "bin").mkdir(parents=True)
    fakes = {
        tmp_path
        / "gcloud": 'for word in "$@"; do case "$word" in --command=*) bash -c "${word#--command=}";; esac; done',
        tmp_path / "recogdrive-env" / "bin" / "python": 'printf "%s\\n" "A=$A" "$@" > seen',
    }
    environment = fake_programs(fakes, tmp_path)
    subprocess.run(["bash", "-c", command + "; wait; sleep 0.3"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "seen").read_text().splitlines() == ["A=b c", "-m", "recogdrive.main", *RUN[1:]]


def fake_programs(texts, folder):
    for path, text in texts.items():
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--type=v6e-9", *RUN], "no TPU type 'v6e-9'"),
        (["--type=v6e-16", *RUN], "v6e-16 has 4 hosts, which write one run folder"),
        (
            ["--type=v6e-16", "--share=h:/s", "--", "--experiment=debug_il", "--workdir=runs/x"],
            "--workdir=/mnt/recogdrive/",
        ),
        (["--type=v6e-8"], "Name what to run behind --"),
        (["--type=v6e-8", "--", "--experiment=debug_li"], "There is no experiment 'debug_li'"),
        (["--type=v6e-8", "--env=A", *RUN], "each must read NAME=value"),
    ],
)
def test_a_tpu_vm_that_would_be_rented_in_vain_is_refused(capsys, arguments, message):
    assert message in refused(tpu_vm, capsys, "--name=d", "--zone=z", *arguments)


def test_a_program_that_is_not_installed_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(tpu_vm, capsys, "--name=d", "--zone=z", "--type=v6e-8", *RUN)
    assert "gcloud is not installed here; --print_only prints the commands" in error


def test_a_step_that_fails_ends_the_launch_with_its_exit_code(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", fake_programs({tmp_path / "kubectl": "exit 7"}, tmp_path)["PATH"])
    assert gke.main(["--name=d", "--image=i", "--type=v6e-8", *RUN]) == 7
    assert "this step failed with exit code 7: submits the run" in capsys.readouterr().err


def test_a_jobset_is_submitted_with_this_text(capsys):
    flags = ["--name=drive", "--image=i:tpu", "--type=v6e-256", "--spot", "--env=A=b: c"]
    text = printed(gke, capsys, *flags)
    assert text.startswith("# submits the run\nkubectl apply \\\n  --filename=- <<'END'\n" + JOBSET + "END\n")
    manifest = yaml.safe_load(JOBSET)
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == RUN[1:]
    assert container["env"] == [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}, {"name": "A", "value": "b: c"}]
    assert "kubectl logs \\\n  --follow \\\n  job/drive-run-0" in text


JOBSET = """# v6e-256: 256 chips (16x16) on 64 hosts
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: drive
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 10  # A run that is started again continues from its last checkpoint.
  replicatedJobs:
    - name: run
      replicas: 1
      template:
        spec:
          parallelism: 64
          completions: 64
          completionMode: Indexed
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              # A step, its checkpoint and the writing of it; after SIGTERM a run saves and ends with exit code 75.
              terminationGracePeriodSeconds: 600
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: tpu-v6e-slice
                cloud.google.com/gke-tpu-topology: 16x16
                cloud.google.com/gke-spot: "true"
              containers:
                - name: recogdrive
                  image: i:tpu
                  args:
                    - "--experiment=debug_il"
                    - "--workdir=/mnt/recogdrive/runs/il"
                    - "--gin_bindings=PARENT='/data/x y'"
                  env:
                    - name: JAX_PLATFORMS
                      value: tpu,cpu
                    - name: A
                      value: "b: c"
                  ports:
                    - containerPort: 8471
                    - containerPort: 8431
                  resources:
                    limits:
                      google.com/tpu: 4
                  volumeMounts:
                    - name: share
                      mountPath: /mnt/recogdrive
              volumes:
                - name: share
                  persistentVolumeClaim:
                    claimName: recogdrive
"""


def test_xpk_is_called_with_these_flags(capsys):
    flags = ["--name=drive", "--image=i:tpu", "--type=v5p-8", "--xpk=big", "--zone=z", "--project=p", "--env=A=b"]
    text = printed(gke, capsys, *flags)
    assert text.split("# lists")[0] == (
        r"""# submits the run
xpk workload create \
  --cluster=big \
  --zone=z \
  --project=p \
  --workload=drive \
  --tpu-type=v5p-8 \
  --num-slices=1 \
  --docker-image=i:tpu \
  --max-restarts=10 \
  --env=JAX_PLATFORMS=tpu,cpu \
  --env=A=b \
  --command='python -m recogdrive.main --experiment=debug_il --workdir=/mnt/recogdrive/runs/il """
        "--gin_bindings=\"PARENT='\"'\"'/data/x y'\"'\"'\"'\n\n"
    )
    assert "xpk workload delete" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=A_b", *RUN], "Kubernetes takes at most 40"),
        (["--name=a", "--env=x", *RUN], "NAME=value"),
        (["--name=a", "--xpk=c", "--spot", *RUN], "xpk takes what its cluster was created with"),
        (["--name=a", "--", "--experiment=nothing"], "There is no experiment 'nothing'"),
    ],
)
def test_a_workload_that_cannot_be_meant_is_refused(capsys, arguments, message):
    assert message in refused(gke, capsys, "--image=i", "--type=v6e-8", *arguments)


def test_slices_have_the_chips_and_hosts_they_are_rented_with():
    shapes = {name: (TPU_TYPES[name].chips, TPU_TYPES[name].topology, TPU_TYPES[name].hosts) for name in TPU_TYPES}
    assert shapes["v6e-4"] == (4, "2x2", 1) and shapes["v6e-8"] == (8, "2x4", 1)
    assert shapes["v6e-256"] == (256, "16x16", 64) and shapes["v5p-8"] == (4, "2x2x1", 1)
    assert shapes["v5p-128"] == (64, "4x4x4", 16) and shapes["v5litepod-16"] == (16, "4x4", 4)
    for chips, topology, hosts in shapes.values():
        sides = [int(side) for side in topology.split("x")]
        assert chips == sides[0] * sides[1] * (sides[2] if len(sides) == 3 else 1) and chips % hosts == 0


def test_words_have_as_few_quotes_as_a_shell_needs():
    words = {
        "--a=b": "--a=b",
        "--a=b c": "--a='b c'",
        "--gin_bindings=P='x'": "--gin_bindings=\"P='x'\"",
        "it's $HOME": "'it'\"'\"'s $HOME'",
        "": "''",
    }
    assert {word: quoted(word) for word in words} == words
    for word in words:
        assert subprocess.check_output(["bash", "-c", f"printf %s {quoted(word)}"], text=True) == word


@pytest.mark.parametrize(("status", "ends"), [(0, 0), (1, 1), (75, 0)])
def test_the_slurm_job_starts_the_command_on_every_task_and_queues_again_what_was_stopped(tmp_path, status, ends):
    fakes = {
        tmp_path / "srun": f'printf "%s\\n" "$JAX_PLATFORMS" "$@" > srun.seen; exit {status}',
        tmp_path / "scontrol": 'echo "$@" > scontrol.seen',
    }
    environment = fake_programs(fakes, tmp_path) | {"SLURM_JOB_ID": "42", "PYTHON": "py"}
    environment.pop("JAX_PLATFORMS", None)
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", *RUN[1:]], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == ends
    assert (tmp_path / "srun.seen").read_text().splitlines() == [
        *("cuda,cpu", "--kill-on-bad-exit=0", "--wait=120", "py", "-m", "recogdrive.main"),
        *RUN[1:],
    ]
    requeued = tmp_path / "scontrol.seen"
    assert (requeued.read_text() if requeued.exists() else None) == ("requeue 42\n" if status == 75 else None)


def test_the_slurm_job_asks_for_a_process_a_gpu_and_for_time_to_save():
    asked = [
        line.split()[1] for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")
    ]
    assert {"--ntasks-per-node=8", "--gpus-per-node=8", "--signal=TERM@300", "--requeue"} <= set(asked)


def test_tasks_of_the_slurm_job_are_the_processes_of_one_run():
    """Variables as srun sets them for the ninth task of two nodes with eight each."""
    environment = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "8", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu[01-02]"}
    environment |= {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "JAX_PLATFORMS": "cuda,cpu"}
    found = detect({}, environment | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})
    assert (found.process_id, found.num_processes, found.local_devices) == (8, 16, (0,))


def test_several_nodes_of_a_skypilot_task_are_the_processes_of_one_run(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (tmp_path / "recogdrive-env" / "bin").mkdir(parents=True)
    shown = "$RECOGDRIVE_COORDINATOR_ADDRESS $RECOGDRIVE_NUM_PROCESSES $RECOGDRIVE_PROCESS_ID"
    fakes = {tmp_path / "recogdrive-env" / "bin" / "python": f'echo "{shown}" > seen'}
    environment = fake_programs(fakes, tmp_path) | {"EXTRA": "cuda", "FLAGS": "--experiment=debug_il"}
    environment |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "seen").read_text() == "10.0.0.1:8476 2 1\n"


@pytest.mark.parametrize(("extra", "platforms"), [("tpu", "tpu,cpu"), ("cuda", "cuda,cpu")])
def test_the_skypilot_task_runs_the_command_with_its_flags(tmp_path, extra, platforms):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task["envs"]) == {"FLAGS", "EXTRA", "BUCKET"}
    assert task["resources"]["accelerators"] in {f"tpu-{name}" for name in TPU_TYPES}
    (tmp_path / "recogdrive-env" / "bin").mkdir(parents=True)
    fakes = {
        tmp_path / "recogdrive-env" / "bin" / "python": 'printf "%s\\n" "$JAX_PLATFORMS" "$@" > seen',
        tmp_path / "uv": 'echo "$@" >> uv.seen',
    }
    flags = "--experiment=debug_il --gin_bindings=\"PARENT='/data/x y'\""
    environment = fake_programs(fakes, tmp_path) | {"EXTRA": extra, "FLAGS": flags}
    for part in ("setup", "run"):
        subprocess.run(["bash", "-c", task[part]], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "seen").read_text().splitlines() == [platforms, "-m", "recogdrive.main", RUN[1], RUN[3]]
    installed = (tmp_path / "uv.seen").read_text().splitlines()[-1]
    assert installed.endswith(f"/recogdrive-env/bin/python --constraint constraints.txt .[{extra}]")


@pytest.mark.parametrize(("kind", "platforms"), [("tpu", "tpu,cpu"), ("cuda", "cuda,cpu")])
def test_a_container_installs_what_the_wheel_is_built_from_and_runs_the_command(kind, platforms):
    lines = (LAUNCH / f"Dockerfile.{kind}").read_text().splitlines()
    assert f'RUN pip install --constraint constraints.txt ".[{kind}]"' in lines
    assert lines[-1] == 'ENTRYPOINT ["python", "-m", "recogdrive.main"]'
    assert any(line.startswith(f"ENV JAX_PLATFORMS={platforms}") for line in lines)
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert copied == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
        *("recogdrive", "gin", "experiments"),
    }
    assert all((ROOT / name).exists() for name in copied)
