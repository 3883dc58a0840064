"""The systemd units: they run what is there, as the page says, and have no rights that they do not need."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mailroom.cli import COMMANDS
from tests.services.processes import PROJECT

UNITS = sorted((PROJECT / "deploy" / "systemd").glob("*.service"))
INSTALL = (PROJECT / "docs" / "install.md").read_text()
#: The most that `systemd-analyze security` may say, of 10.
EXPOSURE_MAX = 3.0
#: What differs between the units.
OWN = ("Description", "After", "Wants", "ExecStart", "TimeoutStopSec", "RestrictAddressFamilies")


def options(unit: Path) -> list[tuple[str, str]]:
    return re.findall(r"^([A-Za-z]+)=(.*)$", unit.read_text(), re.MULTILINE)


def test_there_is_a_unit_for_web_worker_and_inbox() -> None:
    assert [unit.stem for unit in UNITS] == [
        "mailasync-inbox",
        "mailasync-web",
        "mailasync-worker",
    ]
    for unit in UNITS:
        name = unit.stem.removeprefix("mailasync-")
        assert dict(options(unit))["ExecStart"] == f"/opt/mailasync/bin/mailasync {name}"
        assert name in {command.name for command in COMMANDS}
        assert f"| `{unit.stem}` | `mailasync {name}`" in INSTALL


def test_the_units_are_hardened_alike() -> None:
    [common] = {tuple(option for option in options(unit) if option[0] not in OWN) for unit in UNITS}
    hardened = dict(common)
    assert hardened["NoNewPrivileges"] == "yes"
    assert hardened["ProtectSystem"] == "strict"
    assert hardened["CapabilityBoundingSet"] == ""
    assert hardened["Environment"] == "MAILASYNC_HOME=/var/lib/mailasync"
    assert hardened["StateDirectory"] == "mailasync"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_the_units_are_hardened(unit: Path) -> None:
    if not shutil.which("systemd-analyze"):
        return  # A Mac has none; the test above holds there as well.
    analyze = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    told = subprocess.run(analyze, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"Overall exposure level for [^:]+: ([0-9.]+)", told)
    assert found, told
    assert float(found[1]) <= EXPOSURE_MAX
