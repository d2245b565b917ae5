"""Runs the command line again and again, each time in a process of its own that need not import the libraries first.

`python command_driver.py` imports what every experiment needs, which takes seconds, then reads one JSON request a line
from standard input, forks a child that becomes `python -m recogdrive.main`, and answers with one JSON line. JAX starts
in the child; the parent only imports it. A request:

  arguments: what follows `recogdrive.main`.
  cwd, environment: of the child. Variables that libraries read while they are imported are those of this process.
  stdout, stderr: files for what the child writes.
  timeout_s: whole seconds after which the child is ended.

The answer: `exit`, the child's status, or minus the signal that ended it.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys

import recogdrive.composition
import recogdrive.stages


def become_the_command(request):
    """In the child: everything `python -m recogdrive.main` would find, then that."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, path in ((1, request["stdout"]), (2, request["stderr"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(request["timeout_s"])
    sys.path[0] = request["cwd"]
    sys.argv = ["recogdrive.main", *request["arguments"]]
    runpy.run_module("recogdrive.main", run_name="__main__", alter_sys=True)


def main():
    for module in pkgutil.iter_modules(recogdrive.stages.__path__, "recogdrive.stages."):
        importlib.import_module(module.name)
    assert "recogdrive.main" not in sys.modules
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            become_the_command(json.loads(line))
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
