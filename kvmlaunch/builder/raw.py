"""Arguments by hand: they come last, and reuse no id of ours."""

import re
from collections.abc import Iterator
from itertools import pairwise

from kvmlaunch.builder.names import DEFAULT_NETWORK
from kvmlaunch.builder.option import Part, by_hand, field
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.plan import Field, Option

IDENTITY = r'(?:^|,)(?:id|node-name)=([^,]+)|"(?:id|node-name)"\s*:\s*"([^"]+)"'
OWN_FIELDS = ("id", "node-name")


def identities(text: str) -> tuple[str, ...]:
    """Give the ids and node names in one argument, in key=value or JSON form."""
    return tuple(first or second for first, second in re.findall(IDENTITY, text))


def taken(options: tuple[Option, ...]) -> frozenset[str]:
    """Give the ids and node names of the options that kvmlaunch made."""
    return frozenset(str(part.choice.value) for option in options for part in option.fields if part.name in OWN_FIELDS)


def check_raw(definition: Definition, options: tuple[Option, ...]) -> Iterator[Finding]:
    """Refuse an id that is taken (`def.raw.id`)."""
    ours = taken(options)
    for option, value in pairwise(definition.raw.args):
        group, identity, *_ = (*value.split("."), "", "")
        if option in {"-set", "--set"} and identity in ours:
            yield error(
                code="def.raw.id",
                message=f"-set changes the {group} {identity!r}, which kvmlaunch made",
                key="raw.args",
                why="what it says would go past every check",
                hint="the key of the definition that says it; or one of your own, made in raw.args",
            )
    by_hand_too = {"-netdev", "-nic", "-net"}.intersection(definition.raw.args)
    if by_hand_too and not definition.network:
        yield warning(
            code="def.raw.network",
            message="the VM has a card on user networking beside the one of raw.args",
            key="raw.args",
            why="a definition without [network] has one by itself",
            hint=f'[network.{DEFAULT_NETWORK}]\ntype = "none"   # leaves it out',
        )
    for argument in definition.raw.args:
        for identity in identities(argument):
            if identity in ours:
                yield error(
                    code="def.raw.id",
                    message=f"the id {identity!r} is taken",
                    key="raw.args",
                    why=f"kvmlaunch made it, and {argument!r} uses it again",
                    hint="choose another id",
                )


def raw_field(definition: Definition, word: str) -> Field:
    """Give a value by hand."""
    return field("", "raw.args", by_hand(definition, "raw.args", word))


def group_options(definition: Definition) -> Iterator[Option]:
    """Give the arguments as options: a word with a dash, and the words behind it."""
    args = definition.raw.args
    index = 0
    while index < len(args):
        has_value = args[index].startswith("-") and index + 1 < len(args) and not args[index + 1].startswith("-")
        if has_value:
            yield Option(flag=args[index], form="value", table="raw", fields=(raw_field(definition, args[index + 1]),))
        else:
            yield Option(flag=args[index], form="bare", table="raw", fields=(raw_field(definition, args[index]),))
        index += 2 if has_value else 1


def build_raw(definition: Definition, options: tuple[Option, ...]) -> Part:
    """Give the arguments by hand, checked against the options that stand before them."""
    return Part(options=tuple(group_options(definition)), findings=tuple(check_raw(definition, options)))
