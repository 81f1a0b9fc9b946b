"""What qemu-img says of an image: its chain, its check, how far it is.

Sources: qemu-img(1); QEMU's QAPI schema, ImageInfo and ImageCheck.  The answers are input: an image is its guest's.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from kvmlaunch.model.value import frozen

T = TypeVar("T")
PROGRESS: Final = r"(?a)\(([0-9]{1,3}\.[0-9]{2})/100%\)"


@frozen(kw_only=True)
class Image:
    """An image of a chain; sizes in bytes, `allocated` is what it takes on its store.

    `cluster_size` is None where the format has none; `backing` is the name in its header, `backing_path` the file that
    it leads to.  `inside` are snapshots and bitmaps that the image holds itself, which no conversion takes along.
    """

    path: str
    format: str
    size: int
    allocated: int
    cluster_size: int | None = None
    extended_l2: bool = False
    backing: str = ""
    backing_path: str = ""
    backing_format: str = ""
    corrupt: bool = False
    dirty: bool = False
    inside: tuple[str, ...] = ()


@frozen(kw_only=True)
class Checked:
    """What a check of an image found: in clusters; `errors` are of the check itself, `fixed` what was mended."""

    errors: int = 0
    corruptions: int = 0
    leaks: int = 0
    fixed: int = 0
    allocated: int = 0
    total: int = 0


def parse_info(text: str) -> tuple[Image, ...]:
    """Give the images of `qemu-img info --backing-chain --output=json`, the topmost first.

    ValueError for no such text.
    """
    entries = parse_json(text)
    if not isinstance(entries, list) or not entries:
        message = "qemu-img told of no image"
        raise ValueError(message)
    return tuple(parse_image(entry) for entry in entries)


def parse_json(text: str) -> Any:  # noqa: ANN401 - as json has it
    """Give a document; nesting beyond all measure is a ValueError as every other mistake."""
    try:
        return json.loads(text)
    except RecursionError as error:
        message = "the answer is nested too deep"
        raise ValueError(message) from error


def parse_image(entry: object) -> Image:
    """Give one image of a chain."""
    if not isinstance(entry, Mapping):
        message = "an image is no table"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    specific = entry.get("format-specific")
    data = specific.get("data") if isinstance(specific, Mapping) else None
    details: Mapping[str, object] = data if isinstance(data, Mapping) else {}
    return Image(
        path=take(entry, "filename", str, ""),
        format=take(entry, "format", str, ""),
        size=take(entry, "virtual-size", int, 0),
        allocated=take(entry, "actual-size", int, 0),
        cluster_size=take(entry, "cluster-size", int, 0) or None,
        extended_l2=take(details, "extended-l2", bool, False),  # noqa: FBT003 - what stands for an absent one
        backing=take(entry, "backing-filename", str, ""),
        backing_path=take(entry, "full-backing-filename", str, ""),
        backing_format=take(entry, "backing-filename-format", str, ""),
        corrupt=take(details, "corrupt", bool, False),  # noqa: FBT003
        dirty=take(entry, "dirty-flag", bool, False),  # noqa: FBT003
        inside=(*names_of(entry.get("snapshots"), "snapshot"), *names_of(details.get("bitmaps"), "bitmap")),
    )


def names_of(rows: object, kind: str) -> Iterator[str]:
    """Give what an image holds beside the disk, each with its kind."""
    for row in rows if isinstance(rows, list) else ():
        yield f"{kind} {row.get('name', '')}" if isinstance(row, Mapping) else kind


def take(entry: Mapping[str, object], name: str, kind: type[T], absent: T) -> T:
    """Give a value of an answer; ValueError when it is of another kind."""
    value = entry.get(name, absent)
    if type(value) is not kind:
        message = f"{name} of an image is {type(value).__name__}, not {kind.__name__}"
        raise ValueError(message)
    return value


def parse_check(text: str) -> Checked:
    """Give what `qemu-img check --output=json` found; ValueError for no such text."""
    entry = parse_json(text)
    if not isinstance(entry, Mapping):
        message = "qemu-img told of no check"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    return Checked(
        errors=take(entry, "check-errors", int, 0),
        corruptions=take(entry, "corruptions", int, 0),
        leaks=take(entry, "leaks", int, 0),
        fixed=take(entry, "corruptions-fixed", int, 0) + take(entry, "leaks-fixed", int, 0),
        allocated=take(entry, "allocated-clusters", int, 0),
        total=take(entry, "total-clusters", int, 0),
    )


def parse_progress(text: str) -> float | None:
    """Give how far `qemu-img -p` is, from 0 to 1; None when it has not said yet."""
    found = re.findall(PROGRESS, text)
    return min(1.0, float(found[-1]) / 100) if found else None


def parse_own(text: str) -> bool:
    """Does the topmost image of `qemu-img map --output=json` hold anything itself; ValueError for no such text."""
    rows = parse_json(text)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        message = "qemu-img told of no map"
        raise ValueError(message)
    return any(row.get("depth") == 0 and row.get("present") is not False for row in rows)


def plain_file(name: str) -> str:
    """Give the file of an image that QEMU tells as a `json:` document, the name itself where it is none."""
    if not name.startswith("json:"):
        return name
    try:
        node = parse_json(name.removeprefix("json:"))
    except ValueError:
        return name
    while isinstance(node, Mapping):
        node = node.get("filename", node.get("file.filename", node.get("file")))
    return plain_file(node) if isinstance(node, str) else name
