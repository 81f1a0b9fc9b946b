"""The host's knobs: control files, each read as the value that is in use."""

from pathlib import Path

from kvmlaunch.facts.tuning import parse_knob
from kvmlaunch.host.files import write_control
from kvmlaunch.host.readers import read_text


def read_value(path: str, root: Path = Path("/")) -> str | None:
    """Give the value in use of a knob, None where it is not there."""
    text = read_text(str(root / path.lstrip("/")))
    knob = None if text is None else parse_knob({path: text}, path)
    return None if knob is None else knob.value


def write_value(path: str, value: str, root: Path = Path("/")) -> str:
    """Write a knob and give what is read back; raises OSError with the kernel's own word."""
    write_control(root / path.lstrip("/"), value)
    return read_value(path, root) or ""
