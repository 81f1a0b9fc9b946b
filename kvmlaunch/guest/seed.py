"""The files of a seed for cloud-init: the user's as they are, ours as vendor data beneath them.

JSON is YAML, so what is generated needs no YAML writer.  Source: cloud-init's documentation, datasources/nocloud,
explanation/format, explanation/vendordata.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvmlaunch.guest.script import render_script
from kvmlaunch.model.tweak import Tweak

CLOUD_CONFIG: Final = "#cloud-config"
# The first lines by which cloud-init tells what user data is; without one of them it ignores it.
HEADERS: Final = (
    *(CLOUD_CONFIG, "#!", "#include", "#cloud-boothook", "#part-handler", "## template: jinja"),
    *("Content-Type: multipart/mixed", "MIME-Version:"),
)
# Kinds of cloud-config that are no table.
OTHER_CONFIGS: Final = ("#cloud-config-archive", "#cloud-config-jsonp")
LONGEST: Final = 1 << 20
# What JSON may hold as it stands and YAML takes for the end of a line or for nothing printable.
YAML_BREAKS: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
Contents = Mapping[str, bytes]


def render_document(document: Mapping[str, Any]) -> bytes:
    """Give a document as JSON that is stable and can be read."""
    text = json.dumps(document, indent=1, ensure_ascii=False, default=str)
    return (YAML_BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n").encode()


def render_vendor_data(name: str, tweaks: Sequence[Tweak]) -> bytes:
    """Give the script that sets what is wanted in the guest, an empty configuration where nothing is.

    A configuration would do less: lists of the user's own, such as `packages`, take the place of those beneath.
    """
    wanted = [tweak for tweak in tweaks if tweak.wanted.value]
    return render_script(name, wanted).encode() if wanted else f"{CLOUD_CONFIG}\n{{}}\n".encode()


def render_meta_data(instance: str, hostname: str, keys: Sequence[str], more: bytes | None = None) -> bytes:
    """Give who the guest is: cloud-init runs its first boot again for another `instance`.

    `more` is a checked YAML table of the user's, which is laid over it.
    """
    document: dict[str, Any] = {"instance-id": instance, "local-hostname": hostname}
    if keys:
        document["public-keys"] = list(keys)
    if more is not None:
        import yaml  # noqa: PLC0415 - an extra, and only for who writes metadata

        document.update(yaml.safe_load(more) or {})
    return render_document(document)


def check_user_data(content: bytes) -> str:
    """Give why cloud-init would not take user data, "" where it would."""
    if len(content) > LONGEST:
        return f"it is longer than {LONGEST >> 20} MiB"
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return "" if content.startswith(b"\x1f\x8b") else f"it is not UTF-8: {error}"
    text = text.lstrip()
    if not text.lower().startswith(tuple(header.lower() for header in HEADERS)):
        return f"its first line tells no kind, such as {CLOUD_CONFIG} or #!/bin/sh: cloud-init would ignore it"
    if text.startswith(CLOUD_CONFIG) and not text.startswith(OTHER_CONFIGS):
        return check_mapping(text)
    return ""


def check_table(content: bytes) -> str:
    """Give why a part is no YAML table, "" where it is one."""
    if len(content) > LONGEST:
        return f"it is longer than {LONGEST >> 20} MiB"
    try:
        return check_mapping(content.decode())
    except UnicodeDecodeError as error:
        return f"it is not UTF-8: {error}"


def check_network(content: bytes) -> str:
    """Give why cloud-init would not take a network configuration, "" where it would: it says its version, 1 or 2."""
    wrong = check_table(content)
    if wrong:
        return wrong
    import yaml  # noqa: PLC0415 - an extra, and only for who writes a network

    document = yaml.safe_load(content) or {}
    inner = document.get("network", document)
    if isinstance(inner, dict) and (inner.get("version") in (1, 2) or inner.get("config") == "disabled"):
        return ""
    return "it has no `version: 1` or `version: 2`"


def check_meta_data(content: bytes) -> str:
    """Give why metadata cannot be laid over ours, which is JSON, "" where it can."""
    wrong = check_table(content)
    if wrong:
        return wrong
    try:
        render_meta_data("", "", (), content)
    except (TypeError, ValueError, RecursionError) as error:
        return f"JSON cannot hold it: {error}"
    return ""


def check_mapping(text: str) -> str:
    """Give why a text is no YAML table, "" where it is one."""
    import yaml  # noqa: PLC0415 - an extra, and only for who writes user data

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        return f"it is no YAML: {' '.join(str(error).split()) or type(error).__name__}"
    if document is not None and not isinstance(document, dict):
        return "its top is no table"
    return "" if all(isinstance(key, str) for key in document or ()) else "a name in its top table is no text"


def seed_contents(
    *, user_data: bytes | None, network: bytes | None, meta_data: bytes, vendor_data: bytes
) -> dict[str, bytes]:
    """Give the files of a seed by name."""
    found = {
        "meta-data": meta_data,
        "user-data": f"{CLOUD_CONFIG}\n{{}}\n".encode() if user_data is None else user_data,
        "vendor-data": vendor_data,
    }
    return found if network is None else {**found, "network-config": network}
