"""``python3 -m mmchar``: the shell command from a checkout that is not installed."""

import sys

from mmchar.cli.main import main

sys.exit(main())
