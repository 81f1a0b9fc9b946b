"""`preflight --all` and `validate --together`: all definitions at once on this host, those that run among them."""

from tests.sandbox import TINY, Machine

# Beside no other VM, so that a test rests on none of this host's numbers.
WEB = TINY.replace('type = "none"', 'forwards = ["tcp:127.0.0.1:48080:80"]')


def test_preflight_all_names_the_vm_that_does_not_fit(machine: Machine) -> None:
    for name in ("a", "b", "c"):
        machine.define(name, TINY if name == "c" else WEB)

    result = machine.run("preflight", "--all")

    assert result.code == 6, result.err
    assert result.codes >= {"host.port.used"}
    assert "b  FAIL  preflight   1 problem" in result.err
    assert "a  ok    preflight" in result.err
    assert "c  ok    preflight" in result.err
    assert machine.leftovers() == []


def test_preflight_without_all_looks_at_each_vm_alone(machine: Machine) -> None:
    machine.define("a", WEB)
    machine.define("b", WEB)

    assert machine.ok("preflight").code == 0
    assert machine.ok("preflight", "a", "b").code == 0
    assert machine.run("preflight", "a", "b", "--all").code == 6


def test_preflight_all_as_json_says_who_fits(machine: Machine) -> None:
    machine.define("a", WEB)
    machine.define("b", WEB)

    result = machine.run("preflight", "--all", "--json")

    assert result.code == 6
    assert [(vm["name"], vm["ok"], vm["fits"]) for vm in result.json["vms"]] == [("a", True, True), ("b", False, False)]
    (conflict,) = (found for found in result.json["vms"][1]["findings"] if found["severity"] == "error")
    assert (conflict["code"], conflict["key"]) == ("host.port.used", "network.lan.forwards")
    assert conflict["where"].endswith("b.toml:8:12 network.lan.forwards")


def test_a_vm_that_runs_keeps_what_it_has_whatever_the_order(machine: Machine) -> None:
    machine.define("a", WEB, image=True)
    machine.define("b", f'{WEB}[disk.root]\npath = "a.img"\n')
    machine.ok("up", "b")

    result = machine.run("validate", "--together", "--json")

    rows = result.json["definitions"]
    assert result.code == 6
    assert [(row["name"], row["fits"]) for row in rows] == [("a", False), ("b", True)]
    assert [found["code"] for found in rows[0]["findings"]] == ["host.port.used", "disk.locked"]
    machine.end("b")


def test_a_vm_that_runs_fits_beside_itself(machine: Machine) -> None:
    machine.define("a", WEB, image=True)
    machine.ok("up", "a")

    assert machine.ok("preflight", "--all").code == 0
    assert machine.ok("validate", "--together").code == 0
    machine.end("a")


def test_a_broken_definition_stops_none_of_the_others(machine: Machine) -> None:
    machine.define("a", "vcpu = 1\n")
    machine.define("b", WEB)
    machine.define("c", WEB)

    result = machine.run("preflight", "--all", "--json")

    broken, first, second = result.json["vms"]
    assert result.code == 1  # one is broken, 5, another does not fit, 6
    assert broken["error"]["code"] == "def.key.unknown"
    assert (first["fits"], second["fits"]) == (True, False)


def test_without_a_qemu_each_vm_is_told_so(machine: Machine) -> None:
    machine.define("a", f'{TINY}[qemu]\nbinary = "/nowhere"\n')

    result = machine.run("validate", "--together")

    assert result.code == 6
    assert result.codes >= {"qemu.missing"}


def test_all_only_checks(machine: Machine) -> None:
    assert machine.run("preflight", "--all", "--apply").code == 2
    assert machine.run("preflight", "--all", "--undo").code == 2
