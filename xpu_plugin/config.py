# SPDX-License-Identifier: Apache-2.0
"""The daemon's options: one table, flag > environment > default, all validated before the start."""

import argparse
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from xpu_plugin import legacy_arguments, log
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model import additions, node_labels, readiness, vf_plan
from xpu_plugin.simulation import library


PROGRAM = "xpu-device-plugin"
SIMULATOR = "simulator"
VF_POLICIES = ("when-idle", "never")
BY_MODEL, NO_LIMIT = "model", "off"
MOST_HANDLES = 1024
KERNEL_LOG = ("off", "report", "act")
LONGEST_SOCKET_PATH = 107  # bytes of sun_path
LONGEST_PROFILE = 24  # bytes that a profile's name adds to the names of sockets
MANIFESTS_STATUS_SOCKET = "/run/xpu-device-plugin/status.sock"
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
        return _beside_kubernetes(domain, text)
    return _refuse(text, "a domain and a name, such as baidu.com/xpu")


def _object_name(text: str) -> str:
    """Parse a name, by the rules of Kubernetes for nodes, pods and namespaces."""
    if re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        return text
    return _refuse(text, "lower-case letters, digits, - and ., up to 253 of them")


def _key(text: str) -> str:
    """Parse a taint's key, by the rules of Kubernetes. Kubernetes' own taints have their own owners."""
    domain, slash, _ = text.rpartition("/")
    name = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
    if not re.fullmatch(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{name}", text):
        _refuse(text, "a key, such as baidu.com/xpu-startup")
    return _beside_kubernetes(domain, text) if slash else text


def _beside_kubernetes(domain: str, text: str) -> str:
    """Return the text, unless its domain is that of Kubernetes itself."""
    if domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        _refuse(text, "a domain other than kubernetes.io, which is reserved")
    return text


def _address(text: str) -> tuple[str, int]:
    """Parse a host, which may be empty or an IPv6 address in brackets, and a port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[-0-9A-Za-z.]*):([0-9]{1,5})", text)
    if match is None or int(match[2]) >= 1 << 16:
        _refuse(text, "[HOST]:PORT, such as :9476, 127.0.0.1:9476 or [::1]:9476")
    return match[1].strip("[]"), int(match[2])


def _vfs(text: str) -> int | None:
    """Parse a number of VFs; None means `keep`."""
    try:
        return vf_plan.parse(legacy_arguments.number(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _handles(text: str) -> int | None:
    """Parse a maximum of device nodes; None: by the model, 0: no maximum."""
    if text in (BY_MODEL, NO_LIMIT):
        return None if text == BY_MODEL else 0
    if re.fullmatch(r"[1-9][0-9]{0,3}", text) and int(text) <= MOST_HANDLES:
        return int(text)
    return _refuse(text, f"a whole number from 1 to {MOST_HANDLES}, {BY_MODEL} or {NO_LIMIT}")


def _command(text: str) -> tuple[str, ...]:
    """Parse a program and its arguments, as a shell splits words."""
    accepted = "the absolute path of an executable file, and its arguments, split as a shell splits words"
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quotation without an end
        _refuse(text, f"{accepted} ({str(error).lower()})")
    return tuple(words) if words and words[0].startswith("/") else _refuse(text, accepted)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    return names if all(names) else _refuse(text, "device ids, models or serial numbers, comma separated")


def _host_files(text: str) -> tuple[str, ...]:
    """Parse paths of the host, which are the same in a container."""
    paths = tuple(path.strip() for path in text.split(","))
    return paths if all(map(_in_a_directory, paths)) else _refuse(text, f"{_PATHS}, comma separated")


def _library_path(text: str) -> str:
    return text if all(map(_in_a_directory, text.split(":"))) else _refuse(text, f"{_PATHS}, colon separated")


_PATHS = "absolute paths below a directory, without .. and control characters"


def _in_a_directory(path: str) -> bool:
    """Return whether a path is none of the directories at the top, which a container has itself."""
    parts = path.split("/")
    return re.fullmatch(r"(/[^/\x00-\x1f\x7f]+){2,}", path) is not None and not {".", ".."} & {*parts}


# --- the options --------------------------------------------------------------------------------------


@frozen
class Option:
    """One option."""

    name: str
    parse: Callable[[str], Any]
    default: str | None  # text, parsed like any other; None: not given
    help: str
    metavar: str
    also: tuple[str, ...]  # customary environment variables, after our own

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


def _option(
    parse: Callable[[str], Any],
    default: str | None,
    help: str,
    metavar: str = "VALUE",
    *,
    also: tuple[str, ...] = (),
    absent: object = None,
) -> Any:  # as `dataclasses.field`
    """Declare a field of `Config` and its option. absent: the value if the option has no default"""
    option = {"parse": parse, "default": default, "help": help, "metavar": metavar, "also": also}
    return field(default=absent if default is None else parse(default), metadata=option)


@frozen
class Config:
    """The effective configuration. Each field is an option, in the order of --help."""

    dev_root: Path = _option(_absolute, "/dev", "directory of the device nodes", "DIR")
    sysfs_root: Path = _option(_absolute, "/sys", "directory of sysfs", "DIR")
    xpuml_library: str | None = _option(
        _library,
        None,
        f"the libxpuml to open, or {SIMULATOR!r}; if not given, searched in --xre-dir, then by the loader",
        "PATH",
    )
    xre_dir: Path = _option(
        _absolute,
        "/usr/local/xpu",
        f"the host's directory of XRE; searched below {HOST_ROOT} first, where the manifests mount it",
        "DIR",
    )
    simulator_file: Path | None = _option(_absolute, None, "the simulator's machine file", "FILE")
    call_timeout: float = _option(_seconds(0.05, 600), "5", "seconds for each call of the library", "SECONDS")
    resource_name: str = _option(_resource, "baidu.com/xpu", "resource name of the offered devices", "NAME")
    resource_per_profile: bool = _option(
        _switch,
        "false",
        "offer each model and VF profile under a name of its own, such as baidu.com/R200-VF-8G",
    )
    allow: tuple[str, ...] = _option(
        _names, None, "offer only these: ids, models or serial numbers", "A,B", absent=()
    )
    deny: tuple[str, ...] = _option(
        _names, None, "never offer these: ids, models or serial numbers", "A,B", absent=()
    )
    topology_file: Path | None = _option(
        _absolute,
        None,
        "file of link groups: the PCI addresses of the cards of one group in a line; if not given, those of "
        "--xpu-smi, else of sysfs",
        "FILE",
    )
    xpu_smi: Path | None = _option(
        _absolute,
        None,
        "xpu-smi, of which `topo -m` tells the link groups; not run if not given",
        "PATH",
    )
    container_env: str = _option(
        _one_of(*additions.VARIABLES),
        additions.OFF,
        f"give containers the positions of their devices, from 0: in {additions.XPU_VARIABLE}, in "
        f"{additions.CUDA_VARIABLE}, or in both",
        "CHOICE",
    )
    mount_xre: bool = _option(
        _switch, "false", "give containers the host's --xre-dir at the same path, for reading only"
    )
    mount_file: tuple[str, ...] = _option(
        _host_files,
        None,
        "give containers these files or directories of the host at the same paths, for reading only",
        "A,B",
        absent=(),
    )
    container_library_path: str | None = _option(
        _library_path,
        None,
        f"give containers this {additions.LIBRARY_VARIABLE}; none if not given",
        "A:B",
    )
    device_plugin_dir: Path = _option(
        _absolute, "/var/lib/kubelet/device-plugins", "the kubelet's directory of device plugins", "DIR"
    )
    pod_resources_socket: Path = _option(
        _absolute, "/var/lib/kubelet/pod-resources/kubelet.sock", "the kubelet's pod resources API", "SOCKET"
    )
    pods_api_socket: Path = _option(
        _absolute,
        "/var/lib/kubelet/pods-api/pods-api.sock",
        "the kubelet's pods API, of Kubernetes 1.37 and newer; without it the other proofs count",
        "SOCKET",
    )
    state_dir: Path = _option(
        _absolute,
        "/var/lib/xpu-device-plugin",
        "directory of the records: grants, quarantines, changes of VFs and the label last seen",
        "DIR",
    )
    sriov_num_vfs: int | None = _option(
        _vfs,
        "0",
        f"desired number of VFs of each card, 0 to {vf_plan.MOST_VFS}, or {vf_plan.KEEP}; the node label "
        f"{vf_plan.LABEL} takes precedence",
        "N",
    )  # None means `keep`
    vf_policy: str = _option(
        _one_of(*VF_POLICIES),
        "when-idle",
        "change a card when it is idle, or never change one and only report",
        "POLICY",
    )
    vf_handle_limit: int | None = _option(
        _handles,
        BY_MODEL,
        "maximum of device nodes /dev/xpuN on the host, PFs included, that a change of VFs may lead to: a "
        f"number, that of the cards' model ({BY_MODEL}), or no maximum ({NO_LIMIT})",
        "N",
    )  # None means that of the model, 0 none
    vf_timeout: float = _option(_seconds(1, 3600), "60", "seconds until a change of VFs must show", "SECONDS")
    vf_without_pod_resources: bool = _option(
        _switch,
        "false",
        "consent to change cards by the other proofs if the kubelet has no pod resources API",
    )
    pod_list_delay: float = _option(
        _seconds(0.1, 600),
        "10",
        "seconds until the kubelet's list shows a grant; a card is withheld so long before its change",
        "SECONDS",
    )
    label_timeout: float = _option(
        _seconds(0, 600),
        "5",
        "seconds without an answer of the API server until the label last seen counts; if the server refuses "
        "and no label was seen, --sriov-num-vfs counts",
        "SECONDS",
    )
    vf_decision_wait: float = _option(
        _seconds(0, 3600),
        "60",
        "maximum seconds that idle cards are withheld from new pods until the desired VF count is known",
        "SECONDS",
    )
    kubeconfig: Path | None = _option(
        _absolute, None, "credentials for the API server; without it, a pod's service account", "FILE"
    )
    node_name: str | None = _option(
        _object_name, None, "this node's name in the cluster", "NAME", also=("NODE_NAME",)
    )
    pod_name: str | None = _option(_object_name, None, "the name of our own pod", "NAME", also=("POD_NAME",))
    pod_namespace: str = _option(
        _object_name, "kube-system", "the namespace of our own pod", "NAME", also=("POD_NAMESPACE",)
    )
    pod_uid: str | None = _option(
        _object_name, None, "the UID of our own pod, for the record of hand-overs", "UID", also=("POD_UID",)
    )
    health_interval: float = _option(
        _seconds(0.05, 3600), "1", "seconds between two rounds of all states", "SECONDS"
    )
    health_failures: int = _option(
        _number(1, 1000),
        "2",
        "consecutive failed calls until a device is unhealthy; an error state acts at once",
        "N",
    )
    health_recovery: float = _option(
        _seconds(0, 86400), "10", "seconds of good answers until a device is healthy again", "SECONDS"
    )
    health_flaps: int = _option(
        _number(1, 1000),
        "5",
        "accepted changes of a device's health within --health-flap-window; one more quarantines it",
        "N",
    )
    health_flap_window: float = _option(
        _seconds(1, 604800),
        "600",
        "seconds for --health-flaps; a quarantine ends after so many seconds without a change",
        "SECONDS",
    )
    health_grace: float = _option(
        _seconds(0, 3600),
        "15",
        "seconds that a device keeps its health while the library hangs, crashes or cannot be opened",
        "SECONDS",
    )
    kernel_log: str = _option(
        _one_of(*KERNEL_LOG),
        KERNEL_LOG[1],
        "follow the kernel's log for lines of the driver: report incidents, or act and list a sick card as "
        "unhealthy too",
        "MODE",
    )
    kernel_log_rules: Path | None = _option(
        _absolute, None, "file of the lines and numbers that count, in place of the plugin's own", "FILE"
    )
    probe: tuple[str, ...] = _option(
        _command,
        None,
        "program, with arguments, that tests a device with a driver error once its card is idle: exit status "
        "0 ends the driver error; needs --kernel-log act; none if not given",
        "COMMAND",
        absent=(),
    )
    probe_timeout: float = _option(
        _seconds(1, 3600), "60", "seconds until a --probe that has not ended is killed", "SECONDS"
    )
    rescan_interval: float = _option(
        _seconds(0.05, 3600),
        "10",
        "seconds between two checks of device nodes and sysfs for a change",
        "SECONDS",
    )
    status_socket: Path | None = _option(
        _absolute,
        None,
        "socket for sub-commands of the running plugin, root only; none if not given",
        "SOCKET",
    )
    node_labels: bool = _option(
        _switch,
        "false",
        f"label the node with {node_labels.PREFIX}model, count, memory-mib, driver-version and vf-capable",
    )
    startup_taint: str | None = _option(
        _key,
        None,
        "remove the taint with this key from the node once its cards are ready for pods; none if not given",
        "KEY",
    )
    node_condition: bool = _option(
        _switch, "false", f"write the condition {readiness.CONDITION} to the node's status"
    )
    pod_events: bool = _option(
        _switch,
        "false",
        "report a device that becomes unhealthy or recovers by an Event of each pod that has it",
    )
    metrics_address: tuple[str, int] | None = _option(
        _address, None, "address of /metrics, /healthz and /readyz by HTTP; none if not given", "[HOST]:PORT"
    )
    fail_on_init_error: bool = _option(_switch, "false", "exit with status 1 when the first scan fails")
    log_level: str = _option(_one_of(*log.LEVELS), "info", f"one of {', '.join(log.LEVELS)}", "LEVEL")
    log_format: str = _option(_one_of(*log.FORMATS), "text", f"one of {', '.join(log.FORMATS)}", "FORMAT")

    def __post_init__(self) -> None:
        if self.simulated and self.simulator_file is None:
            raise UsageError(f"--xpuml-library {SIMULATOR}: needs --simulator-file FILE")
        if not self.simulated and self.dev_root != Path("/dev"):
            raise UsageError(
                f"--dev-root: {str(self.dev_root)!r} is accepted with --xpuml-library {SIMULATOR} only, as "
                "the library itself uses /dev"
            )
        if self.mount_xre and not _in_a_directory(str(self.xre_dir)):
            raise UsageError(f"--mount-xre: --xre-dir is {str(self.xre_dir)!r}; accepted: {_PATHS}")
        if self.status_socket and len(os.fsencode(self.status_socket)) > LONGEST_SOCKET_PATH:
            raise UsageError(
                f"--status-socket: {str(self.status_socket)!r} is too long for a socket's path; "
                f"accepted: up to {LONGEST_SOCKET_PATH} bytes"
            )
        if self.status_socket and self._is_the_kubelets(self.status_socket):
            raise UsageError(
                f"--status-socket: {str(self.status_socket)!r} is the kubelet's; accepted: a path outside of "
                "--device-plugin-dir, other than --pod-resources-socket and --pods-api-socket"
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
        real, directory, plugins, *served = map(
            os.path.realpath,
            (socket, socket.parent, self.device_plugin_dir, self.pod_resources_socket, self.pods_api_socket),
        )
        return real in served or plugins in (str(Path(real).parent), directory)

    @property
    def own_pod(self) -> str | None:
        """`namespace/name` in the kubelet's list; None outside of a pod."""
        return f"{self.pod_namespace}/{self.pod_name}" if self.pod_name else None

    @property
    def acts_on_kernel_log(self) -> bool:
        return self.kernel_log == KERNEL_LOG[2]

    @property
    def container_files(self) -> tuple[str, ...]:
        """Paths of the host that containers get, each once."""
        xre = (str(self.xre_dir),) if self.mount_xre else ()
        return tuple(dict.fromkeys((*xre, *self.mount_file)))

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
        """Return all effective options in one line."""
        return " ".join(f"{name}={_shown(value)}" for name, value in self.shown().items())

    def shown(self) -> dict[str, object]:
        """Return all effective options by their names."""
        return {
            field.name.replace("_", "-"): _plain(field.name, getattr(self, field.name))
            for field in fields(self)
        }


def _plain(name: str, value: object) -> object:
    if name == "sriov_num_vfs":
        return vf_plan.KEEP if value is None else str(value)
    if name == "vf_handle_limit":
        return {None: BY_MODEL, 0: NO_LIMIT}.get(value, value)  # type: ignore[call-overload] # any value
    if name == "probe" and isinstance(value, tuple) and value:
        return shlex.join(value)
    if name == "metrics_address" and isinstance(value, tuple):
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return value


def _shown(value: object) -> str:
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


OPTIONS = tuple(Option(name=field.name.replace("_", "-"), **field.metadata) for field in fields(Config))


def _range(first: str, last: str) -> tuple[Option, ...]:
    names = [option.name for option in OPTIONS]
    return OPTIONS[names.index(first) : names.index(last) + 1]


# The options of sub-commands.
_PLACES = _range("dev-root", "deny")
_KUBELET = _range("device-plugin-dir", "pods-api-socket")
_VFS = _range("device-plugin-dir", "pod-namespace")
_RUNNING = tuple(
    replace(option, default=MANIFESTS_STATUS_SOCKET, help="the running plugin's --status-socket")
    for option in _range("status-socket", "status-socket")
)
CLEANUP_OPTIONS = (*_range("kubeconfig", "node-name"), *_range("state-dir", "state-dir"))
CLEAR_OPTIONS = _RUNNING
LIST_OPTIONS = (*_PLACES, *_KUBELET, *_RUNNING)
PLAN_OPTIONS = (*_PLACES, *_VFS, *_RUNNING)
TOP_OPTIONS = (*_PLACES, *_RUNNING)
TOPO_OPTIONS = (*_PLACES, *_range("topology-file", "xpu-smi"), *_RUNNING)
DOCTOR_OPTIONS = BUNDLE_OPTIONS = PLAN_OPTIONS


# --- reading -----------------------------------------------------------------------------------------


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
    modern, warnings = legacy_arguments.modernise(arguments, {option.name for option in options} | {"help"})
    namespace = parser.parse_args(modern)
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
        if option.parse is _vfs and (number := legacy_arguments.number(text)) != text:
            warnings.append(f"{where}={text} is understood as {number}; write {number}")
    return Config(**values), namespace, warnings


def daemon_parser() -> Parser:
    return Parser(
        prog=PROGRAM,
        description="Kubernetes device plugin for Kunlunxin XPUs.",
        epilog="Sub-commands, each with its own --help: list, plan, top, topo, doctor, bundle, clear, "
        "cleanup, simulate, demo. Each option can be set by its environment variable too. Durations are in "
        "seconds.",
    )


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """Add options. All values stay text here; they are parsed later with those of the environment."""
    for option in options:
        default = f"default {option.default}; " if option.default is not None else ""
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.parse is _switch else {}
        repeated: dict[str, Any] = {"action": _Join} if option.parse in (_names, _host_files) else {}
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
