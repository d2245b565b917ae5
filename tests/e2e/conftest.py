"""The command line for tests that look at what it answers rather than at how a process starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("command_driver.py")


@pytest.fixture(scope="session")
def forked_command(tmp_path_factory):
    """Function: flags, cwd, bindings, environment -> finished process of `recogdrive.main`, as `subprocess.run` gives.

    Variables of the environment add to those there are, None takes one away. The process is forked from one that has
    imported the libraries; at least one test of every module starts `python -m recogdrive.main` itself.
    """
    files = tmp_path_factory.mktemp("forked_command")
    driver = subprocess.Popen([sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert json.loads(driver.stdout.readline())["ready"]

    def run(*flags, cwd, bindings=(), environment=(), timeout=240):
        arguments = [*flags, *(f"--gin_bindings={binding}" for binding in bindings)]
        out, errors = files / "stdout", files / "stderr"
        request = {"arguments": arguments, "cwd": str(cwd), "timeout_s": timeout, "stdout": str(out)}
        variables = os.environ | dict(environment)
        variables = {name: value for name, value in variables.items() if value is not None}
        request |= {"stderr": str(errors), "environment": variables}
        driver.stdin.write(json.dumps(request) + "\n")
        driver.stdin.flush()
        status = json.loads(driver.stdout.readline())["exit"]
        return subprocess.CompletedProcess(arguments, status, out.read_text(), errors.read_text())

    yield run
    driver.stdin.close()
    driver.wait(timeout=60)
