# SPDX-License-Identifier: Apache-2.0
"""Options: flag > environment > default, validated, with one line for each refusal."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xpu_plugin.config import LIST_OPTIONS, OPTIONS, Config, Option, UsageError, read_config


PATHS = (
    "device-plugin-dir",
    "pod-resources-socket",
    "pods-api-socket",
    "state-dir",
    "dev-root",
    "sysfs-root",
    "xre-dir",
    "simulator-file",
    "status-socket",
    "kubeconfig",
    "topology-file",
    "kernel-log-rules",
    "xpu-smi",
)
SWITCHES = (
    "mount-xre",
    "resource-per-profile",
    "vf-without-pod-resources",
    "node-labels",
    "node-condition",
    "pod-events",
    "fail-on-init-error",
)
# Two values of each option, as text and as they are understood.
VALUES: dict[str, list[tuple[str, object]]] = {
    **{name: [("/a", Path("/a")), ("/b/c", Path("/b/c"))] for name in PATHS},
    **{name: [("yes", True), ("FALSE", False)] for name in SWITCHES},
    "resource-per-profile": [("true", True), ("off", False)],
    "resource-name": [("example.com/card", "example.com/card"), ("a.b/C_d.9", "a.b/C_d.9")],
    "startup-taint": [("baidu.com/xpu-startup", "baidu.com/xpu-startup"), ("a_B.9", "a_B.9")],
    "xpuml-library": [("/a.so", "/a.so"), ("/b.so", "/b.so")],
    "health-interval": [("0.05", 0.05), ("3600", 3600.0)],
    "health-failures": [("1", 1), ("1000", 1000)],
    "health-recovery": [("0", 0.0), ("86400", 86400.0)],
    "health-flaps": [("1", 1), ("1000", 1000)],
    "health-flap-window": [("1", 1.0), ("604800", 604800.0)],
    "health-grace": [("0", 0.0), ("3600", 3600.0)],
    "kernel-log": [("off", "off"), ("act", "act")],
    "probe": [("/a/b", ("/a/b",)), ("/a -x 'y z'", ("/a", "-x", "y z"))],
    "probe-timeout": [("1", 1.0), ("3600", 3600.0)],
    "rescan-interval": [("0.05", 0.05), ("3600", 3600.0)],
    "call-timeout": [(".05", 0.05), ("600", 600.0)],
    "sriov-num-vfs": [("3", 3), ("keep", None)],
    "allow": [("R200", ("R200",)), ("a, b", ("a", "b"))],
    "deny": [("R200", ("R200",)), ("a,b", ("a", "b"))],
    "container-env": [("both", "both"), ("off", "off")],
    "mount-file": [("/a/b", ("/a/b",)), ("/a/b, /c/d.so.1", ("/a/b", "/c/d.so.1"))],
    "container-library-path": [("/a/lib", "/a/lib"), ("/a/lib:/b/lib", "/a/lib:/b/lib")],
    "vf-policy": [("never", "never"), ("when-idle", "when-idle")],
    "vf-handle-limit": [("off", 0), ("1024", 1024)],
    "vf-timeout": [("1", 1.0), ("3600", 3600.0)],
    "pod-list-delay": [("0.1", 0.1), ("600", 600.0)],
    "label-timeout": [("0", 0.0), ("600", 600.0)],
    "vf-decision-wait": [("0", 0.0), ("3600", 3600.0)],
    "node-name": [("node-1", "node-1"), ("a.b", "a.b")],
    "pod-name": [("plugin-x7", "plugin-x7"), ("p", "p")],
    "pod-namespace": [("xpu", "xpu"), ("default", "default")],
    "pod-uid": [("6c3b5dcb-9d54-4c5c-8d61-0a4a3a0b8f11", "6c3b5dcb-9d54-4c5c-8d61-0a4a3a0b8f11"), ("u", "u")],
    "metrics-address": [(":9476", ("", 9476)), ("[::1]:0", ("::1", 0))],
    "log-level": [("debug", "debug"), ("error", "error")],
    "log-format": [("json", "json"), ("text", "text")],
}
BY_NAME = {option.name: option for option in OPTIONS}


def read(*arguments: str, **environment: str) -> Config:
    config, _, warnings = read_config(arguments, environment)
    assert warnings == []
    return config


def needed(name: str) -> list[str]:
    """What has to be said beside an option."""
    if name == "dev-root":
        return ["--xpuml-library=simulator", "--simulator-file=/machine"]
    return []


def value(config: Config, name: str) -> object:
    result: object = getattr(config, BY_NAME[name].attribute)
    return result


def refused(*arguments: str, **environment: str) -> str:
    with pytest.raises(UsageError) as refusal:
        read_config(arguments, environment)
    text = str(refusal.value)
    assert text.splitlines() == [text]
    return text


# --- sources ------------------------------------------------------------------------------------------


def test_without_options_all_have_their_defaults() -> None:
    assert read() == Config()
    assert {field.name for field in fields(Config)} == {option.attribute for option in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_read_from_its_flag_then_its_variable_then_its_default(option: Option) -> None:
    (first, wanted), (second, other) = VALUES[option.name]
    more, flag = needed(option.name), f"--{option.name}"
    variable = "XPU_PLUGIN_" + option.name.upper().replace("-", "_")
    assert value(read(*more, f"{flag}={first}"), option.name) == wanted
    assert value(read(*more, flag, first), option.name) == wanted
    assert value(read(*more, **{variable: first}), option.name) == wanted
    assert value(read(*more, f"{flag}={second}", **{variable: first}), option.name) == other
    assert value(read(*more, **{variable: ""}), option.name) == value(Config(), option.name)


def test_the_last_of_several_flags_counts() -> None:
    assert read("--log-level=debug", "--log-level=error").log_level == "error"


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_alone_is_on_and_beats_its_variable(name: str) -> None:
    assert value(read(f"--{name}"), name) is True
    assert value(read(f"--{name}", **{BY_NAME[name].variable: "false"}), name) is True
    assert value(read(f"--{name}=false", **{BY_NAME[name].variable: "true"}), name) is False


@pytest.mark.parametrize("name", ["allow", "deny"])
def test_a_list_given_several_times_is_one_list(name: str) -> None:
    assert value(read(f"--{name}=a", f"--{name}", "b, c"), name) == ("a", "b", "c")
    assert value(read(f"--{name}=a", **{BY_NAME[name].variable: "b"}), name) == ("a",)


def test_list_takes_only_the_options_that_concern_it_from_flags_and_environment() -> None:
    config, _, _ = read_config(["--deny=x"], {"XPU_PLUGIN_STATE_DIR": "no path"}, options=LIST_OPTIONS)
    assert config == Config(deny=("x",), status_socket=Path("/run/xpu-device-plugin/status.sock"))
    with pytest.raises(UsageError, match="--state-dir"):
        read_config(["--state-dir=/x"], {}, options=LIST_OPTIONS)


def test_help_shows_every_option_with_its_variable_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_:
        read_config(["--help"], {})
    assert exit_.value.code in (None, 0)
    shown = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        default = f"default {option.default}; " if option.default is not None else ""
        assert f"({default}{option.variables})" in shown
        assert f"--{option.name} " in shown


# --- refusals -----------------------------------------------------------------------------------------

BAD: list[tuple[str, str, str]] = [
    *((name, bad, "an absolute path") for name in PATHS for bad in ("relative", "./x", "~/x")),
    *(
        ("health-interval", bad, "seconds from 0.05 to 3600")
        for bad in ("0", "-1", "1s", "nan", "inf", "3601")
    ),
    *(
        ("call-timeout", bad, "seconds from 0.05 to 600")
        for bad in ("0.04", "1e2", "0x1", "601", "1_0", "\u0661")
    ),
    *(
        (name, bad, "a whole number from 1 to 1000")
        for name in ("health-failures", "health-flaps")
        for bad in ("0", "1001", "-1", "1.0", "two", "9" * 400, "1 ", "\u0661")
    ),
    *(
        ("sriov-num-vfs", bad, "a whole number from 0 to 63, or keep")
        for bad in ("64", "-1", "1.0", "Keep", "all", "100", "3 ", "\u00b2")
    ),
    *(
        ("vf-handle-limit", bad, "a whole number from 1 to 1024, model or off")
        for bad in ("0", "1025", "-1", "1.5", "on", "Off", "3 ")
    ),
    *(
        ("resource-name", bad, "such as baidu.com/xpu")
        for bad in ("xpu", "/xpu", "a.b/", "A.b/xpu", "a.b/-x", "a.b/x/y", "a..b/x", "a.b/" + "x" * 64)
    ),
    *(
        ("probe", bad, "the absolute path of an executable file, and its arguments")
        for bad in ("probe", "./probe", " ", "'/a", "-x /a")
    ),
    ("resource-name", "kubernetes.io/xpu", "other than kubernetes.io"),
    ("resource-name", "requests.kubernetes.io/xpu", "other than kubernetes.io"),
    *(
        ("startup-taint", bad, "a key, such as baidu.com/xpu-startup")
        for bad in ("/xpu", "a.b/", "a.b/-x", "a/b/c", "x y", "key:NoSchedule", "key=value", "x" * 64)
    ),
    ("startup-taint", "node.kubernetes.io/not-ready", "other than kubernetes.io"),
    ("xpuml-library", "libxpuml.so", "an absolute path, or 'simulator'"),
    *((name, bad, "true or false") for name in SWITCHES for bad in ("maybe", "2")),
    *((name, bad, "comma separated") for name in ("allow", "deny") for bad in (",", "a,,b", " ", "a,")),
    *(("container-env", bad, "off or xpu or cuda or both") for bad in ("on", "XPU", "xpu,cuda")),
    *(
        (name, bad, "absolute paths below a directory")
        for name in ("mount-file", "container-library-path")
        for bad in ("/", "/a", "a/b", "/a/../b", "/a/./b", "/a//b", "/a/b/", "/a/b\n/c/d", "~/lib")
    ),
    *(("mount-file", bad, "comma separated") for bad in (",", "/a/b,", "/a/b,,/c/d", "/a/b,c")),
    *(("container-library-path", bad, "colon separated") for bad in (":", "/a/b:", "/a/b::/c/d")),
    ("log-level", "INFO", "debug or info or warning or error"),
    ("log-level", "verbose", "debug or info or warning or error"),
    ("log-format", "xml", "text or json"),
]


@pytest.mark.parametrize(("name", "bad", "accepted"), BAD)
def test_a_refusal_names_option_or_variable_and_value_and_what_is_accepted(
    name: str, bad: str, accepted: str
) -> None:
    for text, source in (
        (refused(f"--{name}={bad}"), f"--{name}: "),
        (refused(**{BY_NAME[name].variable: bad}), f"{BY_NAME[name].variable}: "),
    ):
        assert text.startswith(source)
        assert repr(bad) in text
        assert accepted in text


@given(name=st.sampled_from(sorted(BY_NAME)), text=st.text(st.characters(exclude_characters="\0")))
@example("resource-name", "baidu.com/xpu\n")
@example("log-level", "info\ninfo")
@example("sriov-num-vfs", "3\n")
@example("health-interval", "9" * 400)
def test_any_value_is_understood_or_refused_in_one_line(name: str, text: str) -> None:
    refusals = []
    for arguments, environment in (([f"--{name}={text}"], {}), ([], {BY_NAME[name].variable: text})):
        try:
            read_config([*arguments, *needed(name)], environment)
        except UsageError as refusal:
            refusals.append(str(refusal))
    for line in refusals:
        assert line.splitlines() == [line]
        assert f"--{name}" in line or BY_NAME[name].variable in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bogus"], "--bogus"),
        (["--bogus=3"], "--bogus"),
        (["extra"], "extra"),
        (["--log-level"], "--log-level"),
        (["--log-lev=info"], "--log-lev"),
        (["one\ntwo"], "one"),
        (["one\rtwo"], "one"),
        (["one\x1b[2J"], "one"),
        (["--bo\ngus"], "--bo"),
    ],
)
def test_what_is_no_option_is_refused_in_one_line(arguments: list[str], named: str) -> None:
    assert named in refused(*arguments)


def test_the_library_is_looked_for_below_the_hosts_directories_then_as_it_is_named_then_by_the_loader() -> (
    None
):
    assert read().libraries == (
        "/host/usr/local/xpu/lib64/libxpuml.so.1",
        "/host/usr/local/xpu/lib/libxpuml.so.1",
        "/host/usr/local/xpu/lib64/libxpuml.so",
        "/host/usr/local/xpu/lib/libxpuml.so",
        "/usr/local/xpu/lib64/libxpuml.so.1",
        "/usr/local/xpu/lib/libxpuml.so.1",
        "/usr/local/xpu/lib64/libxpuml.so",
        "/usr/local/xpu/lib/libxpuml.so",
        "libxpuml.so.1",
    )
    elsewhere = read("--xre-dir=/opt/xre").libraries
    assert elsewhere[0] == "/host/opt/xre/lib64/libxpuml.so.1"
    assert elsewhere[4] == "/opt/xre/lib64/libxpuml.so.1"
    assert read("--xpuml-library=/a.so", "--xre-dir=/opt/xre").libraries == ("/a.so",)


def test_files_for_containers_are_the_xre_and_those_that_are_named_each_once() -> None:
    assert read("--mount-file=/a/b", "--mount-file=/c/d,/a/b").container_files == ("/a/b", "/c/d")
    assert read("--mount-xre").container_files == ("/usr/local/xpu",)
    elsewhere = read("--mount-xre", "--xre-dir=/opt/xre", "--mount-file=/opt/xre,/a/b")
    assert elsewhere.container_files == ("/opt/xre", "/a/b")
    assert refused("--mount-xre", "--xre-dir=/").startswith("--mount-xre: --xre-dir is '/'; accepted: ")


def test_the_simulator_needs_its_file() -> None:
    text = refused("--xpuml-library=simulator")
    assert "--xpuml-library" in text
    assert "--simulator-file" in text
    assert read("--xpuml-library=simulator", "--simulator-file=/machine").simulated


def test_the_library_itself_looks_in_dev_so_another_place_is_for_the_simulator_only() -> None:
    text = refused("--dev-root=/tmp/dev")
    assert text.startswith("--dev-root: '/tmp/dev'")
    assert "simulator" in text
    assert read("--dev-root=/dev/").dev_root == Path("/dev")


@pytest.mark.parametrize(
    ("name", "inside"), [("device-plugin-dir", "/xpu-device-plugin-01234567.sock"), ("status-socket", "")]
)
def test_a_path_too_long_for_a_socket_is_refused_before_anything_runs(name: str, inside: str) -> None:
    """The path of a socket has room for 107 bytes, not characters."""
    longest = "/" + "d" * (106 - len(inside))
    assert value(read(f"--{name}={longest}"), name) == Path(longest)
    for deep in (f"{longest}d", "/" + "目" * 40):
        text = refused(f"--{name}={deep}")
        assert text.startswith(f"--{name}: ")
        assert "107" in text


@pytest.mark.parametrize(
    "path",
    [
        "plugins/kubelet.sock",
        "plugins/own.sock",
        "link/own.sock",
        "pods/kubelet.sock",
        "plugins/../pods/kubelet.sock",
        "pods-api/pods-api.sock",
        "alias",
    ],
)
def test_a_status_socket_that_is_the_kubelets_is_refused(path: str, place: Path) -> None:
    """Nothing there has to exist yet."""
    (place / "link").symlink_to("plugins")
    (place / "alias").symlink_to("pods/kubelet.sock")
    places = (
        f"--device-plugin-dir={place}/plugins",
        f"--pod-resources-socket={place}/pods/kubelet.sock",
        f"--pods-api-socket={place}/pods-api/pods-api.sock",
    )
    text = refused(*places, f"--status-socket={place}/{path}")
    assert text.startswith(f"--status-socket: '{place}/{path}' is the kubelet's; accepted: ")
    for accepted in ("pods/own.sock", "plugins/below/own.sock", "status.sock"):
        assert read(*places, f"--status-socket={place}/{accepted}").status_socket


def test_a_state_directory_that_the_kubelet_empties_is_refused(place: Path) -> None:
    plugins = f"--device-plugin-dir={place}/plugins"
    assert refused(plugins, f"--state-dir={place}/x/../plugins").startswith("--state-dir: ")
    assert read(plugins, f"--state-dir={place}/plugins/state").state_dir == place / "plugins/state"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_accepted_with_a_single_dash(option: Option) -> None:
    text, wanted = VALUES[option.name][0]
    config, _, warnings = read_config([*needed(option.name), f"-{option.name}={text}"], {})
    assert value(config, option.name) == wanted
    assert len(warnings) == 1


# --- what is logged -----------------------------------------------------------------------------------


def test_the_effective_configuration_is_one_line_with_every_option() -> None:
    text = read("--sriov-num-vfs=keep", "--allow=a,b", "--health-interval=0.50").text()
    assert "\n" not in text
    shown = dict(word.split("=", 1) for word in text.split(" "))
    assert list(shown) == [field.name.replace("_", "-") for field in fields(Config)]
    assert shown["sriov-num-vfs"] == "keep"
    assert shown["allow"] == "a,b"
    assert shown["deny"] == shown["xpuml-library"] == "-"
    assert shown["health-interval"] == "0.5"
    assert shown["fail-on-init-error"] == "false"
