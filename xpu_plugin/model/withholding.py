# SPDX-License-Identifier: Apache-2.0
"""Devices that containers hold and the kubelet counts as free: holders and grants -> withheld devices.

The kubelet counts a device as taken only while our list has it under the id and resource of the grant.
Another plugin grants by other ids. A kubelet that lost its checkpoint knows no grant at all. In both cases
the next pod would get a device that is in use.
"""

from collections.abc import Collection, Iterable

from xpu_plugin.model.health import Health, forgotten_holder, held_otherwise
from xpu_plugin.model.inventory import Facts, Policy, device_of, is_old, our_resources
from xpu_plugin.model.ownership import Holding, Ledger


def withheld(
    holdings: Iterable[Holding],
    ledger: Ledger,
    forgotten: Collection[str],
    *,
    facts: Facts,
    policy: Policy,
) -> dict[str, Health]:
    """Return device id -> why it is withheld.

    A forgotten device that is not there now is in it too: another program may make it again.

    holdings: by the kubelet, those of its list first
    ledger: grants that may last
    forgotten: ids of the ledger that the kubelet does not count as held
    """
    closed = {}
    for id in sorted(forgotten):
        own = device_of(id, facts)
        if own is not None or not is_old(id):
            closed[own or id] = forgotten_holder(ledger[id].holder)
    ours = our_resources((*facts.lost.values(), *facts.devices.values()), policy)
    for holding in holdings:
        for id in holding.ids:
            own = device_of(id, facts)
            if own is None or own in closed:
                continue
            if is_old(id):
                # Listed as N it counts as taken, unless another container holds it by its own id.
                double = holding.resource in ours and own in ledger
            else:
                double = holding.resource not in ours
            if double:
                closed[own] = held_otherwise(holding.container, id, holding.resource)
    return closed
