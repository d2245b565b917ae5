"""Whether this machine can run what it is meant to: what was found, and what to do about each finding."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import gin

from recogdrive.pdm.machine import machine_stamp
from recogdrive.run_folder import RunFolder, versions, write_text
from recogdrive.stages import doctor_devices, doctor_machine, doctor_software
from recogdrive.stages.base import Description
from recogdrive.stages.doctor_findings import Finding, Level, doctor_text

DOCTOR_FILE = "doctor.json"


class UnfitMachineError(ValueError):
    """Something makes every run impossible; the report says what, and what to do."""


@gin.register
class Doctor:
    """Looks at devices, versions, torch and JAX together, linear algebra, memory, disk and data; changes nothing.

    Args:
      data_root: As for `NavsimScenes`.
      maps_root: As for `NavsimScenes`.
    """

    def __init__(self, data_root: str | None = None, maps_root: str | None = None) -> None:
        self._data_root = data_root
        self._maps_root = maps_root

    def run(self, folder: RunFolder, parent: Path | None) -> Mapping[str, float]:
        """Looks, prints a report and writes it to `doctor.json`.

        Raises:
          UnfitMachineError: A finding makes every run impossible; everything is printed and written before.
        """
        del parent
        findings = self.examine(folder.path)
        fatal = [finding for finding in findings if finding.level is Level.FATAL]
        record = {
            "runs_possible": not fatal,
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "versions": versions(),
            "machine": machine_stamp(),
        }
        write_text(folder.path / DOCTOR_FILE, json.dumps(record, indent=2) + "\n")
        sys.stdout.write("\n" + doctor_text(findings) + "\n")
        sys.stdout.flush()
        if fatal:
            raise UnfitMachineError(
                f"No experiment can run here: {'; '.join(finding.found for finding in fatal)}. What to do stands above "
                f"and in {folder.path / DOCTOR_FILE}."
            )
        return {level.value: sum(finding.level is level for finding in findings) for level in Level}

    def examine(self, folder: Path) -> list[Finding]:
        """All findings, by area.

        Args:
          folder: Where runs would write.
        """
        checks = {
            "software": [doctor_software.check_packages, doctor_software.check_torchvision],
            "torch, torchax, JAX": [doctor_software.check_pairing],
            "devices": [
                doctor_devices.check_devices,
                doctor_devices.check_unused_devices,
                doctor_devices.check_cuda_libraries,
                doctor_devices.check_variables,
            ],
            "linear algebra": [doctor_machine.check_blas],
            "memory": [doctor_machine.check_memory, doctor_machine.check_open_files],
            "disk": [lambda: doctor_machine.check_disk(folder), doctor_machine.check_compile_cache],
            "data": [lambda: doctor_machine.check_data(self._data_root, self._maps_root)],
        }
        findings: list[Finding] = []
        for area, functions in checks.items():
            for function in functions:
                try:
                    found = function()
                except Exception as error:  # A check that breaks is a finding; the others are still worth having.
                    remedy = "Tell the developers of recogdrive, with this report."
                    found = [Finding(Level.WARNING, f"a check broke: {type(error).__name__}: {error}", remedy)]
                findings += [dataclasses.replace(finding, area=area) for finding in found]
        return findings

    def describe(self) -> Description:
        """What is looked at."""
        return Description(notes=["looks at devices, versions, linear algebra, memory, disk and data; changes nothing"])
