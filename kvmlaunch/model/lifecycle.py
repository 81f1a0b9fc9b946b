"""The states of a VM and the table of transitions.

What is seen decides the state; nothing remembers it.  `kvmlaunch` keeps no daemon, so every command
looks anew at the lock on the run directory, at the process and at QEMU's own answers.
"""

from enum import Enum
from typing import Final


class VmState(Enum):
    """What a VM is seen to be."""

    STOPPED = "stopped"
    STARTING = "starting"
    BUSY = "busy"  # a command has it in hand that starts nothing: one about its disks
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"  # it ran and is gone; what it held is still there
    STOPPING = "being stopped"
    HALF = "half started"  # its launcher died before every promise was read back
    FOREIGN = "running (not started by kvmlaunch)"
    HUNG = "not answering"


class Verb(Enum):
    """What a user asks of a VM."""

    UP = "up"
    DOWN = "down"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"


class Answer(Enum):
    """What becomes of a verb in a state."""

    ACT = "act"
    ALREADY = "already so"
    HEAL_THEN_ACT = "heal, then act"
    NOT_RUNNING = "not running"
    BUSY = "busy"


S, V, A = VmState, Verb, Answer

TRANSITIONS: Final[dict[VmState, dict[Verb, Answer]]] = {
    S.STOPPED: {
        V.UP: A.ACT,
        V.DOWN: A.ALREADY,
        V.PAUSE: A.NOT_RUNNING,
        V.RESUME: A.NOT_RUNNING,
        V.RESET: A.NOT_RUNNING,
    },
    S.STARTING: {V.UP: A.BUSY, V.DOWN: A.BUSY, V.PAUSE: A.BUSY, V.RESUME: A.BUSY, V.RESET: A.BUSY},
    S.BUSY: {V.UP: A.BUSY, V.DOWN: A.BUSY, V.PAUSE: A.BUSY, V.RESUME: A.BUSY, V.RESET: A.BUSY},
    S.RUNNING: {V.UP: A.ALREADY, V.DOWN: A.ACT, V.PAUSE: A.ACT, V.RESUME: A.ALREADY, V.RESET: A.ACT},
    S.STOPPING: {V.UP: A.BUSY, V.DOWN: A.ACT, V.PAUSE: A.BUSY, V.RESUME: A.ACT, V.RESET: A.BUSY},
    S.PAUSED: {V.UP: A.ALREADY, V.DOWN: A.ACT, V.PAUSE: A.ALREADY, V.RESUME: A.ACT, V.RESET: A.ACT},
    S.ENDED: {
        V.UP: A.HEAL_THEN_ACT,
        V.DOWN: A.HEAL_THEN_ACT,
        V.PAUSE: A.NOT_RUNNING,
        V.RESUME: A.NOT_RUNNING,
        V.RESET: A.NOT_RUNNING,
    },
    S.HALF: {
        V.UP: A.HEAL_THEN_ACT,
        V.DOWN: A.HEAL_THEN_ACT,
        V.PAUSE: A.NOT_RUNNING,
        V.RESUME: A.NOT_RUNNING,
        V.RESET: A.NOT_RUNNING,
    },
    S.FOREIGN: {V.UP: A.ALREADY, V.DOWN: A.ACT, V.PAUSE: A.ACT, V.RESUME: A.ACT, V.RESET: A.ACT},
    S.HUNG: {V.UP: A.ALREADY, V.DOWN: A.ACT, V.PAUSE: A.ACT, V.RESUME: A.ACT, V.RESET: A.ACT},
}


def plan_transition(state: VmState, verb: Verb) -> Answer:
    """Give what becomes of a verb in a state; every pair has its row."""
    return TRANSITIONS[state][verb]
