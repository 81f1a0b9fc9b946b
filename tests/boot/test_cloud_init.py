"""The seed read by cloud-init itself, from its package: its files as they lie on the disk that the guest mounts."""

import os
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.boot.conftest import build_guest
from tests.qemu.test_seeds import content
from tests.sandbox import ROOT, TINY, Machine

READER: Final = ROOT / "tests" / "guest" / "read_seed.py"
KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDN8f8yS2RYmVqnZ7XCCUgq1q2p8u4m3OU9fD5bYJQxW alice@example.net"
NETWORK: Final = {"version": 2, "ethernets": {"lan": {"match": {"driver": "virtio_net"}, "dhcp4": True}}}
EVERYTHING: Final = f"""
[cloud_init]
user_data = "user-data.yaml"
network = "network.yaml"
meta_data = "meta-data.yaml"
hostname = "front.example.net"
ssh_keys = ["{KEY}"]
"""


@pytest.fixture(scope="module")
def packages() -> Path:
    """Give where cloud-init's package and what it needs are unpacked."""
    return build_guest("cloud-init") / "cloud-init" / "usr" / "lib" / "python3" / "dist-packages"


def read(machine: Machine, packages: Path, table: str) -> Any:  # noqa: ANN401 - any document
    """Start a VM with a seed; give what cloud-init makes of it."""
    place = machine.define("web", f"{TINY}{table}").parent
    (place / "user-data.yaml").write_text("#cloud-config\npackages: [jq]\n")
    (place / "network.yaml").write_text("version: 2\nethernets: {lan: {match: {driver: virtio_net}, dhcp4: true}}\n")
    (place / "meta-data.yaml").write_text("region: north\n")
    machine.ok("up", "web", "--paused")
    state = machine.directory / "cloud"
    seed = state / "seed" / "nocloud"
    seed.mkdir(parents=True)
    for name, text in content(machine.outside("/var/lib/kvmlaunch/vm/web/seed.iso")).items():
        (seed / name).write_bytes(text)
    result = machine.execute(sys.executable, READER, state, env={"PYTHONPATH": os.fspath(packages)})
    assert result.code == 0, result.err
    return result.json


def test_cloud_init_finds_a_seed_and_takes_the_tuning_for_a_script(machine: Machine, packages: Path) -> None:
    found = read(machine, packages, "[cloud_init]\nenabled = true\n")

    assert found["seed"].endswith("/seed/nocloud")
    assert found["instance"] == machine.record("web")["uuid"]
    assert found["hostname"] == "web"
    assert found["keys"] == []
    assert found["vendor"] == ["text/x-shellscript"]


def test_cloud_init_takes_everything_that_a_definition_says(machine: Machine, packages: Path) -> None:
    found = read(machine, packages, EVERYTHING)

    assert found["hostname"] == "front"
    assert found["keys"] == [KEY]
    assert found["network"] == NETWORK
    assert found["region"] == "north"
    assert found["user"] == ["text/cloud-config"]
    assert found["vendor"] == ["text/x-shellscript"]  # which the lists of the user's configuration do not replace
