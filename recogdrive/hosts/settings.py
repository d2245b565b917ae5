"""Which process of a run this is, from flags or from what started it. Imports no jax: it is asked before jax is."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from recogdrive.experiment import ConfigurationError

ADDRESS, COUNT, ID = "coordinator_address", "num_processes", "process_id"
VARIABLES = {
    ADDRESS: "RECOGDRIVE_COORDINATOR_ADDRESS",
    COUNT: "RECOGDRIVE_NUM_PROCESSES",
    ID: "RECOGDRIVE_PROCESS_ID",
}
"""Flag -> environment variable that says the same."""

LOST_AFTER_VARIABLE = "RECOGDRIVE_LOST_AFTER_S"
START_TIMEOUT_VARIABLE = "RECOGDRIVE_START_TIMEOUT_S"

LOST_AFTER_S = 30.0
"""Seconds without a sign of life after which a process counts as lost; one that ends is noticed at once."""
START_TIMEOUT_S = 300.0
"""Seconds that processes wait for each other at the start."""

_TPU_PORT = 8482
_SLURM_PORTS = range(61_440, 65_534)
_LAST_PORT = 65_534  # The port above the coordinator's is used too.

Metadata = Callable[[str], str | None]
"""Key of a TPU VM's metadata -> its value; None where there is none."""


@dataclass(frozen=True)
class HostSettings:
    """Who this process is among those of a run.

    Attributes:
      num_processes: How many there are.
      process_id: Number of this one, from 0.
      coordinator_address: HOST:PORT of process 0, where JAX's processes meet; the port above it is where their
        supervisors do.
      source: What said so, in words.
      local_devices: Devices of this host that are this process's; None for all.
      lost_after_s: Seconds without a sign of life after which a process counts as lost.
      start_timeout_s: Seconds that processes wait for each other at the start.
    """

    num_processes: int = 1
    process_id: int = 0
    coordinator_address: str = ""
    source: str = "nothing says that there are others"
    local_devices: tuple[int, ...] | None = field(default=None)
    lost_after_s: float = LOST_AFTER_S
    start_timeout_s: float = START_TIMEOUT_S

    @property
    def coordinator(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, port = self.coordinator_address.rsplit(":", 1)
        return host.strip("[]"), int(port)

    @property
    def is_lead(self) -> bool:
        """Whether this is process 0, which writes."""
        return self.process_id == 0

    def described(self) -> str:
        """Who, of how many, from where: a line of the log."""
        if self.num_processes == 1:
            return f"one process ({self.source})"
        return (
            f"process {self.process_id} of {self.num_processes} ({self.source}); they meet at process 0, "
            f"{self.coordinator_address}"
        )

    def to_json(self) -> str:
        """As text, for the environment of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "HostSettings":
        """What `to_json` wrote."""
        values = json.loads(text)
        devices = values["local_devices"]
        return cls(**values | {"local_devices": None if devices is None else tuple(devices)})


def detect(
    flags: Mapping[str, str | int | None], environment: Mapping[str, str], metadata: Metadata = lambda key: None
) -> HostSettings:
    """Who this process is: from flags or their variables, else from SLURM, TPU or Kubernetes, else alone.

    Args:
      flags: `coordinator_address`, `num_processes` and `process_id`; None or absent where not given.
      environment: Variables of the process.
      metadata: Looks up a TPU VM's metadata; asked only where nothing else says who this process is.

    Raises:
      ConfigurationError: Values that contradict each other, are out of range or were given by halves.
    """
    found = _explicit(flags, environment) or _slurm(environment)
    if found is None and "tpu" in environment.get("JAX_PLATFORMS", "tpu").split(","):
        found = _tpu(environment, metadata)
    found = found or _kubernetes(environment) or {}
    return HostSettings(**found, **_durations(environment))


def _explicit(flags: Mapping[str, str | int | None], environment: Mapping[str, str]) -> dict[str, object] | None:
    given = {name: environment[variable] for name, variable in VARIABLES.items() if environment.get(variable)}
    origin = {name: VARIABLES[name] for name in given}
    for name, value in flags.items():
        if value is not None:
            given[name], origin[name] = value, f"--{name}"
    index = environment.get("JOB_COMPLETION_INDEX")
    if {ADDRESS, COUNT} <= set(given) and ID not in given and index is not None:
        given[ID], origin[ID] = index, "JOB_COMPLETION_INDEX"
    if not given:
        return None
    if COUNT in given and _number(given[COUNT], origin[COUNT], 1) == 1 and ID not in given:
        return {"source": f"{origin[COUNT]}=1"}
    if missing := [name for name in VARIABLES if name not in given]:
        there = ", ".join(f"{origin[name]}={given[name]}" for name in given)
        wanted = " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
        raise ConfigurationError(
            f"{there} is only a part of what several processes need: give {wanted} too, or none of the three."
        )
    return _checked(
        str(given[ADDRESS]), given[COUNT], given[ID], origin, " and ".join(dict.fromkeys(map(_kind, origin.values())))
    )


def _kind(origin: str) -> str:
    if origin.startswith("--"):
        return "flags"
    return "Kubernetes, an indexed job" if origin.startswith("JOB_") else "environment variables"


def _checked(
    address: str, count: object, number: object, origin: Mapping[str, str], source: str
) -> dict[str, object] | None:
    processes = _number(count, origin[COUNT], 1)
    process = _number(number, origin[ID], 0)
    if process >= processes:
        raise ConfigurationError(
            f"{origin[ID]}={process} with {origin[COUNT]}={processes}: processes are numbered from 0 to "
            f"{processes - 1}."
        )
    if processes == 1:
        return {"source": f"{origin[COUNT]}=1"}
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= _LAST_PORT or (":" in host and not host[0] == "["):
        raise ConfigurationError(
            f"{origin[ADDRESS]}={address!r} must be HOST:PORT of process 0 with a port from 1 to {_LAST_PORT}, such as "
            "10.0.0.1:8476; the port above it is used too."
        )
    return {COUNT: processes, ID: process, ADDRESS: address, "source": source}


def _number(value: object, origin: str, least: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise ConfigurationError(f"{origin}={value} must be a whole number of at least {least}.")
    return number


def _slurm(environment: Mapping[str, str]) -> dict[str, object] | None:
    """A step of several tasks; within `sbatch` or `salloc` alone, without `srun`, there is one process."""
    tasks, nodes = environment.get("SLURM_STEP_NUM_TASKS"), environment.get("SLURM_STEP_NODELIST")
    if tasks is None or _number(tasks, "SLURM_STEP_NUM_TASKS", 1) == 1:
        return None
    needed = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
    if missing := [name for name in needed if not environment.get(name)]:
        raise ConfigurationError(
            f"SLURM_STEP_NUM_TASKS={tasks} but {', '.join(missing)} is not set; start the command by srun, or pass "
            "--num_processes=1 for one process."
        )
    job = _number(environment["SLURM_JOB_ID"], "SLURM_JOB_ID", 0)
    port = _SLURM_PORTS[2 * job % len(_SLURM_PORTS)]
    origin = {ADDRESS: "SLURM_STEP_NODELIST", COUNT: "SLURM_STEP_NUM_TASKS", ID: "SLURM_PROCID"}
    found = _checked(f"{_first_node(nodes)}:{port}", tasks, environment["SLURM_PROCID"], origin, f"SLURM, job {job}")
    return found | {"local_devices": _slurm_devices(environment)}


def _first_node(nodes: str) -> str:
    """First host of `node001`, `node001,x`, `node[001-015],x` or `node[001,007-015]`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if match is None:
        raise ConfigurationError(f"SLURM_STEP_NODELIST={nodes!r} names no host; pass --coordinator_address=HOST:PORT.")
    return match[1] + (match[2] or "")


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPU of a task that shares its node with others and sees all GPUs; None where SLURM has dealt them itself."""
    on_node = re.match(
        r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE", ""))
    )
    if on_node is None or int(on_node[0]) == 1:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if "cuda" not in environment.get("JAX_PLATFORMS", "cuda") or visible.count(",") == 0:
        return None
    return (_number(environment["SLURM_LOCALID"], "SLURM_LOCALID", 0),)


def _tpu(environment: Mapping[str, str], metadata: Metadata) -> dict[str, object] | None:
    """Hosts of a TPU slice, or of several slices: variables on GKE, metadata on TPU VMs."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    number, kind = environment.get("TPU_WORKER_ID"), "TPU, TPU_WORKER_HOSTNAMES"
    if names is None and "TPU_SKIP_MDS_QUERY" not in environment:
        endpoints, number, kind = metadata("worker-network-endpoints"), metadata("agent-worker-number"), "TPU metadata"
        names = None if endpoints is None else ",".join(_endpoint(text) for text in endpoints.split(","))
    if not names:
        return None
    hosts = [name.strip().rsplit(":", 1)[0] if name.count(":") == 1 else name.strip() for name in names.split(",")]

    def slice_value(name: str) -> str | None:
        return environment.get(name) or (_tpu_env(metadata, name) if kind == "TPU metadata" else None)

    slices = _number(slice_value("MEGASCALE_NUM_SLICES") or 1, "MEGASCALE_NUM_SLICES", 1)
    if len(hosts) * slices == 1:
        return None
    if number is None:
        raise ConfigurationError(
            f"There are {len(hosts)} TPU hosts ({names}) but nothing says which this is: set TPU_WORKER_ID, or pass "
            "--coordinator_address, --num_processes and --process_id."
        )
    own = _number(number, "TPU_WORKER_ID", 0)
    own += len(hosts) * _number(slice_value("MEGASCALE_SLICE_ID") or 0, "MEGASCALE_SLICE_ID", 0)
    first = (slice_value("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    origin = {ADDRESS: "TPU_WORKER_HOSTNAMES", COUNT: "TPU_WORKER_HOSTNAMES", ID: "TPU_WORKER_ID"}
    return _checked(f"{first}:{_TPU_PORT}", len(hosts) * slices, own, origin, kind)


def _endpoint(text: str) -> str:
    """Host of an entry of worker-network-endpoints: a name, or name:id:ip."""
    return text.split(":")[-1].strip()


def _tpu_env(metadata: Metadata, name: str) -> str | None:
    """A value of the metadata entry tpu-env, whose lines read NAME: 'value'."""
    for line in (metadata("tpu-env") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip().strip("'\"") or None
    return None


def _kubernetes(environment: Mapping[str, str]) -> dict[str, object] | None:
    """An indexed job tells its pods their number and not how many there are."""
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is not None and _number(index, "JOB_COMPLETION_INDEX", 0) > 0:
        raise ConfigurationError(
            f"JOB_COMPLETION_INDEX={index}: this is one of several pods of an indexed job, which does not say how many "
            f"there are; set {VARIABLES[COUNT]} and {VARIABLES[ADDRESS]}=HOST_OF_POD_0:PORT in its manifest."
        )
    return None


def _durations(environment: Mapping[str, str]) -> dict[str, float]:
    durations = {}
    for name, variable in (("lost_after_s", LOST_AFTER_VARIABLE), ("start_timeout_s", START_TIMEOUT_VARIABLE)):
        if (text := environment.get(variable)) is None:
            continue
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 2 <= seconds < float("inf"):
            raise ConfigurationError(f"{variable}={text} must be seconds, at least 2.")
        durations[name] = seconds
    return durations
