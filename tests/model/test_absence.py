# SPDX-License-Identifier: Apache-2.0
"""What is said of a device that is not there any more: what there still is of it, and what brings it back."""

from dataclasses import replace
from errno import EIO

import pytest

from tests.support.devices import device, node, scan
from xpu_plugin.model.absence import absent
from xpu_plugin.model.devices import Function
from xpu_plugin.model.health import LOST, NODE_MISSING


A = "0000:3b:00.0"


def test_lost_is_only_what_sysfs_does_not_show() -> None:
    assert absent(device(A), scan([], nodes=[])) == LOST


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, "bound to no driver: bind it to kunlun again"),
        ("vfio-pci", "bound to vfio-pci, as for a virtual machine: bind it to kunlun again, or send"),
    ],
)
def test_a_card_without_our_driver_is_missing_with_the_remedy(driver: str | None, said: str) -> None:
    health = absent(device(A), scan([], nodes=[], functions={A: Function(vendor=0x1D22, driver=driver)}))
    assert health.reason == "node-missing"
    assert said in health.text


@pytest.mark.parametrize("driver", ["kunlun", "xpu_driver"])
def test_a_card_of_our_driver_is_missing_its_node(driver: str) -> None:
    function = Function(vendor=0x1D22, driver=driver)
    bare = scan([], nodes=[], functions={A: function})
    assert absent(device(A), bare) == NODE_MISSING
    refused = replace(
        scan([], nodes=[node(0)], usable=[], addresses={0: A}, functions={A: function}), refused={0: EIO}
    )
    assert "/dev/xpu0 cannot be opened (Input/output error)" in absent(device(A), refused).text
    others = replace(refused, host=replace(refused.host, addresses={0: "0000:3c:00.0"}))
    assert absent(device(A), others) == NODE_MISSING, "that node is another card's by now"
