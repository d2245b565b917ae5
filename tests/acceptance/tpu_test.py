"""The real sizes against the TPU compiler, none of whose chips are here; 2B on four chips is in the unit tests."""

import pytest

from recogdrive.ahead_of_time import table
from recogdrive.ahead_of_time.chips import GIB

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(
    ("name", "most_gib"), [("8b_sft_v6e_8", 20), ("2b_sft_v6e_256", 31.24), ("8b_sft_v6e_256", 31.24)]
)
def test_fine_tuning_fits(name, most_gib):
    pytest.importorskip("libtpu")
    (line,) = [line for line in table.lines() if line.name == name]
    found = table.compiled(line)
    assert found.fits and found.total_bytes <= most_gib * GIB
    assert found.windowed_einsums == 0
