"""What of a command line all processes have in common."""

from recogdrive.hosts.command import _without_own


def test_flags_that_number_a_process_are_no_part_of_what_all_were_started_with():
    own = ["--process_id=1", "-num_processes=2", "--coordinator_address", "h:1"]
    assert _without_own([*own[:2], "--experiment=a", *own[2:], "--workdir", "b"]) == [
        "--experiment=a",
        "--workdir",
        "b",
    ]
