"""Cases: a definition, the host and the QEMU that it meets, and what kvmlaunch makes of them.

A case is a directory of `tests/cases`.  `vm.toml` is the definition.  `case.toml` says what it meets:

    why          one sentence: what the case is there for
    host, qemu   a directory of tests/hosts, one of tests/qemus
    file         the path that the text is loaded under, /srv/vm/NAME.toml when it is not written
    definition   a file beside the case directory's own in place of vm.toml, relative to the case
    texts        path → file of the case: the templates that `extends` names
    overrides    KEY=VALUE of --set
    environment  what ${env:NAME} sees
    boot_from    `cdrom.NAME` of `up --boot`; paused: `up --paused`
    running      the pid of this VM's QEMU, which runs already
    node         the host's NUMA node that this VM's memory is on already
    refused      what the kernel said when hugepages were tried for
    no_user      why root is left to itself, as there is no system user
    runtime      XDG_RUNTIME_DIR of a user

`argv.txt` and `findings.txt` are what is expected.  A case with an error has no argv.txt.  No path of the machine that
runs the tests takes part.
"""

import shlex
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from attrs import evolve, field, frozen

from kvmlaunch.builder.option import render_option
from kvmlaunch.builder.vm import build_vm, wanted_paths
from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Loaded, Surroundings, load_definition
from kvmlaunch.facts.qemu import parse_answers
from kvmlaunch.facts.sources import parse_captured
from kvmlaunch.host.places import root_places, user_places
from kvmlaunch.host.qemu_probe import load_answers
from kvmlaunch.host.saved import load_capture
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding, errors_of
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Places, Plan
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.preflight.checks import check_plan
from kvmlaunch.steps.load import profiles
from kvmlaunch.steps.resolve import mount_held

TESTS: Final = Path(__file__).resolve().parent
CASES: Final = TESTS / "cases"
ARGV, FINDINGS = "argv.txt", "findings.txt"


@frozen(kw_only=True)
class Case:
    """A case as its two files say it."""

    name: str
    text: str
    host: str
    qemu: str
    why: str
    file: PurePosixPath
    texts: Mapping[PurePosixPath, str] = field(factory=dict)
    overrides: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)
    boot_from: str = ""
    paused: bool = False
    running: int | None = None
    node: int | None = None
    refused: str = ""
    no_user: str = ""
    runtime: str = ""

    @property
    def vm(self) -> str:
        """The VM's name: that of its file."""
        return self.file.name.removesuffix(".toml")


@frozen(kw_only=True)
class Outcome:
    """What kvmlaunch makes of a case; `plan` is None when the definition is wrong by itself."""

    case: Case
    loaded: Loaded
    host: HostFacts
    caps: QemuCaps
    places: Places
    findings: tuple[Finding, ...]
    plan: Plan | None = None

    @property
    def refused(self) -> bool:
        """Is there an error, so that nothing is started."""
        return bool(errors_of(self.findings))


def case_names() -> tuple[str, ...]:
    """Give the names of all cases."""
    return tuple(sorted(path.name for path in CASES.iterdir() if path.is_dir()))


@cache
def load_case(name: str) -> Case:
    """Give a case; an unknown key in case.toml is a TypeError."""
    place = CASES / name
    words: dict[str, Any] = tomllib.loads((place / "case.toml").read_text(encoding="utf-8"))
    text = (place / words.pop("definition", "vm.toml")).read_text(encoding="utf-8")
    texts = {
        PurePosixPath(path): (place / file).read_text(encoding="utf-8") for path, file in words.pop("texts", {}).items()
    }
    file = PurePosixPath(words.pop("file", f"/srv/vm/{name}.toml"))
    overrides = tuple(words.pop("overrides", ()))
    return Case(name=name, text=text, texts=texts, file=file, overrides=overrides, **words)


@cache
def load_host(name: str) -> HostFacts:
    """Give a captured host; who captured it is its caller."""
    facts = parse_captured(load_capture(TESTS / "hosts" / name))
    return evolve(facts, privileged=facts.caller_uid == 0)


@cache
def load_caps(version: str) -> QemuCaps:
    """Give the captured answers of a QEMU."""
    return parse_answers(load_answers(TESTS / "qemus" / version))


def places_of(case: Case, host: HostFacts) -> Places:
    """Give the VM's directories on the case's host."""
    if host.caller_uid == 0:
        return root_places(case.vm)
    home = f"/home/{host.user.name}"
    runtime = PurePosixPath(case.runtime or f"/run/user/{host.caller_uid}")
    return user_places(host.caller_uid, case.vm, {"HOME": home}, runtime)


def load(case: Case, host: HostFacts) -> Loaded:
    """Load a case's definition."""
    home = PurePosixPath("/root" if host.caller_uid == 0 else f"/home/{host.user.name}")
    surroundings = Surroundings(environment=case.environment, home=home, working_directory=case.file.parent)
    texts = {case.file: case.text} | dict(case.texts)
    sources = tuple(Source(path=path, text=text) for path, text in texts.items())
    return load_definition(case.vm, sources, case.overrides, surroundings, profiles())


def host_of(case: Case, definition: Definition, places: Places) -> HostFacts:
    """Give the case's host with what this VM holds there; KeyError for a path that the host did not capture."""
    facts = load_host(case.host)
    for path in wanted_paths(definition):
        facts.paths[path]
    running = case.running is not None
    held = evolve(mount_held(facts, places), running=running, pid=case.running, host_numa_node=case.node)
    return evolve(facts, held=held, hugepages_refused=case.refused, user_missing=case.no_user)


@cache
def run_case(name: str, qemu: str = "") -> Outcome:
    """Give what kvmlaunch makes of a case; `qemu` is another version than the case's own."""
    case = load_case(name)
    caps, captured = load_caps(qemu or case.qemu), load_host(case.host)
    places = places_of(case, captured)
    loaded = load(case, captured)
    definition = loaded.definition
    if definition is None:
        return Outcome(case=case, loaded=loaded, host=captured, caps=caps, places=places, findings=loaded.findings)
    host = host_of(case, definition, places)
    plan = build_vm(definition, host, caps, boot_from=case.boot_from, paused=case.paused)
    findings = (*loaded.findings, *check_plan(plan, host, caps, places))
    return Outcome(case=case, loaded=loaded, host=host, caps=caps, places=places, findings=findings, plan=plan)


def plan_of(name: str) -> Plan:
    """Give the plan of a case whose definition loads."""
    plan = run_case(name).plan
    assert plan is not None, f"{name} has no plan"
    return plan


def planned_cases() -> tuple[str, ...]:
    """Give the cases that have a plan, those whose plan is refused included."""
    return tuple(name for name in case_names() if run_case(name).plan is not None)


def accepted_cases(qemu: str = "") -> tuple[str, ...]:
    """Give the cases that have an argv, with their own version of QEMU or with another."""
    return tuple(name for name in case_names() if not run_case(name, qemu).refused)


def render_golden_argv(outcome: Outcome) -> str:
    """Give argv as argv.txt holds it: an option and its value on one line, the binary left out; "" for a refusal."""
    if outcome.refused or outcome.plan is None:
        return ""
    return "".join(f"{shlex.join(render_option(option, outcome.places))}\n" for option in outcome.plan.options)


def render_golden_findings(outcome: Outcome) -> str:
    """Give findings as findings.txt holds them: `severity code key: message`."""
    return "".join(
        f"{' '.join(part for part in (found.severity, found.report.code, found.key) if part)}: {found.report.message}\n"
        for found in outcome.findings
    )


def read_golden(name: str, file: str) -> str:
    """Give what a case expects; "" where it has no such file."""
    place = CASES / name / file
    return place.read_text(encoding="utf-8") if place.exists() else ""


def write_golden(name: str, file: str, text: str) -> None:
    """Write what a case is to expect from now on; an empty text is no file."""
    place = CASES / name / file
    if text:
        place.write_text(text, encoding="utf-8")
    else:
        place.unlink(missing_ok=True)


def golden_argv(name: str) -> tuple[str, ...]:
    """Give the argv that a case expects, without the binary."""
    return tuple(shlex.split(read_golden(name, ARGV)))
