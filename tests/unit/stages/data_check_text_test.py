"""A data check as text: what stands in which column, what is left out."""

import pytest

from recogdrive.data.disk_needs import disk_needs
from recogdrive.data.inventory import FilterFile, Inventory, LogFolder, MapFile, SensorFolder
from recogdrive.data.navsim_log import CAMERA_NAMES
from recogdrive.data.split_check import ImageCounts, SplitReport
from recogdrive.stages.data_check_text import check_text, size_text

ALL_CAMERAS = {name.upper(): 136 for name in CAMERA_NAMES}


def inventory(**changes):
    empty = {"logs": (), "sensors": (), "maps": (), "filters": (), "problems": ()}
    return Inventory(**{"data_root": "/data", "maps_root": "/data/maps"} | empty | changes)


def text(reports=(), found=None, free_bytes=10**12):
    needs = disk_needs({report.name: report.scenes_expected or report.scenes for report in reports}, free_bytes)
    return check_text(found or inventory(), reports, needs, free_bytes, "runs/check")


def lines_with(printed, word):
    return [" ".join(line.split()) for line in printed.splitlines() if word in line]


def test_the_table_of_splits_says_found_and_expected():
    report = SplitReport(
        "navtest",
        "test",
        logs=130,
        logs_expected=136,
        damaged={"log-z": "cut"},
        scenes=11_800,
        scenes_expected=12_146,
        gaps=2,
        first_gaps=("aa", "bb"),
        images={"cam_f0": ImageCounts(11_800, 3, 1), "cam_b0": ImageCounts(11_800, 0, 0)},
        problems=("6 of 136 logs are missing: x", "346 scenes"),
        parts={"train_logs": (5, None)},
    )
    printed = text([report])
    assert "navtest test 130 of 136 1 11,800 of 12,146 23,596 of 23,600 2 INCOMPLETE" in lines_with(printed, "navtest")
    assert lines_with(printed, "train_logs") == ["train_logs 5"]
    assert lines_with(printed, "cam_f0") == ["cam_f0 11,800 3 1"]
    assert lines_with(printed, "- ") == ["- 6 of 136 logs are missing: x", "- 346 scenes", "- damaged log-z: cut"]
    assert "2 scenes have frames that are not 0.5 s apart, e.g. aa, bb; NAVSIM takes them as they are" in printed


def test_columns_stand_under_their_titles():
    lines = text([SplitReport("a", "folder", scenes=1), SplitReport("much_longer", "f", scenes=12_345)]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Requested splits"))
    header, first, second = lines[start + 1 : start + 4]
    end = header.index("scenes") + len("scenes")
    assert first[:end].endswith(" 1") and second[:end].endswith("12,345")
    assert first.endswith("complete") and first.index("complete") == second.index("complete")


def test_images_are_listed_by_camera_only_where_some_are_missing():
    whole = SplitReport("a", "f", images={"cam_f0": ImageCounts(5, 0, 0)})
    assert "Images of a" not in text([whole]) and "5 of 5" in text([whole])


def test_a_long_list_of_damaged_logs_is_cut_and_the_rest_is_counted():
    damaged = {f"log-{i:02d}": "cut" for i in range(23)}
    printed = text([SplitReport("a", "f", damaged=damaged, problems=("damaged",))])
    assert "- damaged log-19: cut" in printed and "log-20" not in printed
    assert "- and 3 more damaged logs, all of them in data_check.json" in printed


def test_what_is_there_is_listed_in_one_table():
    printed = text(
        found=inventory(
            logs=(LogFolder("test", 136, 12_300_000_000), LogFolder("mini", problem="permission denied: /x")),
            sensors=(
                SensorFolder("test", 136, ALL_CAMERAS | {"MergedPointCloud": 130}),
                SensorFolder("mini", 64, {"CAM_F0": 64, "CAM_L0": 3}),
                SensorFolder("trainval", 2, {}),
            ),
            maps=(MapFile("us-ma-boston", "9.12.1817", 77_000_000), MapFile("sg-one-north", problem="No map of it")),
            filters=(FilterFile("navtest.yaml", "scene filter", "136 logs, 12,146 tokens"),),
            problems=("no folder /data/there",),
        )
    )
    for line in (
        "data root /data",
        "missing no folder /data/there",
        "logs of test 136 logs, 12.3 GB",
        "logs of mini permission denied: /x",
        "sensor data of test 136 logs: all 8 cameras, MergedPointCloud in 130",
        "sensor data of mini 64 logs: CAM_F0 in 64, CAM_L0 in 3, no lidar",
        "sensor data of trainval 2 logs: no camera, no lidar",
        "map of us-ma-boston version 9.12.1817, 77.0 MB",
        "map of sg-one-north No map of it",
        "scene filter navtest.yaml (136 logs, 12,146 tokens)",
    ):
        assert line in [" ".join(row.split()) for row in printed.splitlines()]


def test_a_cache_that_does_not_fit_the_free_disk_is_marked():
    report = SplitReport("navtrain", "trainval", scenes=10, scenes_expected=103_288)
    printed = text([report], free_bytes=10**12)
    assert lines_with(printed, "hidden states 2B, bfloat16") == ["hidden states 2B, bfloat16 8.6 MB 888 GB"]
    assert lines_with(printed, "hidden states 8B, bfloat16") == [
        "hidden states 8B, bfloat16 20.1 MB 2.1 TB more than is free"
    ]
    assert lines_with(printed, "official metric cache") == ["official metric cache 290 kB 30.0 GB"]
    assert "free: 1.0 TB at runs/check" in printed


@pytest.mark.parametrize(
    ("count", "words"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (99_950, "100 kB"), (999_499, "999 kB")),
        *((999_500, "1.0 MB"), (2_072_995_200_000, "2.1 TB"), (5 * 10**18, "5000 PB")),
    ],
)
def test_sizes_have_three_digits_and_a_unit(count, words):
    assert size_text(count) == words
