"""A public key of OpenSSH as one line of `authorized_keys`: options, the key's type, the key in base64, a comment.

Source: sshd(8), AUTHORIZED_KEYS FILE FORMAT; RFC 4253 section 6.6: the key itself begins with the name of its type.
"""

import binascii
import re
from typing import Final

from kvmlaunch.define.mistake import Mistake, shown

PAIR: Final = re.compile(r"(?<!\S)([a-z0-9@.-]+)[ \t]+([A-Za-z0-9+/]{16,}={0,2})(?!\S)")
HINT: Final = "the line of the file that ends in .pub, such as ~/.ssh/id_ed25519.pub"


def check_key(text: str) -> Mistake | None:
    """Give what is wrong with a public key; a private one is not repeated."""
    if "PRIVATE KEY" in text:
        message, why = "this is a private key, and whoever has the definition or the seed could read it", ""
    elif "\n" in text.strip():
        message, why = "one key is one line", "each key is a text of its own in the array"
    elif any(names_itself(kind, key) for kind, key in PAIR.findall(text)):
        return None
    else:
        message = f"{shown(text)} is no public key of OpenSSH"
        why = "it is cut off or changed: nobody could log in with it" if PAIR.search(text) else ""
    return Mistake(code="def.value.choice", message=message, why=why, hint=HINT)


def names_itself(kind: str, key: str) -> bool:
    """Tell whether a key in base64 begins with the name of its type and has more than that."""
    try:
        blob = binascii.a2b_base64(key, strict_mode=True)
    except binascii.Error:
        return False
    name = kind.encode()
    return blob.startswith(len(name).to_bytes(4, "big") + name) and is_whole(blob)


def is_whole(blob: bytes) -> bool:
    """Tell whether a key is a row of fields, each after its length in four bytes, to its very end."""
    place = 0
    while place + 4 <= len(blob):
        place += 4 + int.from_bytes(blob[place : place + 4], "big")
    return place == len(blob)
