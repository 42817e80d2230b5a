# SPDX-License-Identifier: Apache-2.0
"""The daemon's options: one table, flag > environment > default, all validated before the start."""

import argparse
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from xpu_plugin import log
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model import node_labels, vf_plan
from xpu_plugin.simulation import library


PROGRAM = "xpu-device-plugin"
SIMULATOR = "simulator"
LEGACY_KEEP = "99"
VF_POLICIES = ("when-idle", "never")
LONGEST_SOCKET_PATH = 107  # bytes of sun_path
LONGEST_PROFILE = 24  # bytes that a profile's name adds to the names of sockets
HOST_ROOT = Path("/host")
"""The mount point of host directories that the image has too."""
LIBRARIES = ("lib64/libxpuml.so.1", "lib/libxpuml.so.1", "lib64/libxpuml.so", "lib/libxpuml.so")
"""Paths within XRE: releases before 5 have lib64, later ones lib."""
LIBRARY_NAME = "libxpuml.so.1"
"""The name for the loader's own search."""


class UsageError(PluginError):
    """Bad input: one line with the option, the value and the accepted values. Exit status 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of printing and exiting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        line = log.printable(message.removeprefix("argument "))
        raise UsageError(f"{line}; see {self.prog} --help")


# --- accepted values: each parser takes text and returns a value, or raises ArgumentTypeError ----------


def _refuse(text: str, accepted: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"{text!r} is not accepted; accepted: {accepted}")


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        accepted = f"a number of seconds from {least:g} to {most:g}"
        if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text):
            _refuse(text, accepted)
        return float(text) if least <= float(text) <= most else _refuse(text, accepted)

    return parse


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        accepted = f"a whole number from {least} to {most}"
        if not re.fullmatch(r"[0-9]{1,9}", text):
            _refuse(text, accepted)
        return int(text) if least <= int(text) <= most else _refuse(text, accepted)

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        return text if text in choices else _refuse(text, " or ".join(choices))

    return parse


def _switch(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    return False if text.lower() in ("false", "0", "no", "off") else _refuse(text, "true or false")


def _absolute(text: str) -> Path:
    path = Path(text)
    return path if path.is_absolute() else _refuse(text, "an absolute path")


def _library(text: str) -> str:
    if text == SIMULATOR or text.startswith("/"):
        return text
    return _refuse(text, f"an absolute path, or {SIMULATOR!r}")


def _resource(text: str) -> str:
    """Parse a qualified name, by the rules of Kubernetes for extended resources."""
    domain, _, name = text.partition("/")
    label = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
    fine = re.fullmatch(rf"{label}(\.{label})*", domain) and len(domain) <= 253  # noqa: PLR2004
    if fine and re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", name):
        if domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
            _refuse(text, "a domain other than kubernetes.io, which is reserved")
        return text
    return _refuse(text, "a domain and a name, such as baidu.com/xpu")


def _object_name(text: str) -> str:
    """Parse a name, by the rules of Kubernetes for nodes, pods and namespaces."""
    if re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        return text
    return _refuse(text, "lower-case letters, digits, - and ., up to 253 of them")


def _address(text: str) -> tuple[str, int]:
    """Parse a host, which may be empty or an IPv6 address in brackets, and a port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[-0-9A-Za-z.]*):([0-9]{1,5})", text)
    if match is None or int(match[2]) >= 1 << 16:
        _refuse(text, "[HOST]:PORT, such as :9476, 127.0.0.1:9476 or [::1]:9476")
    return match[1].strip("[]"), int(match[2])


def _vfs(text: str) -> int | None:
    """Parse a number of VFs; None means `keep`."""
    try:
        return vf_plan.parse(vf_plan.KEEP if text == LEGACY_KEEP else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    return names if all(names) else _refuse(text, "device ids, models or serial numbers, comma separated")


# --- the options --------------------------------------------------------------------------------------


@frozen(kw_only=False)
class Option:
    """One option."""

    name: str
    parse: Callable[[str], Any]
    default: str | None  # text, parsed like any other; None: not given
    help: str
    metavar: str = "VALUE"
    also: tuple[str, ...] = ()  # customary environment variables, after our own

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return f"XPU_PLUGIN_{self.attribute.upper()}"

    @property
    def variables(self) -> str:
        """All environment variables, in one text."""
        return ", then ".join((self.variable, *self.also))


STATUS_SOCKET = Option(
    "status-socket",
    _absolute,
    None,
    "socket for sub-commands of the running plugin, root only; none if not given",
    "SOCKET",
)
_PLACES = (
    Option("dev-root", _absolute, "/dev", "directory of the device nodes", "DIR"),
    Option("sysfs-root", _absolute, "/sys", "directory of sysfs", "DIR"),
    Option(
        "xpuml-library",
        _library,
        None,
        f"the libxpuml to open, or {SIMULATOR!r}; if not given, searched in --xre-dir, then by the loader",
        "PATH",
    ),
    Option(
        "xre-dir",
        _absolute,
        "/usr/local/xpu",
        f"the host's directory of XRE; searched below {HOST_ROOT} first, where the manifests mount it",
        "DIR",
    ),
    Option("simulator-file", _absolute, None, "the simulator's machine file", "FILE"),
    Option("call-timeout", _seconds(0.05, 600), "5", "seconds for each call of the library", "SECONDS"),
    Option("resource-name", _resource, "baidu.com/xpu", "resource name of the offered devices", "NAME"),
    Option(
        "resource-per-profile",
        _switch,
        "false",
        "offer each model and VF profile under a name of its own, such as baidu.com/R200-VF-8G",
    ),
    Option("allow", _names, None, "offer only these: ids, models or serial numbers", "A,B"),
    Option("deny", _names, None, "never offer these: ids, models or serial numbers", "A,B"),
)
_ACCESS = (
    Option(
        "kubeconfig",
        _absolute,
        None,
        "credentials for the API server; without it, a pod's service account",
        "FILE",
    ),
    Option("node-name", _object_name, None, "this node's name in the cluster", "NAME", also=("NODE_NAME",)),
)
_KUBELET = (
    Option(
        "device-plugin-dir",
        _absolute,
        "/var/lib/kubelet/device-plugins",
        "the kubelet's directory of device plugins",
        "DIR",
    ),
    Option(
        "pod-resources-socket",
        _absolute,
        "/var/lib/kubelet/pod-resources/kubelet.sock",
        "the kubelet's pod resources API",
        "SOCKET",
    ),
)
_STATE_DIR = Option(
    "state-dir",
    _absolute,
    "/var/lib/xpu-device-plugin",
    "directory of the records: grants, quarantines, changes of VFs and the label last seen",
    "DIR",
)
_VFS = (
    *_KUBELET,
    _STATE_DIR,
    Option(
        "sriov-num-vfs",
        _vfs,
        "0",
        f"desired number of VFs of each card, 0 to {vf_plan.MOST_VFS}, or {vf_plan.KEEP}; the node label "
        f"{vf_plan.LABEL} takes precedence",
        "N",
    ),
    Option(
        "vf-policy",
        _one_of(*VF_POLICIES),
        "when-idle",
        "change a card when it is idle, or never change one and only report",
        "POLICY",
    ),
    Option("vf-timeout", _seconds(1, 3600), "60", "seconds until a change of VFs must show", "SECONDS"),
    Option(
        "vf-without-pod-resources",
        _switch,
        "false",
        "consent to change cards by the other proofs if the kubelet has no pod resources API",
    ),
    Option(
        "pod-list-delay",
        _seconds(0.1, 600),
        "10",
        "seconds until the kubelet's list shows a grant; a card is withheld so long before its change",
        "SECONDS",
    ),
    Option(
        "label-timeout",
        _seconds(0, 600),
        "5",
        "seconds without an answer of the API server until the label last seen counts; if the server refuses "
        "and no label was seen, --sriov-num-vfs counts",
        "SECONDS",
    ),
    Option(
        "vf-decision-wait",
        _seconds(0, 3600),
        "60",
        "maximum seconds that idle cards are withheld from new pods until the desired VF count is known",
        "SECONDS",
    ),
    *_ACCESS,
    Option("pod-name", _object_name, None, "the name of our own pod", "NAME", also=("POD_NAME",)),
    Option(
        "pod-namespace",
        _object_name,
        "kube-system",
        "the namespace of our own pod",
        "NAME",
        also=("POD_NAMESPACE",),
    ),
)
OPTIONS = (
    *_PLACES,
    *_VFS,
    Option(
        "health-interval", _seconds(0.05, 3600), "1", "seconds between two rounds of all states", "SECONDS"
    ),
    Option(
        "health-failures",
        _number(1, 1000),
        "2",
        "consecutive failed calls until a device is unhealthy; an error state acts at once",
        "N",
    ),
    Option(
        "health-recovery",
        _seconds(0, 86400),
        "10",
        "seconds of good answers until a device is healthy again",
        "SECONDS",
    ),
    Option(
        "health-flaps",
        _number(1, 1000),
        "5",
        "accepted changes of a device's health within --health-flap-window; one more quarantines it",
        "N",
    ),
    Option(
        "health-flap-window",
        _seconds(1, 604800),
        "600",
        "seconds for --health-flaps; a quarantine ends after so many seconds without a change",
        "SECONDS",
    ),
    Option(
        "health-grace",
        _seconds(0, 3600),
        "15",
        "seconds that a device keeps its health while the library hangs, crashes or cannot be opened",
        "SECONDS",
    ),
    Option(
        "rescan-interval",
        _seconds(0.05, 3600),
        "10",
        "seconds between two checks of device nodes and sysfs for a change",
        "SECONDS",
    ),
    STATUS_SOCKET,
    Option(
        "node-labels",
        _switch,
        "false",
        f"label the node with {node_labels.PREFIX}model, count, memory-mib, driver-version and vf-capable",
    ),
    Option(
        "metrics-address",
        _address,
        None,
        "address of /metrics, /healthz and /readyz by HTTP; none if not given",
        "[HOST]:PORT",
    ),
    Option("fail-on-init-error", _switch, "false", "exit with status 1 when the first scan fails"),
    Option("log-level", _one_of(*log.LEVELS), "info", f"one of {', '.join(log.LEVELS)}", "LEVEL"),
    Option("log-format", _one_of(*log.FORMATS), "text", f"one of {', '.join(log.FORMATS)}", "FORMAT"),
)
# The default of the manifests.
_RUNNING = replace(
    STATUS_SOCKET,
    default="/run/xpu-device-plugin/status.sock",
    help="the running plugin's --status-socket",
)
CLEANUP_OPTIONS = (*_ACCESS, _STATE_DIR)
CLEAR_OPTIONS = (_RUNNING,)
LIST_OPTIONS = (*_PLACES, *_KUBELET, _RUNNING)
PLAN_OPTIONS = (*_PLACES, *_VFS, _RUNNING)
TOP_OPTIONS = (*_PLACES, _RUNNING)
DOCTOR_OPTIONS = BUNDLE_OPTIONS = PLAN_OPTIONS


@frozen
class Config:
    """The effective configuration, with a field for each option."""

    dev_root: Path = Path("/dev")
    sysfs_root: Path = Path("/sys")
    xpuml_library: str | None = None
    xre_dir: Path = Path("/usr/local/xpu")
    simulator_file: Path | None = None
    call_timeout: float = 5.0
    resource_name: str = "baidu.com/xpu"
    resource_per_profile: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    device_plugin_dir: Path = Path("/var/lib/kubelet/device-plugins")
    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    state_dir: Path = Path("/var/lib/xpu-device-plugin")
    sriov_num_vfs: int | None = 0  # None means `keep`
    vf_policy: str = VF_POLICIES[0]
    vf_timeout: float = 60.0
    vf_without_pod_resources: bool = False
    pod_list_delay: float = 10.0
    label_timeout: float = 5.0
    vf_decision_wait: float = 60.0
    kubeconfig: Path | None = None
    node_name: str | None = None
    pod_name: str | None = None
    pod_namespace: str = "kube-system"
    health_interval: float = 1.0
    health_failures: int = 2
    health_recovery: float = 10.0
    health_flaps: int = 5
    health_flap_window: float = 600.0
    health_grace: float = 15.0
    rescan_interval: float = 10.0
    status_socket: Path | None = None
    node_labels: bool = False
    metrics_address: tuple[str, int] | None = None
    fail_on_init_error: bool = False
    log_level: str = "info"
    log_format: str = "text"

    def __post_init__(self) -> None:
        if self.simulated and self.simulator_file is None:
            raise UsageError(f"--xpuml-library {SIMULATOR}: needs --simulator-file FILE")
        if not self.simulated and self.dev_root != Path("/dev"):
            raise UsageError(
                f"--dev-root: {str(self.dev_root)!r} is accepted with --xpuml-library {SIMULATOR} only, as "
                "the library itself uses /dev"
            )
        if self.status_socket and len(os.fsencode(self.status_socket)) > LONGEST_SOCKET_PATH:
            raise UsageError(
                f"--status-socket: {str(self.status_socket)!r} is too long for a socket's path; "
                f"accepted: up to {LONGEST_SOCKET_PATH} bytes"
            )
        if self.status_socket and self._is_the_kubelets(self.status_socket):
            raise UsageError(
                f"--status-socket: {str(self.status_socket)!r} is the kubelet's; accepted: a path outside of "
                "--device-plugin-dir, other than --pod-resources-socket"
            )
        if os.path.realpath(self.state_dir) == os.path.realpath(self.device_plugin_dir):
            raise UsageError(
                f"--state-dir: {str(self.state_dir)!r} is --device-plugin-dir, which the kubelet empties at "
                "its start; accepted: another directory"
            )
        longest = len(os.fsencode(self.device_plugin_dir / "xpu-device-plugin-01234567.sock"))
        longest += LONGEST_PROFILE if self.resource_per_profile else 0
        if longest > LONGEST_SOCKET_PATH:
            raise UsageError(
                f"--device-plugin-dir: {str(self.device_plugin_dir)!r} is too long for a socket's path; "
                f"accepted: up to {LONGEST_SOCKET_PATH} bytes with the socket's name"
            )

    def _is_the_kubelets(self, socket: Path) -> bool:
        """Return whether a kubelet serves at this path, or removes files there."""
        real, directory, plugins, pods = map(
            os.path.realpath,
            (socket, socket.parent, self.device_plugin_dir, self.pod_resources_socket),
        )
        return real == pods or plugins in (str(Path(real).parent), directory)

    @property
    def own_pod(self) -> str | None:
        """`namespace/name` in the kubelet's list; None outside of a pod."""
        return f"{self.pod_namespace}/{self.pod_name}" if self.pod_name else None

    @property
    def simulated(self) -> bool:
        return self.xpuml_library == SIMULATOR

    @property
    def libraries(self) -> tuple[str, ...]:
        """Paths of the library; the first usable one counts. The simulation knows its own library."""
        if self.xpuml_library is not None:
            return (self.xpuml_library,)
        places = (f"{HOST_ROOT}{self.xre_dir}", self.xre_dir)
        return (*(f"{place}/{name}" for place in places for name in LIBRARIES), LIBRARY_NAME)

    @property
    def worker_environment(self) -> dict[str, str]:
        """Environment variables of a worker in addition to our own."""
        if self.simulator_file is None:
            return {}
        return library.environment(self.simulator_file, self.dev_root, self.sysfs_root)

    def text(self) -> str:
        """Return all effective options, for the log."""
        return " ".join(
            f"{field.name.replace('_', '-')}={_shown(field.name, getattr(self, field.name))}"
            for field in fields(self)
        )


def _shown(name: str, value: object) -> str:
    if name == "sriov_num_vfs" and value is None:
        return vf_plan.KEEP
    if name == "metrics_address" and isinstance(value, tuple):
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match value:
        case None | ():
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return shlex.quote(",".join(map(str, value)))
    return shlex.quote(str(value))


# --- reading -----------------------------------------------------------------------------------------

# Options of the former plugin's manifests -> ours, or None for an option without a successor.
_LEGACY_OPTIONS = {
    "use-detail-resName": "resource-per-profile",
    "pass-device-specs": None,
    "rename-dev": None,
    "use-fake-dev": None,
}


def read_config(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    options: Sequence[Option] = OPTIONS,
    parser: Parser | None = None,
) -> tuple[Config, argparse.Namespace, list[str]]:
    """Return the configuration, the parser's other values, and warnings to log.

    Raises UsageError.
    """
    parser = parser or daemon_parser()
    add_options(parser, options)
    warnings: list[str] = []
    namespace = parser.parse_args(_modernise(arguments, options, warnings))
    values: dict[str, Any] = {}
    for option in options:
        given = vars(namespace).get(option.attribute)
        where = f"--{option.name}"
        for variable in (option.variable, *option.also):
            if given is None and environment.get(variable):
                given, where = environment[variable], variable
        text = option.default if given is None else given
        if text is None:
            continue
        try:
            values[option.attribute] = option.parse(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: {error}") from None
        if option.attribute == "sriov_num_vfs" and text == LEGACY_KEEP:
            warnings.append(f"{where}={LEGACY_KEEP} is understood as {vf_plan.KEEP}; write {vf_plan.KEEP}")
    return Config(**values), namespace, warnings


def daemon_parser() -> Parser:
    return Parser(
        prog=PROGRAM,
        description="Kubernetes device plugin for Kunlunxin XPUs.",
        epilog="Sub-commands, each with its own --help: list, plan, top, doctor, bundle, clear, cleanup, "
        "simulate, demo. Each option can be set by its environment variable too. Durations are in "
        "seconds.",
    )


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """Add options. All values stay text here; they are parsed later with those of the environment."""
    for option in options:
        default = f"default {option.default}; " if option.default is not None else ""
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.parse is _switch else {}
        repeated: dict[str, Any] = {"action": _Join} if option.parse is _names else {}
        parser.add_argument(
            f"--{option.name}",
            dest=option.attribute,
            metavar="true|false" if switch else option.metavar,
            help=f"{option.help} ({default}{option.variables})".replace("%", "%%"),
            **switch,
            **repeated,
        )


class _Join(argparse.Action):
    """Join the values of a repeated option into one list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def _modernise(arguments: Sequence[str], options: Sequence[Option], warnings: list[str]) -> list[str]:
    """Replace options of the former plugin, each with one warning."""
    known = {option.name for option in options} | {"help"}
    modern = []
    for argument in arguments:
        match = re.fullmatch(r"(--?)([A-Za-z][-A-Za-z]+)(=.*)?", argument, re.DOTALL)
        if match is None:
            modern.append(argument)
            continue
        dashes, name, value = match[1], match[2], match[3] or ""
        if name in _LEGACY_OPTIONS:
            successor = _LEGACY_OPTIONS[name]
            if successor is None:
                warnings.append(f"{dashes}{name} has no effect any more and is ignored")
            else:
                warnings.append(f"{dashes}{name} is understood as --{successor}; write --{successor}")
                modern.append(f"--{successor}{value}")
        elif dashes == "-" and name in known:
            warnings.append(f"-{name} is understood as --{name}; write --{name}")
            modern.append(f"--{name}{value}")
        else:
            modern.append(argument)
    return modern
