"""Where there is no Chromium: tests are skipped in one line each, before any work, and the script says what to do."""

import os
import re
import subprocess
import sys

from mmchar.provenance import SOURCE

INSTALL = SOURCE / "tests" / "browser" / "install_chromium.sh"


def test_without_chromium_every_test_of_it_is_skipped_with_the_reason():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "browser", "tests/browser"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=SOURCE, env=plain | {"CHROMIUM": "chromiun"}, capture_output=True, text=True)
    skipped = re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)$", ran.stdout, re.MULTILINE)
    assert ran.returncode == 0 and re.search(r"^\d+ skipped, \d+ deselected in", ran.stdout, re.MULTILINE)
    assert sum(int(many) for many, _ in skipped) > 10
    said = "needs chromiun, which is not here: tests/browser/install_chromium.sh installs Chromium"
    assert {reason.startswith(said) for _, reason in skipped} == {True}


def test_the_script_says_in_one_line_what_to_do_where_it_cannot_install(tmp_path):
    nothing = {"PATH": str(tmp_path), "CHROMIUM": "chromiun"}
    ran = subprocess.run(["/bin/bash", INSTALL], env=nothing, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "no apt-get here: install Chromium your way and set CHROMIUM to its path\n"


def test_the_script_installs_nothing_where_a_browser_is():
    there = {"PATH": os.environ["PATH"], "CHROMIUM": "/bin/bash"}
    ran = subprocess.run([INSTALL], env=there, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "there already: /bin/bash\n", "")
