# SPDX-License-Identifier: Apache-2.0
"""The names of all metrics, with their labels, units and meaning: docs/reference/metrics.md is this table."""

from xpu_plugin.frozen import frozen


@frozen(kw_only=False)
class Family:
    """The metrics of one name, a row of docs/reference/metrics.md."""

    name: str
    type: str
    labels: tuple[str, ...]
    unit: str
    meaning: str


_DEVICE = ("id", "card", "model", "path")
_RESOURCE = ("resource",)
FAMILIES = (
    # --- devices ----------------------------------------------------------------------------------
    Family(
        "xpu_devices",
        "gauge",
        ("model", "kind", "health", "reason"),
        "",
        "Number of offered devices, by model, kind (whole, half, vf), health, and the reason if unhealthy.",
    ),
    Family(
        "xpu_device_info",
        "gauge",
        (*_DEVICE, "kind", "resource", "numa", "serial"),
        "",
        "1 for each offered device, with its properties, its resource, and its serial number if the library "
        "reports one.",
    ),
    Family(
        "xpu_device_healthy",
        "gauge",
        _DEVICE,
        "",
        "1 for a device that the kubelet may give to new pods, 0 for one that is listed Unhealthy.",
    ),
    Family(
        "xpu_device_unhealthy",
        "gauge",
        (*_DEVICE, "reason"),
        "",
        "1 for each device that is listed Unhealthy, with the reason.",
    ),
    Family(
        "xpu_device_transitions_total",
        "counter",
        (*_DEVICE, "health"),
        "",
        "Number of changes of a device to Healthy or Unhealthy.",
    ),
    Family(
        "xpu_device_driver_error",
        "gauge",
        _DEVICE,
        "",
        "1 for each device that is sick by the kernel's log, with --kernel-log report, too.",
    ),
    Family(
        "xpu_driver_incidents_total",
        "counter",
        ("card", "reason"),
        "",
        "Number of incidents of a card in the kernel's log, by the reason of the first line that counts.",
    ),
    Family(
        "xpu_probe_runs_total",
        "counter",
        ("result",),
        "",
        "Number of runs of --probe; passed and sick are its answers, any other result is none.",
    ),
    Family("xpu_device_memory_used_bytes", "gauge", _DEVICE, "bytes", "Main memory in use."),
    Family("xpu_device_memory_total_bytes", "gauge", _DEVICE, "bytes", "Main memory in total."),
    Family("xpu_device_utilization_ratio", "gauge", _DEVICE, "0 to 1", "Utilization of the cores."),
    Family("xpu_device_temperature_celsius", "gauge", _DEVICE, "degrees Celsius", "Temperature."),
    Family(
        "xpu_device_power_reported",
        "gauge",
        _DEVICE,
        "W or mW",
        "Power as the driver reports it: watts by some releases, milliwatts by others.",
    ),
    Family("xpu_device_clock_hertz", "gauge", _DEVICE, "hertz", "Clock of the cores."),
    Family(
        "xpu_device_processes", "gauge", _DEVICE, "", "Processes that compute there; 99 means 99 or more."
    ),
    Family(
        "xpu_device_impossible_readings_total",
        "counter",
        (*_DEVICE, "reading"),
        "",
        "Impossible readings, which are left out: more than 100 %, more memory in use than in total, "
        "a temperature outside -40 to 150.",
    ),
    Family(
        "xpu_plugin_readings_age_seconds",
        "gauge",
        (),
        "seconds",
        "Age of these measurements; a scrape asks for them, every 5 s at most.",
    ),
    # --- holders and grants -----------------------------------------------------------------------
    Family(
        "xpu_device_granted",
        "gauge",
        _DEVICE,
        "",
        "1 for a device with a grant that may not have ended. The end of a grant is checked only before a "
        "change of VFs.",
    ),
    Family(
        "xpu_device_holder",
        "gauge",
        (*_DEVICE, "namespace", "pod", "container"),
        "",
        "1 for each container that the kubelet lists with a device; of init containers, only sidecars.",
    ),
    Family(
        "xpu_plugin_pod_resources_up",
        "gauge",
        (),
        "",
        "1 while the kubelet's pod resources API answers, else 0.",
    ),
    Family(
        "xpu_plugin_granted_devices_total",
        "counter",
        _RESOURCE,
        "",
        "Number of devices granted to containers.",
    ),
    Family(
        "xpu_plugin_audit_findings",
        "gauge",
        ("kind",),
        "",
        "Contradictions about holders: a device with two holders (`double-holder`), a holder without a grant "
        "(`holder-without-grant`), a grant that the kubelet does not know (`unknown-grant`).",
    ),
    Family(
        "xpu_plugin_audit_age_seconds",
        "gauge",
        (),
        "seconds",
        "Age of the last audit with a trusted list of the kubelet; absent before the first.",
    ),
    # --- the kubelet ------------------------------------------------------------------------------
    Family(
        "xpu_plugin_registrations_total",
        "counter",
        _RESOURCE,
        "",
        "Number of registrations; one for each start of the kubelet is normal.",
    ),
    Family(
        "xpu_plugin_registration_failures_total",
        "counter",
        _RESOURCE,
        "",
        "Number of failed registrations.",
    ),
    Family(
        "xpu_plugin_streams",
        "gauge",
        _RESOURCE,
        "",
        "Streams of lists that the kubelet has open: 1 is normal.",
    ),
    Family(
        "xpu_plugin_displaced",
        "gauge",
        _RESOURCE,
        "",
        "1 while another plugin has registered this resource name, until the kubelet has this plugin's "
        "devices again.",
    ),
    Family(
        "xpu_plugin_displacements_total",
        "counter",
        _RESOURCE,
        "",
        "Number of times that another plugin has registered this resource name.",
    ),
    Family("xpu_plugin_lists_sent_total", "counter", _RESOURCE, "", "Lists of devices sent to the kubelet."),
    Family(
        "xpu_plugin_request_duration_seconds",
        "histogram",
        (*_RESOURCE, "method"),
        "seconds",
        "Duration of Allocate, GetPreferredAllocation and PreStartContainer, refused ones too.",
    ),
    Family(
        "xpu_plugin_request_errors_total",
        "counter",
        (*_RESOURCE, "method", "code"),
        "",
        "Requests that were refused, by gRPC code.",
    ),
    # --- the library ------------------------------------------------------------------------------
    Family(
        "xpu_plugin_library_up",
        "gauge",
        (),
        "",
        "1 while the library answers; 0 while it fails, or while there is no driver.",
    ),
    Family(
        "xpu_plugin_library_info",
        "gauge",
        ("path", "version", "driver_version"),
        "",
        "1: the library that was opened last, its version and the driver's.",
    ),
    Family(
        "xpu_plugin_library_outdated",
        "gauge",
        (),
        "",
        "1 when the library's file is not the one that the worker has opened, as after an update of XRE. "
        "It is compared each --rescan-interval.",
    ),
    Family(
        "xpu_plugin_unlisted_nodes",
        "gauge",
        ("path",),
        "",
        "1 for each /dev/xpuN that the library does not list: it cannot be opened, or comes after the 99th.",
    ),
    Family(
        "xpu_plugin_kernel_log_up",
        "gauge",
        (),
        "",
        "1 while the kernel's log is followed, else 0; none with --kernel-log off.",
    ),
    Family(
        "xpu_plugin_kernel_log_overruns_total",
        "counter",
        (),
        "",
        "Times that records of the kernel's log were overwritten before they were read.",
    ),
    Family(
        "xpu_plugin_sweep_duration_seconds",
        "histogram",
        (),
        "seconds",
        "Duration of one query of all devices' states.",
    ),
    Family(
        "xpu_plugin_sweep_age_seconds",
        "gauge",
        (),
        "seconds",
        "Time since the library's last answer; without any answer, since the start.",
    ),
    Family("xpu_plugin_scans_total", "counter", (), "", "Successful scans of the whole node."),
    Family(
        "xpu_plugin_worker_restarts_total",
        "counter",
        ("cause",),
        "",
        "Replaced workers, by cause: a scan (`rescan`, which is normal), a missed deadline (`hung`), "
        "an end (`died`), malformed data (`malformed`), a failure of the whole library (`failed`), a request "
        "that was `cancelled`, or more memory than the worker's share (`grown`).",
    ),
    Family(
        "xpu_plugin_worker_stuck", "gauge", (), "", "1 while a worker that was killed hangs in the driver."
    ),
    # --- virtual functions ------------------------------------------------------------------------
    Family("xpu_vf_desired", "gauge", ("card",), "", "Desired VF count of a card; absent for `keep`."),
    Family("xpu_vf_actual", "gauge", ("card",), "", "VFs that a card has."),
    Family(
        "xpu_vf_state",
        "gauge",
        ("card", "state"),
        "",
        "1 for the card's state: success, pending, blocked, failed or unsupported; 0 for the other states.",
    ),
    Family(
        "xpu_vf_drifts_total",
        "counter",
        ("card",),
        "",
        "Number of changes of a card's VFs by other programs.",
    ),
    # --- the API server ---------------------------------------------------------------------------
    Family(
        "xpu_plugin_api_watching",
        "gauge",
        (),
        "",
        "1 while the node is watched, 0 while it is not; absent without access to the API server.",
    ),
    Family(
        "xpu_plugin_api_errors_total",
        "counter",
        ("request", "code"),
        "",
        "Failed requests, by HTTP status; `none` without a valid answer.",
    ),
    # --- the plugin itself ------------------------------------------------------------------------
    Family(
        "xpu_plugin_part_failures_total",
        "counter",
        ("part",),
        "",
        "Unforeseen errors of each part; the part is started again after one.",
    ),
    Family(
        "xpu_plugin_part_down",
        "gauge",
        ("part",),
        "",
        "1 for a part that has failed, until it has run for a minute again; the log has the reason.",
    ),
    Family(
        "xpu_plugin_log_lines_dropped_total",
        "counter",
        (),
        "",
        "Lost log lines, as standard error was not read in time.",
    ),
    Family(
        "xpu_plugin_build_info",
        "gauge",
        ("version", "python", "node"),
        "",
        "1: this plugin's version, and its node by `--node-name`.",
    ),
)
OF_THE_PROCESS = (
    Family("process_virtual_memory_bytes", "gauge", (), "bytes", "Virtual memory size in bytes."),
    Family("process_resident_memory_bytes", "gauge", (), "bytes", "Resident memory size in bytes."),
    Family(
        "process_start_time_seconds",
        "gauge",
        (),
        "seconds",
        "Start time of the process since unix epoch in seconds.",
    ),
    Family(
        "process_cpu_seconds_total",
        "counter",
        (),
        "seconds",
        "Total user and system CPU time spent in seconds.",
    ),
    Family("process_open_fds", "gauge", (), "", "Number of open file descriptors."),
    Family("process_max_fds", "gauge", (), "", "Maximum number of open file descriptors."),
)
"""Metrics of the server's process by Prometheus's client, in its words; workers are not included."""
