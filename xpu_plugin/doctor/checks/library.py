# SPDX-License-Identifier: Apache-2.0
"""Checks of the library's side: itself, its driver, the devices and their capabilities."""

import re

from xpu_plugin.doctor.checks.host import NO_XPU
from xpu_plugin.doctor.evidence import Evidence
from xpu_plugin.doctor.finding import Finding, error, ok, skipped, warning
from xpu_plugin.model.device_table import Row
from xpu_plugin.model.devices import DeviceKind
from xpu_plugin.model.health import KEPT_BACK
from xpu_plugin.model.unlisted import sentences
from xpu_plugin.xpuml import OLDEST_LIBRARY, is_too_old


_PASSING = ("recovering", "in-reset", "quarantined")
_NO_ANSWER = "the library does not answer: see the check library"


def library(evidence: Evidence) -> Finding:
    seen = evidence.library
    oldest = ".".join(map(str, OLDEST_LIBRARY))
    if seen.trouble is not None:
        if evidence.host.empty:
            return skipped(f"{NO_XPU}; {seen.trouble}")
        if seen.unwatched:
            return warning(seen.trouble, "wait for --vf-timeout; if it stays, look at the kernel's log")
        return error(seen.trouble, f"install XRE {oldest} or newer, or name the library by --xpuml-library")
    if seen.version is not None and is_too_old(seen.version):
        return warning(f"{seen.path} is {_short(seen.version)}", f"install XRE {oldest} or newer")
    return ok(f"{seen.path} is {_short(seen.version)} and has all functions")


def driver_match(evidence: Evidence) -> Finding:
    """Compare the first two numbers of both versions; the others differ by release."""
    seen = evidence.library
    driver = seen.driver_release or seen.driver_version
    ours, theirs = _release(seen.version), _release(driver)
    if ours is None or theirs is None:
        return skipped("the versions of library and driver are not known")
    text = f"library {_short(seen.version)}, driver {_short(driver)}"
    if ours != theirs:
        return warning(text, "install the XRE that was released with this driver")
    return ok(text)


def devices_answer(evidence: Evidence) -> Finding:
    seen = evidence.library
    if seen.trouble is not None:
        return skipped(_NO_ANSWER)
    sick = [row for row in seen.rows if row.reason is not None and row.reason not in KEPT_BACK]
    words = [*seen.hung, *(f"{row.id} ({row.path}): {row.text or row.reason}" for row in sick)]
    advice = "look at the kernel's log; reset or exchange the card"
    if seen.hung or any(row.reason not in _PASSING for row in sick):
        return error("; ".join(words), advice)
    if sick:
        return warning("; ".join(words), "wait for a while of good answers; else see the kernel's log")
    if not seen.rows:
        if evidence.host.functions or evidence.host.nodes:
            return error("the library lists no device, and there are XPUs", advice)
        return skipped(NO_XPU)
    return ok(f"all {len(seen.rows)} devices answer, and run")


def listed_nodes(evidence: Evidence) -> Finding:
    """Check that every /dev/xpuN has an index: the library leaves out a node that it cannot open."""
    seen = evidence.library
    if seen.trouble is not None:
        return skipped(_NO_ANSWER)
    if not evidence.host.nodes:
        return skipped(NO_XPU)
    if not seen.unlisted:
        return ok("the library lists every device node")
    text = "; ".join(sentences(seen.unlisted))
    if all(node.beyond for node in seen.unlisted):
        return warning(text, "these devices cannot be offered: split fewer cards")
    if any(node.denied for node in seen.unlisted):
        return error(text, "run the plugin's container privileged; see that the nodes have mode 0666")
    return error(text, "look at the kernel's log for these devices; a node is taken up when it opens")


def ranking(evidence: Evidence) -> Finding:
    """Compare the /dev/xpuN of each index with sysfs."""
    seen, addresses = evidence.library, evidence.host.addresses
    if seen.trouble is not None or (not seen.rows and not seen.problems):
        return skipped("the library shows no device")
    wrong = list(seen.problems)
    for row in seen.rows:
        address = addresses.get(int(row.path.removeprefix("/dev/xpu")))
        if address is not None and address != row.id.partition("-")[0]:
            wrong.append(f"{row.path} is {row.id} by the library, {address} by sysfs")
    if wrong:
        return error(
            "; ".join(wrong),
            "such a device is not offered; see that /dev and /sys are the host's, and reload the driver",
        )
    if not addresses:
        return warning("sysfs has no class xpu to compare with", "see that /sys is the host's")
    return ok(f"library and sysfs agree on {len(seen.rows)} devices")


def vf_capability(evidence: Evidence) -> Finding:
    """Check whether each card can have the desired VF count, by the library and by its PCI capability."""
    cards = [
        row for row in evidence.library.rows if row.kind in (DeviceKind.WHOLE, DeviceKind.PF, DeviceKind.HALF)
    ]
    if not cards:
        return skipped("no card is in sight")
    most = {row.card: row.max_vfs for row in cards}
    text = ", ".join(f"{row.card}: {_counts(row)}" for row in cards)
    text = f"VFs that each card can have: {text}"
    desired = evidence.desired
    if not desired:
        return ok(text)
    short = [row.card for row in cards if row.max_vfs is not None and desired not in row.vf_counts]
    if not short:
        return ok(f"{text}; desired: {desired}")
    advice = "set a number that all cards can have, or exclude cards by --deny"
    if any(most[card] for card in short) or len(short) == len(most):
        return error(f"{text}; desired: {desired}", advice)
    return warning(f"{text}; desired: {desired}; cards that cannot be split stay whole", advice)


def _counts(row: Row) -> str:
    if row.max_vfs is None:
        return "unknown"
    return "0" if not row.vf_counts else ", ".join(map(str, row.vf_counts))


def worker_library(evidence: Evidence) -> Finding:
    plugin = evidence.plugin
    if isinstance(plugin, str):
        return skipped(f"no running plugin: {plugin}")
    if plugin.replaced is None:
        return skipped("the library that the plugin's worker has loaded cannot be seen from here")
    if plugin.replaced:
        text = f"worker {plugin.worker} uses a library that has been replaced since: {evidence.library.path}"
        if plugin.replacement_trouble is not None:
            return warning(
                f"{text}; the present one cannot be used: {plugin.replacement_trouble}",
                "install XRE whole first; until then do not restart the plugin: its worker works",
            )
        return warning(text, "send the plugin SIGHUP, or delete its pod: a fresh worker opens the new one")
    return ok(f"worker {plugin.worker} uses the library that is there")


def _short(version: str | None) -> str:
    """Return the version without the commit."""
    return (version or "of no known version").partition(" commit")[0]


def _release(version: str | None) -> tuple[str, ...] | None:
    match = re.match(r"(\d+)\.(\d+)\.", version or "")
    return match.groups() if match else None
