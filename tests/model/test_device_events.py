# SPDX-License-Identifier: Apache-2.0
"""What the administrator hears of devices and driver: each change once, all devices in one notice."""

from collections.abc import Mapping

from tests.support.devices import device
from xpu_plugin.model.device_events import MOST_NAMED, DeviceReason, Reported, notices
from xpu_plugin.model.health import HEALTHY, LOST, VF_CHANGE_PLANNED, Health, quarantined
from xpu_plugin.model.inventory import Entry


A, B = "0000:3b:00.0", "0000:3c:00.0"
SICK = Health("state-error", "state 207 (state-error), running is 201")


def entry(id: str, health: Health = HEALTHY, number: int = 0, listed_as: str = "") -> Entry:
    own = device(id, number=number)
    return Entry(id=listed_as or id, resource="baidu.com/xpu", device=own, health=health)


class Ear:
    """Takes in notices one after the other."""

    def __init__(self) -> None:
        self.told = Reported()

    def hears(
        self,
        *entries: Entry,
        driver_gone: str | None = None,
        holders: Mapping[str, tuple[str, ...]] | None = None,
    ) -> list[tuple[DeviceReason, str]]:
        self.told, found = notices(self.told, entries, driver_gone, holders)
        again = notices(self.told, entries, driver_gone, holders)
        assert again == (self.told, ()), "the same is told once"
        return [(notice.reason, notice.text) for notice in found]


def test_nothing_is_told_of_what_is_well_or_merely_kept_back() -> None:
    assert Ear().hears(entry(A), entry(B, VF_CHANGE_PLANNED, 1)) == []


def test_a_fault_names_device_reason_and_pods_and_its_end_too() -> None:
    ear = Ear()
    holders = {A: ("default/train/main",)}
    what = "state-error, state 207 (state-error), running is 201"
    assert ear.hears(entry(A, SICK), entry(B, number=1), holders=holders) == [
        (DeviceReason.UNHEALTHY, f"{A} at /dev/xpu0: {what}; held by: default/train/main")
    ]
    assert ear.hears(entry(A), entry(B, number=1), holders={}) == [
        (DeviceReason.RECOVERED, f"{A} at /dev/xpu0: well again; held by: no container")
    ]


def test_another_reason_is_the_same_fault_but_a_quarantine_is_news() -> None:
    ear = Ear()
    assert ear.hears(entry(A, SICK))[0][0] is DeviceReason.UNHEALTHY
    assert ear.hears(entry(A, LOST)) == []
    assert ear.hears(entry(A, quarantined("state-error")))[0][0] is DeviceReason.QUARANTINED
    assert ear.hears(entry(A, SICK)) == []
    assert ear.hears(entry(A, VF_CHANGE_PLANNED))[0] == (
        DeviceReason.RECOVERED,
        f"{A} at /dev/xpu0: well again; held by: not known",
    )


def test_a_device_that_is_forgotten_is_not_said_to_be_well() -> None:
    ear = Ear()
    ear.hears(entry(A, LOST))
    assert ear.hears() == []
    assert ear.told == Reported()


def test_many_devices_are_one_notice() -> None:
    entries = [entry(f"0000:{bus:02x}:00.0", LOST, bus) for bus in range(MOST_NAMED + 2)]
    holders = {entries[-1].id: ("default/last/main",)}
    ((reason, text),) = Ear().hears(*entries, holders=holders)
    assert reason is DeviceReason.UNHEALTHY
    assert text.count("0000:") == MOST_NAMED
    assert text.endswith("and 2 more, held by: default/last/main")


def test_a_device_under_an_old_id_is_found_by_it() -> None:
    ((_, text),) = Ear().hears(entry(A, LOST, listed_as="2"), holders={A: ("default/old/main",)})
    assert text.startswith(f"{A} at /dev/xpu0: ")
    assert text.endswith("held by: default/old/main")


def test_the_driver_goes_and_comes_back() -> None:
    ear = Ear()
    holders = {A: ("default/a/main",), B: ("default/b/main",)}
    assert ear.hears(entry(A), entry(B, number=1), driver_gone="no driver: load it", holders=holders) == [
        (DeviceReason.DRIVER_LOST, "2 devices, held by: default/a/main, default/b/main: no driver: load it")
    ]
    assert ear.hears(entry(A), driver_gone="no driver: it is said otherwise") == []
    assert ear.hears(entry(A)) == [(DeviceReason.DRIVER_BACK, "driver and library answer again")]
