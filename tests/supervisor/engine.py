"""`python -m tests.supervisor.engine`: a supervisor of the small services in this folder."""

import os

from mooring.supervisor import __main__, child, programs

child.WATCHDOG = float(os.environ.get("MOORING_TEST_WATCHDOG", "30"))

programs.SERVICES = {
    "worker": "tests.supervisor.worker",
    "gateway": "tests.supervisor.gateway",
}
programs.ON_DEMAND = {"network": "tests.supervisor.sleeper"}

if __name__ == "__main__":
    __main__.main()
