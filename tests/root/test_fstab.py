"""fstab on file systems that take no new text: full, and read-only."""

import sys
from typing import Final

import pytest

from tests.sandbox import Machine

CODE: Final = """
import pathlib
from kvmlaunch.errors import PreflightFailed
from kvmlaunch.host.fstab import set_region
try:
    set_region(pathlib.Path("/srv/fstab"), ["# ours"])
except PreflightFailed as error:
    print(error.report.code, error.report.message)
"""
FULL: Final = (
    "mount -t tmpfs -o size=8k,mode=755 tmpfs /srv; echo '# theirs' > /srv/fstab; head -c 4096 /dev/zero > /srv/x"
)
READ_ONLY: Final = "mount -t tmpfs -o mode=755 tmpfs /srv; echo '# theirs' > /srv/fstab; mount -o remount,ro /srv"


@pytest.mark.parametrize(("layout", "words"), [(FULL, "No space left on device"), (READ_ONLY, "Read-only file system")])
def test_where_nothing_can_be_written_the_file_stays_and_nothing_lies_beside_it(
    machine: Machine, layout: str, words: str
) -> None:
    laid_out = machine.execute("sh", "-euc", layout)

    result = machine.execute(sys.executable, "-c", CODE)
    place = machine.outside("/srv")

    assert laid_out.code == 0, laid_out.err
    assert result.out == f"host.space /srv/fstab: {words}\n", result.err
    assert (place / "fstab").read_text() == "# theirs\n"
    assert sorted(path.name for path in place.iterdir() if path.name != "x") == ["fstab"]
