# SPDX-License-Identifier: Apache-2.0
"""Which containers have ended for good."""

import pytest

from xpu_plugin.model.pods import ALWAYS, ON_FAILURE, Container, Exit, Kind, Pod, ends


NEVER = "Never"
DONE, FAILED = Exit(code=0, finished=100.0), Exit(code=1, finished=100.0)


def pod(container: Container, *, over: bool = False, ruled: bool = False) -> Pod:
    return Pod(uid="u", name="default/train", containers={"c": container}, over=over, ruled=ruled)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("over", [False, True])
def test_a_container_that_was_not_seen_to_end_has_not_ended(kind: Kind, over: bool) -> None:
    assert ends(pod(Container(kind=kind, policy=NEVER), over=over)) == {}


@pytest.mark.parametrize(
    ("kind", "policy", "end", "ended"),
    [
        (Kind.MAIN, ALWAYS, DONE, False),
        (Kind.MAIN, ALWAYS, FAILED, False),
        (Kind.MAIN, ON_FAILURE, DONE, True),
        (Kind.MAIN, ON_FAILURE, FAILED, False),
        (Kind.MAIN, NEVER, DONE, True),
        (Kind.MAIN, NEVER, FAILED, True),
        (Kind.INIT, ALWAYS, DONE, True),
        (Kind.INIT, ALWAYS, FAILED, False),
        (Kind.INIT, ON_FAILURE, DONE, True),
        (Kind.INIT, ON_FAILURE, FAILED, False),
        (Kind.INIT, NEVER, DONE, True),
        (Kind.INIT, NEVER, FAILED, True),
        (Kind.SIDECAR, ALWAYS, DONE, False),
        (Kind.SIDECAR, ALWAYS, FAILED, False),
    ],
)
def test_a_container_that_is_started_again_has_not_ended(
    kind: Kind, policy: str, end: Exit, ended: bool
) -> None:
    own = pod(Container(kind=kind, policy=policy, exit=end))
    assert ends(own) == ({"c": end} if ended else {})


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("policy", [ALWAYS, ON_FAILURE, NEVER])
def test_in_a_pod_that_is_over_no_container_is_started_again(kind: Kind, policy: str) -> None:
    own = Container(kind=kind, policy=policy, exit=FAILED)
    assert ends(pod(own, over=True)) == {"c": FAILED}
    assert ends(pod(own, over=True, ruled=True)) == {"c": FAILED}


@pytest.mark.parametrize("kind", Kind)
def test_rules_may_start_any_container_of_the_pod_again(kind: Kind) -> None:
    assert ends(pod(Container(kind=kind, policy=NEVER, exit=DONE), ruled=True)) == {}
