"""The table of transitions: complete, and true to what each verb promises."""

from itertools import product

import pytest

from kvmlaunch.model.lifecycle import TRANSITIONS, Answer, Verb, VmState, plan_transition

EVERYTHING = list(product(VmState, Verb))


@pytest.mark.parametrize(("state", "verb"), EVERYTHING, ids=lambda each: each.name)
def test_every_pair_has_an_answer(state: VmState, verb: Verb) -> None:
    assert plan_transition(state, verb) in Answer


def test_the_table_holds_nothing_else() -> None:
    assert {(state, verb) for state, row in TRANSITIONS.items() for verb in row} == set(EVERYTHING)


def test_nothing_disturbs_a_vm_that_another_command_starts() -> None:
    assert {plan_transition(VmState.STARTING, verb) for verb in Verb} == {Answer.BUSY}


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED, VmState.HUNG, VmState.FOREIGN, VmState.STARTING])
def test_up_never_starts_a_second_qemu_beside_a_live_one(state: VmState) -> None:
    assert plan_transition(state, Verb.UP) in {Answer.ALREADY, Answer.BUSY}


@pytest.mark.parametrize("state", [VmState.ENDED, VmState.HALF])
@pytest.mark.parametrize("verb", [Verb.UP, Verb.DOWN])
def test_what_a_crash_left_is_healed_first(state: VmState, verb: Verb) -> None:
    assert plan_transition(state, verb) is Answer.HEAL_THEN_ACT


@pytest.mark.parametrize("state", [VmState.STOPPED, VmState.ENDED, VmState.HALF])
@pytest.mark.parametrize("verb", [Verb.PAUSE, Verb.RESUME, Verb.RESET])
def test_who_does_not_run_cannot_be_paused(state: VmState, verb: Verb) -> None:
    assert plan_transition(state, verb) is Answer.NOT_RUNNING


def test_down_of_a_stopped_vm_and_up_of_a_running_one_are_already_so() -> None:
    assert plan_transition(VmState.STOPPED, Verb.DOWN) is Answer.ALREADY
    assert plan_transition(VmState.RUNNING, Verb.UP) is Answer.ALREADY
