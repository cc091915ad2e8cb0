"""``python -m matforge.vulcan …`` is ``matforge vulcan …``."""

import sys
from runpy import run_module

sys.argv.insert(1, "vulcan")
run_module("matforge", run_name="__main__")
