"""Load shedding: one overloaded node costs its fragments, several cost complete wakes."""

import pytest

from dawnchorus.router.dispatch.load_shedding import is_shed_whole
from dawnchorus.router.dispatch.node_flow import NodeFlow
from dawnchorus.wire.cluster.topology import AdmissionSpec
from tests.router.dispatch.test_node_flow import NEVER
from tests.support.internals import exchange


def flow_that_waits(seconds: float) -> NodeFlow:
    """Return a connected flow whose newcomers have waited so long at the moment 100."""
    flow = NodeFlow(NEVER, AdmissionSpec(in_flight_max=1, queue_share=0.2))
    flow.handle_up(0.0)
    for caller in range(2 if seconds else 1):
        flow.offer(exchange(caller=caller), 100.0 - seconds)
    return flow


@pytest.mark.parametrize(
    ("required_waits", "optional_waits", "shed"),
    [
        (0.0, 0.0, False),
        (0.0, 0.25, False),  # one overloaded node: its fragments only
        (0.05, 0.25, False),
        (0.12, 0.25, True),  # the required one is behind as well
        (0.12, 0.19, False),  # nothing is rejected yet
        (0.25, 0.0, True),  # without the required one the wake is of no use
    ],
)
def test_wake_is_shed_if_required_nodes_are_behind(required_waits: float, optional_waits: float, shed: bool) -> None:
    flows = [flow_that_waits(required_waits), flow_that_waits(optional_waits)]
    exchanges = [exchange(deadline=101.0, caller="new"), exchange(deadline=101.0, caller="new")]
    exchanges[0].required = True
    assert is_shed_whole(exchanges, flows, 100.0) is shed


@pytest.mark.parametrize(("least", "shed"), [(0.0, False), (0.09, False), (0.12, True)])
def test_wake_requiring_nothing_is_shed_if_all_lag(least: float, shed: bool) -> None:
    flows = [flow_that_waits(0.25), flow_that_waits(least)]
    assert is_shed_whole([exchange(deadline=101.0), exchange(deadline=101.0)], flows, 100.0) is shed
