"""A data check as text for a terminal."""

from collections.abc import Iterable, Sequence

from recogdrive.data.disk_needs import DiskNeed
from recogdrive.data.inventory import Inventory, LogFolder, SensorFolder
from recogdrive.data.navsim_log import CAMERA_NAMES
from recogdrive.data.split_check import SplitReport

_LIDAR = "MergedPointCloud"
_DAMAGED_SHOWN = 20
_INDENT = "  "


def check_text(
    inventory: Inventory, reports: Sequence[SplitReport], needs: Sequence[DiskNeed], free_bytes: int, free_at: str
) -> str:
    """The whole check, section by section; the requested splits and what they lack come last, where eyes are."""
    sections = [
        ("Found", _found(inventory)),
        ("Disk that caches take", _needs(needs, free_bytes, free_at)),
        ("Requested splits", _splits(reports)),
        *((f"Images of {r.name}", _images(r)) for r in reports if _lacking(r)),
        *((f"{r.name} is incomplete", _problems(r)) for r in reports if not r.complete),
    ]
    return "\n\n".join(f"{title}\n{_indented(body)}" for title, body in sections) + "\n"


def size_text(count: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point: 290 kB, 1.5 TB (powers of 1000)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 99.95 or units[0] == "B" else f"{value:.1f} {units[0]}"


def _found(inventory: Inventory) -> list[str]:
    rows = [("data root", inventory.data_root), ("map root", inventory.maps_root)]
    rows += [("missing", problem) for problem in inventory.problems]
    rows += [(f"logs of {f.split}", _log_folder(f)) for f in inventory.logs]
    rows += [(f"sensor data of {f.split}", _sensor_folder(f)) for f in inventory.sensors]
    rows += [(f"map of {m.city}", m.problem or f"version {m.version}, {size_text(m.bytes)}") for m in inventory.maps]
    rows += [(f.kind, f"{f.path} ({f.content})") for f in inventory.filters]
    return _table(rows)


def _log_folder(folder: LogFolder) -> str:
    return folder.problem or f"{folder.logs:,} logs, {size_text(folder.bytes)}"


def _sensor_folder(folder: SensorFolder) -> str:
    """All sensors in one phrase where every log has them; else how many logs have each."""
    cameras = {name.upper(): folder.sensors.get(name.upper(), 0) for name in CAMERA_NAMES}
    others = {name: count for name, count in folder.sensors.items() if name not in cameras}
    if all(count == folder.logs for count in cameras.values()) and folder.logs:
        words = [f"all {len(cameras)} cameras"]
    else:
        words = [f"{name} in {count:,}" for name, count in cameras.items() if count] or ["no camera"]
    words += [f"{name} in {count:,}" for name, count in others.items()]
    words += [] if _LIDAR in others else ["no lidar"]
    words += [folder.problem] if folder.problem else []
    return f"{folder.logs:,} logs: {', '.join(words)}"


def _needs(needs: Sequence[DiskNeed], free_bytes: int, free_at: str) -> list[str]:
    splits = list(needs[0].bytes) if needs else []
    rows = [("cache", "a scene", *splits, "")]
    for need in needs:
        note = "" if need.fits else "more than is free"
        sizes = [size_text(need.bytes[split]) for split in splits]
        rows.append((need.cache.name, size_text(need.cache.scene_bytes), *sizes, note))
    return [*_table(rows, right=range(1, 2 + len(splits))), f"free: {size_text(free_bytes)} at {free_at}"]


def _splits(reports: Sequence[SplitReport]) -> list[str]:
    rows = [("split", "folder", "logs", "damaged", "scenes", "images", "time gaps", "")]
    for report in reports:
        wanted = sum(count.wanted for count in report.images.values())
        rows.append(
            (
                report.name,
                report.folder,
                _of(report.logs, report.logs_expected),
                f"{len(report.damaged):,}",
                _of(report.scenes, report.scenes_expected),
                _of(wanted - _lacking(report), wanted) if wanted else "-",
                f"{report.gaps:,}",
                "complete" if report.complete else "INCOMPLETE",
            )
        )
        rows += [(f"{_INDENT}{part}", "", "", "", _of(*counts), "", "", "") for part, counts in report.parts.items()]
    lines = _table(rows, right=range(2, 7))
    for report in reports:
        if report.gaps:
            lines.append(
                f"{report.name}: {report.gaps:,} scenes have frames that are not 0.5 s apart, e.g. "
                f"{', '.join(report.first_gaps)}; NAVSIM takes them as they are."
            )
    return lines


def _lacking(report: SplitReport) -> int:
    return sum(count.missing + count.empty for count in report.images.values())


def _images(report: SplitReport) -> list[str]:
    rows = [("camera", "needed", "missing", "empty")]
    for camera in CAMERA_NAMES:
        if camera in report.images:
            count = report.images[camera]
            rows.append((camera, f"{count.wanted:,}", f"{count.missing:,}", f"{count.empty:,}"))
    return _table(rows, right=range(1, 4))


def _problems(report: SplitReport) -> list[str]:
    lines = [f"- {problem}" for problem in report.problems]
    damaged = list(report.damaged.items())
    lines += [f"- damaged {log}: {reason}" for log, reason in damaged[:_DAMAGED_SHOWN]]
    if len(damaged) > _DAMAGED_SHOWN:
        lines.append(f"- and {len(damaged) - _DAMAGED_SHOWN:,} more damaged logs, all of them in data_check.json")
    return lines


def _of(found: int, expected: int | None) -> str:
    return f"{found:,}" if expected is None else f"{found:,} of {expected:,}"


def _table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Columns as wide as their widest cell; those of `right` set to the right."""
    right = set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(_INDENT + line for line in lines)
