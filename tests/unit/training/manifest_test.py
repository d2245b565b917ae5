import json

import pytest

from recogdrive.training import manifest


@pytest.fixture
def sealed(tmp_path):
    """A checkpoint-like folder of three files and what Orbax touches after sealing."""
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "array").write_bytes(bytes(range(200)))
    (tmp_path / "state" / "empty").write_bytes(b"")
    (tmp_path / "loop.json").write_text("{}")
    (tmp_path / "_CHECKPOINT_METADATA").write_text("early")
    manifest.seal(tmp_path)
    return tmp_path


def test_an_untouched_folder_has_no_problems(sealed):
    assert manifest.problems(sealed) == []


def test_a_truncated_file_is_named_with_both_sizes(sealed):
    (sealed / "state/d/array").write_bytes(bytes(range(150)))
    assert manifest.problems(sealed) == ["state/d/array is truncated (150 of 200 bytes)"]


def test_a_longer_file_is_named(sealed):
    (sealed / "state/empty").write_bytes(b"x")
    assert manifest.problems(sealed) == ["state/empty is longer than saved (1 of 0 bytes)"]


@pytest.mark.parametrize("position", [0, 99, 199])
def test_one_flipped_bit_is_found(sealed, position):
    content = bytearray((sealed / "state/d/array").read_bytes())
    content[position] ^= 1
    (sealed / "state/d/array").write_bytes(content)
    assert manifest.problems(sealed) == ["state/d/array differs from what was saved (its checksum does not match)"]


def test_a_missing_file_is_named(sealed):
    (sealed / "loop.json").unlink()
    assert manifest.problems(sealed) == ["loop.json is missing"]


def test_every_fault_is_listed(sealed):
    (sealed / "loop.json").unlink()
    (sealed / "state/empty").write_bytes(b"x")
    assert len(manifest.problems(sealed)) == 2


def test_without_a_manifest_the_save_counts_as_incomplete(sealed):
    (sealed / manifest.MANIFEST).unlink()
    assert manifest.problems(sealed) == ["its manifest.json is missing, so the save was never completed"]


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"other": 1})])
def test_an_unreadable_manifest_is_a_problem(sealed, content):
    (sealed / manifest.MANIFEST).write_text(content)
    (found,) = manifest.problems(sealed)
    assert found.startswith("its manifest.json cannot be read")


def test_files_that_change_after_sealing_do_not_count(sealed):
    (sealed / "_CHECKPOINT_METADATA").write_text("late")
    (sealed / "commit_success.txt").write_text("done")
    assert manifest.problems(sealed) == []


def test_a_durable_write_leaves_no_temporary_file(tmp_path):
    manifest.write_durably(tmp_path / "a.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "text"
