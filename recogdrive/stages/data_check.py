"""What is there of NAVSIM's data, and whether the requested splits are complete."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin

from recogdrive.data.disk_needs import disk_needs
from recogdrive.data.inventory import take_inventory
from recogdrive.data.navsim_files import DATA_VARIABLE, find_data_root, find_maps_root
from recogdrive.data.navsim_log import CAMERA_NAMES
from recogdrive.data.split_check import SplitDefinition, SplitReport, check_splits
from recogdrive.run_folder import RunFolder, write_text
from recogdrive.stages.base import Description
from recogdrive.stages.data_check_text import check_text
from recogdrive.suggestions import did_you_mean

CHECK_FILE = "data_check.json"


class IncompleteDataError(ValueError):
    """A requested split lacks something; the message says which, and where to read what."""


@gin.register
class DataCheck:
    """Lists what lies under the data roots, reads every log of the requested splits and says what they lack.

    Args:
      splits: Names of the splits that have to be complete.
      known_splits: What the names mean.
      data_root: As for `NavsimScenes`.
      maps_root: As for `NavsimScenes`.
      cameras: Cameras (`cam_f0` ...) whose images of the current frames have to be there; empty to check none.
      history_images: Whether those of the history frames have to be there too.
      workers: Processes that read logs; by default one a core, and at most 16.

    Raises:
      ValueError: No split is requested, one is not known, two share a name, or a camera does not exist.
    """

    def __init__(
        self,
        splits: Sequence[str],
        known_splits: Sequence[SplitDefinition],
        *,
        data_root: str | None = None,
        maps_root: str | None = None,
        cameras: Sequence[str] = CAMERA_NAMES,
        history_images: bool = False,
        workers: int | None = None,
    ) -> None:
        by_name = {definition.name: definition for definition in known_splits}
        if len(by_name) < len(known_splits):
            raise ValueError(f"Two splits share a name: {[definition.name for definition in known_splits]}.")
        if isinstance(splits, str) or not splits:
            raise ValueError(f"splits={splits!r} must be a list of names, such as ('navtest',).")
        for name in splits:
            if name not in by_name:
                raise ValueError(f"There is no split {name!r} to check.{did_you_mean(str(name), by_name)}")
        if isinstance(cameras, str):
            raise ValueError(f"cameras={cameras!r} must be a list of names, such as ('cam_f0',).")
        for camera in cameras:
            if camera not in CAMERA_NAMES:
                raise ValueError(f"There is no camera {camera!r}.{did_you_mean(str(camera), CAMERA_NAMES)}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} must be positive.")
        self._splits = [by_name[name] for name in dict.fromkeys(splits)]
        self._data_root = data_root
        self._maps_root = maps_root
        self._cameras = tuple(cameras)
        self._history_images = history_images
        self._workers = workers

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Checks, prints the findings and writes them to `data_check.json`.

        Raises:
          IncompleteDataError: A requested split is not complete; everything is printed and written before.
          FileNotFoundError: There is no such data root.
          ValueError: No data root is named, or there is a parent.
        """
        if parent is not None:
            raise ValueError(f"{parent} would not be read: a data check starts from no run. Leave run.parent unset.")
        root = find_data_root(self._data_root)
        maps_root = find_maps_root(self._maps_root, root)
        inventory = take_inventory(root, maps_root)
        reports = check_splits(
            root,
            maps_root,
            self._splits,
            cameras=self._cameras,
            history_images=self._history_images,
            workers=self._workers,
        )
        free_bytes = shutil.disk_usage(folder.path).free
        needs = disk_needs({r.name: r.scenes_expected or r.scenes for r in reports}, free_bytes)
        record = {
            "complete": {report.name: report.complete for report in reports},
            "splits": [dataclasses.asdict(report) for report in reports],
            "inventory": dataclasses.asdict(inventory),
            "disk": {"free_bytes": free_bytes, "needs": [dataclasses.asdict(need) for need in needs]},
        }
        write_text(folder.path / CHECK_FILE, json.dumps(record, indent=2) + "\n")
        folder.update(data={report.name: _summary(report) for report in reports})
        sys.stdout.write("\n" + check_text(inventory, reports, needs, free_bytes, str(folder.path)) + "\n")
        sys.stdout.flush()
        incomplete = [report.name for report in reports if not report.complete]
        if incomplete:
            raise IncompleteDataError(
                f"{len(incomplete)} of {len(reports)} requested splits are incomplete: {', '.join(incomplete)}. What "
                f"they lack stands above and in {folder.path / CHECK_FILE}."
            )
        return {f"{report.name}/scenes": report.scenes for report in reports}

    def describe(self) -> Description:
        """Splits and where they are looked for."""
        data = {
            d.name: f"folder {d.split}, scene filter {d.scene_filter if isinstance(d.scene_filter, str) else 'given'}"
            for d in self._splits
        }
        root = self._data_root or f"the variable {DATA_VARIABLE}"
        images = ", ".join(self._cameras) or "none"
        return Description(data, notes=[f"data root: {root}", f"images checked: {images}"])


def _summary(report: SplitReport) -> str:
    state = "complete" if report.complete else f"incomplete: {'; '.join(report.problems)}"
    return f"{report.scenes:,} scenes in {report.logs:,} logs, {state}"
