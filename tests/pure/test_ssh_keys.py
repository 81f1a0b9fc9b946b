"""Public keys in a definition: those that OpenSSH makes are taken, whatever stands around them; others are refused."""

from typing import Final

import pytest

from kvmlaunch.define.ssh_key import check_key

ED25519: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINZ2ACQhJu+8WlfbwbfVO0ynm0cr9AWGfFCI3wKSpDlk"
RSA: Final = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDDlZGneQwXyw/V0y662/qnIrOEecGgX0JSHoefoFeiansioOXtBOS00bMhFj48uXFOZ47Jxl7BAR"
    "CuByGm5Zcv6ww5tBiSxtiiOQrBtq7wL0k6YuejhkbzB+8Pg2BxuyFhyi2hA45sk+rzHNUx7dYr1QSb3hcZAQXR6haA9OkFhw=="
)
ECDSA: Final = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGbRauko/n87QjW37I70Iv+yV8K9Y1++y/jiiKp8j"
    "+IjMIp52gtoS743Yvb80AksFTldRdZi1AlhnGBhJ8Zy0dM="
)


@pytest.mark.parametrize("key", [ED25519, RSA, ECDSA])
@pytest.mark.parametrize(
    "line", ["{}", "{} alice@example.net", "{} Alice the second\n", 'command="df -h",no-pty {} alice']
)
def test_a_key_of_openssh_is_taken(key: str, line: str) -> None:
    assert check_key(line.format(key)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no public key"),
        ("alice", "no public key"),
        ("~/.ssh/id_ed25519.pub", "no public key"),
        (ED25519.removeprefix("ssh-ed25519 "), "no public key"),
        (ED25519[:-8], "no public key"),
        (ED25519[:-1], "no public key"),
        (ED25519.replace("ssh-ed25519", "ssh-rsa"), "no public key"),
        (RSA[:40] + RSA[44:], "no public key"),
        (f"{ED25519}\n{RSA}", "one line"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n", "private key"),
    ],
)
def test_what_is_no_key_is_refused_with_the_file_to_look_in(text: str, message: str) -> None:
    mistake = check_key(text)

    assert mistake
    assert message in mistake.message
    assert ".pub" in mistake.hint
    assert "secret" not in f"{mistake.message}{mistake.why}"


def test_a_key_that_is_cut_off_is_told_apart_from_what_never_was_one() -> None:
    cut, other = check_key(ED25519[:-8]), check_key("alice")

    assert cut
    assert other
    assert "cut off" in cut.why
    assert other.why == ""
