"""A TPM in a real guest: seen as TPM 2.0, its state kept from one start to the next."""

from tests.boot.conftest import NO_NETWORK, Define
from tests.sandbox import Machine

TPM = "\n[firmware]\ntpm = true\n"
SCRIPT = """
tpm=/sys/class/tpm/tpm0
echo "tpm: version $(cat $tpm/tpm_version_major)"
echo "tpm: pcr $(cat $tpm/pcr-sha256/0)"
"""


def test_a_guest_sees_a_tpm_2_and_finds_its_state_again(machine: Machine, define: Define) -> None:
    define(script=SCRIPT, more=f"{NO_NETWORK}{TPM}")
    kept = machine.outside("/var/lib/kvmlaunch/vm/web/tpm/tpm2-00.permall")

    for _ in range(2):
        machine.ok("up", "web", "--wait", "ready")
        machine.ok("down", "web")
    said = machine.ok("logs", "web").out

    assert said.count("tpm: version 2") == 2
    assert said.count("tpm: pcr ") == 2
    assert kept.stat().st_mode & 0o777 == 0o600
    assert machine.leftovers() == []
