"""Who a process is, from environments as those that start processes make them."""

import pytest

from recogdrive.experiment import ConfigurationError
from recogdrive.hosts.settings import HostSettings, detect

SLURM = {
    "SLURM_JOB_ID": "1001",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08,12],x3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a.svc,b.svc,c.svc,d.svc", "TPU_WORKER_ID": "2"}
FLAGS = {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}


def who(environment, flags=(), metadata=lambda key: None):
    found = detect(dict(flags), environment, metadata)
    return found.process_id, found.num_processes, found.coordinator_address


def refusal(environment, flags=()):
    with pytest.raises(ConfigurationError) as error:
        detect(dict(flags), environment)
    return str(error.value)


def test_without_anything_there_is_one_process():
    assert detect({}, {}) == HostSettings()


def test_flags_say_it():
    assert who({}, FLAGS) == (3, 4, "10.0.0.1:8476")


def test_flags_go_before_variables_and_these_before_everything_else():
    variables = {
        "RECOGDRIVE_COORDINATOR_ADDRESS": "h:1000",
        "RECOGDRIVE_NUM_PROCESSES": "2",
        "RECOGDRIVE_PROCESS_ID": "1",
    }
    assert who(SLURM | variables) == (1, 2, "h:1000")
    assert who(SLURM | variables, {"process_id": 0}) == (0, 2, "h:1000")


def test_one_process_may_be_asked_for_within_a_slurm_step():
    assert who(SLURM, {"num_processes": 1}) == (0, 1, "")


def test_half_of_the_values_are_refused_with_the_other_half():
    message = refusal({}, {"num_processes": 2, "process_id": 0})
    assert "--num_processes=2" in message and "RECOGDRIVE_COORDINATOR_ADDRESS" in message


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"process_id": 4}, "numbered from 0 to 3"),
        ({"process_id": -1}, "--process_id=-1"),
        ({"num_processes": 0}, "--num_processes=0"),
        ({"coordinator_address": "host"}, "HOST:PORT"),
        ({"coordinator_address": "host:65535"}, "HOST:PORT"),
        ({"coordinator_address": "::1:80"}, "HOST:PORT"),
    ],
)
def test_values_that_cannot_be_are_named(changed, named):
    assert named in refusal({}, FLAGS | changed)


def test_an_address_of_ipv6_has_brackets():
    assert detect(FLAGS | {"coordinator_address": "[::1]:80"}, {}).coordinator == ("::1", 80)


def test_a_slurm_step_tells_number_count_and_first_node():
    assert who(SLURM) == (9, 16, "gpu07:63442")


@pytest.mark.parametrize(("nodes", "first"), [("n1", "n1"), ("n1,n2", "n1"), ("n[1-9]", "n1"), ("n[04,07],x", "n04")])
def test_the_first_node_of_a_list(nodes, first):
    assert who(SLURM | {"SLURM_STEP_NODELIST": nodes})[2].startswith(f"{first}:")


def test_ports_of_any_slurm_job_are_even_and_exist():
    addresses = [who(SLURM | {"SLURM_JOB_ID": str(job)})[2] for job in range(5000)]
    ports = [int(address.split(":")[1]) for address in addresses]
    assert all(61_440 <= port <= 65_532 and port % 2 == 0 for port in ports)


def test_a_slurm_allocation_without_a_step_is_one_process():
    assert who({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == (0, 1, "")


def test_a_task_that_sees_all_gpus_of_its_node_takes_its_own():
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    assert detect({}, SLURM | gpus).local_devices == (1,)
    assert detect({}, SLURM | {"CUDA_VISIBLE_DEVICES": "3"}).local_devices is None
    assert detect({}, SLURM | gpus | {"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}).local_devices is None


def test_an_incomplete_slurm_step_is_refused():
    assert "SLURM_PROCID" in refusal({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"})


def test_variables_of_gke_tell_the_hosts_of_a_slice():
    assert who(GKE) == (2, 4, "a.svc:8482")


def test_slices_are_counted_one_after_the_other():
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first.svc:8080"}
    assert who(GKE | slices) == (6, 8, "first.svc:8482")


def test_one_tpu_host_is_one_process():
    assert who({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) == (0, 1, "")


def test_a_tpu_host_that_does_not_know_its_number_is_refused():
    assert "TPU_WORKER_ID" in refusal({"TPU_WORKER_HOSTNAMES": "a,b"})


def test_a_run_on_the_cpu_of_a_tpu_host_is_alone():
    assert who(GKE | {"JAX_PLATFORMS": "cpu"}) == (0, 1, "")


@pytest.mark.parametrize("endpoints", ["10.0.0.1,10.0.0.2", "x:y:10.0.0.1,x:y:10.0.0.2"])
def test_metadata_of_a_tpu_vm_tells_the_hosts_of_a_slice(endpoints):
    metadata = {"worker-network-endpoints": endpoints, "agent-worker-number": "1"}
    assert who({}, metadata=metadata.get) == (1, 2, "10.0.0.1:8482")


def test_metadata_tells_the_slice():
    text = "ACCELERATOR_TYPE: 'v6e-8'\nMEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\n"
    metadata = {"worker-network-endpoints": "10.0.0.1,10.0.0.2", "agent-worker-number": "0", "tpu-env": text}
    assert who({}, metadata=metadata.get)[:2] == (4, 6)


def test_a_pod_of_an_indexed_job_takes_its_number_from_it():
    variables = {"RECOGDRIVE_COORDINATOR_ADDRESS": "job-0.svc:8476", "RECOGDRIVE_NUM_PROCESSES": "2"}
    assert who(variables | {"JOB_COMPLETION_INDEX": "1"}) == (1, 2, "job-0.svc:8476")


def test_a_later_pod_of_an_indexed_job_never_runs_alone():
    assert "RECOGDRIVE_NUM_PROCESSES" in refusal({"JOB_COMPLETION_INDEX": "1"})
    assert who({"JOB_COMPLETION_INDEX": "0"}) == (0, 1, "")


def test_settings_say_who_of_how_many_and_where_from():
    assert detect(FLAGS, {}).described() == "process 3 of 4 (flags); they meet at process 0, 10.0.0.1:8476"


def test_durations_come_from_variables():
    assert detect({}, {"RECOGDRIVE_LOST_AFTER_S": "12.5"}).lost_after_s == 12.5
    assert "RECOGDRIVE_LOST_AFTER_S=soon" in refusal({"RECOGDRIVE_LOST_AFTER_S": "soon"})


def test_settings_survive_the_way_to_another_process():
    settings = detect({}, SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert HostSettings.from_json(settings.to_json()) == settings
