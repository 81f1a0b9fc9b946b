"""The seed for cloud-init of a VM: its parts are checked before anything changes, its image written at the start."""

from collections.abc import Callable
from typing import Final

from kvmlaunch.builder.cloud_init import SEED, plan_seed, plan_tweaks
from kvmlaunch.errors import DefinitionInvalid, HostFailed, PreflightFailed, Report
from kvmlaunch.guest.seed import (
    LONGEST,
    Contents,
    check_meta_data,
    check_network,
    check_user_data,
    render_meta_data,
    render_vendor_data,
    seed_contents,
)
from kvmlaunch.host.seed import is_written, missing_extra, need_writer, read_part, write_seed
from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.finding import Finding
from kvmlaunch.steps.resolve import Resolved

CHECKS: Final = {"user_data": check_user_data, "network": check_network, "meta_data": check_meta_data}


def read_seed(resolved: Resolved) -> Contents | None:
    """Give the files of a VM's seed, None where it has none.

    Raises PreflightFailed `seed.file`, DefinitionInvalid `def.seed` for what cloud-init would not take.
    """
    definition = resolved.subject.definition
    if not plan_seed(definition).value:
        return None
    need_writer()
    tuning = definition.cloud_init
    user_data, network, more = (read_checked(resolved, key) for key in CHECKS)
    hostname = definition.name if tuning.hostname is AUTO else tuning.hostname
    return seed_contents(
        user_data=user_data,
        network=network,
        meta_data=render_meta_data(resolved.plan.uuid, hostname, tuning.ssh_keys, more),
        vendor_data=render_vendor_data(definition.name, plan_tweaks(definition)),
    )


def checked(check: Callable[[bytes], str], content: bytes) -> str:
    """Give what a check says of a part; raises HostFailed where the library that it needs is not installed."""
    try:
        return check(content)
    except ImportError as error:
        raise missing_extra("PyYAML") from error


def read_checked(resolved: Resolved, key: str) -> bytes | None:
    """Give a part that a definition names, None where it names none; raises what `read_seed` does."""
    path = getattr(resolved.subject.definition.cloud_init, key)
    if path is None:
        return None
    content = read_part(path, f"cloud_init.{key}", LONGEST)
    if why := checked(CHECKS[key], content):
        message = f"{path.name} is nothing for cloud-init"
        raise DefinitionInvalid(Report(code="def.seed", message=message, where=f"cloud_init.{key}", why=why))
    return content


def is_new_seed(resolved: Resolved) -> bool:
    """Would the next start write a VM's seed anew; raises what `read_seed` does."""
    contents = read_seed(resolved)
    return contents is not None and not is_written(resolved.places.state, SEED, contents, resolved.host.user)


def make_seed(resolved: Resolved) -> None:
    """Write a VM's seed where what it says is new."""
    contents = read_seed(resolved)
    if contents is not None:
        write_seed(resolved.places.state, SEED, contents, resolved.host.user)


def check_seed(resolved: Resolved) -> tuple[Finding, ...]:
    """Give everything that is wrong with a VM's seed, each part by its key."""
    found = []
    for key in CHECKS:
        try:
            read_checked(resolved, key)
        except HostFailed as error:  # a library is missing, for every part
            return (Finding(severity="error", report=error.report),)
        except (PreflightFailed, DefinitionInvalid) as error:
            found.append(Finding(severity="error", report=error.report._replace(where=""), key=f"cloud_init.{key}"))
    try:
        if not found:
            read_seed(resolved)
    except (PreflightFailed, HostFailed) as error:
        found.append(Finding(severity="error", report=error.report))
    return tuple(found)
