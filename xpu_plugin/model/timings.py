# SPDX-License-Identifier: Apache-2.0
"""The waits of a running plugin of which tests want other lengths. Users cannot set them."""

from xpu_plugin.frozen import frozen
from xpu_plugin.model import probe, registration, rivals, vf_reconcile
from xpu_plugin.model.handover import HandoverPace


@frozen
class Timings:
    """All in seconds. A pair is a wait that grows: the first one and the longest."""

    # The start.
    shown: float = 1.0
    """At most until observers are loaded without a list: that takes the interpreter for a moment."""
    listed: float = 10.0
    """At most until the API server is turned to without a list: that takes the interpreter for a while."""
    metrics: float = 10.0
    """At most until metrics are shown without a list: the first page takes the interpreter."""
    part: tuple[float, float] = (1.0, 300.0)
    """Before a part that failed is started again."""

    # Devices.
    scan: tuple[float, float] = (0.1, 10.0)
    """Before a scan that failed is tried again."""
    doubt: float = 5.0
    """After a scan, before another one for a device that did not answer it."""
    unresponsive: tuple[float, float] = (1.0, 300.0)
    """Between two attempts at a device that hangs."""

    links: tuple[float, float] = (5.0, 300.0)
    """Before xpu-smi is asked for link groups again, after a failure."""

    # Holders, grants and the node.
    holders: float = 10.0
    """Between looks at both sources, while a device is held otherwise, or the holders are not known."""
    before: float = 0.1
    """For the look at the checkpoint before a registration: a kubelet that waits a second kills pods."""
    grant: float = 1.0
    """For the disk, while a container's start waits for the record."""
    files: float = 1.0
    """For the look for host files, while a container waits for its devices."""
    record: float = 10.0
    """Between two looks whether `cleanup` has removed the record of the label."""
    probe: tuple[float, float] = probe.PAUSE_SECONDS
    """Between two probes of a device."""
    vfs: vf_reconcile.VfPace = vf_reconcile.VfPace()
    stays: float = 15.0
    """Of one reason, until an Event tells why the startup taint stays."""
    behind: float = 15.0
    """At most for the kubelet to take in another list, before cards that were ready count as not ready."""

    # The kubelet.
    again: tuple[float, float] = registration.AGAIN_SECONDS
    """Before a registration, after a second stream that was short."""
    rivalry: rivals.RivalPace = rivals.RivalPace()
    handshake: float = 5.0
    """For a peer to say that it speaks HTTP/2."""
    idle: float = 60.0
    """Of a connection without a call; a kubelet's has its stream."""
    handover: HandoverPace = HandoverPace()


USUAL = Timings()
