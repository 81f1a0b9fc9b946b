"""What is said, and how: text of guests, steps that are told once, hints that can be pasted."""

from kvmlaunch.steps.foreground import once


def test_a_button_that_is_pressed_again_is_told_when_that_comes_to_something_new() -> None:
    told: list[tuple[str, str]] = []
    tell = once(lambda word, text: told.append((word, text)))

    for text in ("was asked", "was asked", "was let run", "was asked"):
        tell("powerdown", text)

    assert told == [("powerdown", "was asked"), ("powerdown", "was let run")]
