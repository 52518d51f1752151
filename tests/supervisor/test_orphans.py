"""Processes that lost their parent are buried by the supervisor."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import os, signal, sys, time
from mooring.supervisor import orphans
orphans.adopt()
own = os.fork()
if not own:
    os._exit(3)
middle = os.fork()
if not middle:
    if os.fork():
        os._exit(0)
    os._exit(7)
os.waitpid(middle, 0)
buried = []
while len(buried) < 1:
    buried += orphans.bury({own})
    time.sleep(0.001)
assert os.waitstatus_to_exitcode(os.waitpid(own, 0)[1]) == 3
try:
    os.wait()
except ChildProcessError:
    print("all buried")
"""


def test_orphans_are_buried_and_own_children_left_to_who_waits_for_them() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=20
    )
    assert done.stdout == "all buried\n", done.stderr
