"""What other processes take of the processors."""

import subprocess
import sys
import time

from samples import wait_for

from mmchar.measuring.machine import other_cores

BUSY = """
import sys, time
open(sys.argv[1], "w").write("x")
end = time.monotonic() + 60
while time.monotonic() < end:
    pass
"""


def test_the_work_of_another_process_is_seen_and_our_own_is_not(tmp_path):
    with other_cores() as quiet:
        end = time.process_time() + 1.0
        while time.process_time() < end:
            pass
    other = subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path / "started")])
    try:
        wait_for(tmp_path / "started")
        with other_cores() as beside:
            time.sleep(1.0)
    finally:
        other.kill()
        other.wait()
    # on a machine that is busy anyway both are high; ours alone adds nothing, the other process its share
    assert len(quiet) == len(beside) == 1 and quiet[0] >= 0
    assert beside[0] > 0.3
