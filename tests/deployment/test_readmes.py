# SPDX-License-Identifier: Apache-2.0
"""Every YAML and every command of READMEs and task pages: schema-checked, or looked up in its subject."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.support.pages import READMES, TASKS, TRANSLATED, parts, prose, tables
from xpu_plugin import cli, config, legacy_arguments
from xpu_plugin.model import vf_plan

from .manifests import (
    DEPLOYMENT,
    MANIFEST,
    ROOT,
    Plugin,
    check,
    kubectls,
    objects_in,
    objects_of,
    the,
    title,
)


PLACEHOLDER = "PLACEHOLDER"
"""Instead of <this>, and of NODE and POD: a name that Kubernetes would take, too."""

PATHS = re.compile(
    r"(?:\./)?(?:script|deployment|docker|docs|tests|xpu_plugin|_xpuml)/[-\w./]+|[-\w]+\.(?:md|sh)"
)
CHECKED = (*READMES, *TASKS, *(TRANSLATED[page] for page in TASKS))


def blocks(readme: str) -> list[tuple[str, str]]:
    """Each code block: its language and its text."""
    return [
        (fence.removeprefix("```").strip(), "\n".join(lines))
        for fence, lines in parts(ROOT / readme)
        if fence
    ]


def spans(readme: str) -> list[str]:
    """What is set as code within the prose, which may go over the end of a line."""
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", "\n".join(prose(ROOT / readme)))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a piece of shell, without what says for whom and in which environment."""
    text = re.sub(r"<[^<>]+>", PLACEHOLDER, text.replace("\\\n", " "))
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        command: list[str] = []
        words = words[: words.index(">")] if ">" in words else words
        for word in [*words, "&&"]:
            if word in ("&&", "||", ";", "|"):
                if command:
                    yield command
                command = []
            elif command or not re.fullmatch(r"sudo|[A-Z_]+=.*", word):
                command.append(word)


def in_code_blocks(readme: str) -> list[list[str]]:
    return [command for language, text in blocks(readme) if language == "sh" for command in commands(text)]


def in_prose(readme: str) -> list[list[str]]:
    """Commands within sentences: what begins with a program and is not its name alone."""
    programs = set(PROGRAMS) | {config.PROGRAM}
    return [
        command
        for span in spans(readme)
        if span.partition(" ")[0] in programs and " " in span
        for command in commands(span)
    ]


# --- what a command may be -----------------------------------------------------------------------


def check_git(words: list[str]) -> None:
    verb, _, directory = words
    assert (verb, directory) == ("clone", config.PROGRAM)


def check_cd(words: list[str]) -> None:
    assert words == [config.PROGRAM]


def check_make(words: list[str]) -> None:
    """Targets and variables that the Makefile has."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert words
    for word in words:
        name, assigned, _ = word.partition("=")
        known = rf"\$\({name}\)" if assigned else rf"^{re.escape(name)}:"
        assert re.search(known, makefile, re.MULTILINE), f"make {word}"


def check_build(words: list[str]) -> None:
    assert words == []
    script = ROOT / "build.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)


def check_image_build(words: list[str]) -> None:
    """docker, podman or buildah build -t IMAGE -f FILE DIRECTORY"""
    verb, *rest = words
    assert verb in ("build", "bud")
    options = dict(zip(rest[:-1:2], rest[1:-1:2], strict=True))
    assert options.keys() == {"-t", "-f"}
    assert options["-t"] == Plugin(the(objects_of(MANIFEST), "DaemonSet")).container["image"]
    assert (ROOT / options["-f"]).is_file()
    assert (ROOT / rest[-1]).is_dir()


def check_helm(words: list[str]) -> None:
    verb, release, chart, *options = words
    assert verb in ("install", "upgrade", "template")
    assert release == config.PROGRAM, "by which the objects are named as in the manifest"
    assert (ROOT / chart / "Chart.yaml").is_file()
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.pop("--namespace") == the(objects_of(MANIFEST), "DaemonSet")["metadata"]["namespace"]
    check_values(given.pop("--set", ""))
    assert given == {}


def check_values(assignments: str) -> None:
    (values,) = objects_of(DEPLOYMENT / "helm/xpu-device-plugin/values.yaml")
    for assignment in filter(None, assignments.split(",")):
        value = values
        for name in assignment.partition("=")[0].split("."):
            value = value[name]


SIGHUP = ["sh", "-c", "kill -HUP 1"]
NOUNS = {"node", "nodes", "pod", "pods", "daemonset", "deployment"}
OWN_OBJECTS = {(each["kind"].lower(), each["metadata"]["name"]) for each in objects_of(MANIFEST)}


def check_kubectl(words: list[str]) -> None:
    """What it names is there. Whether kubectl takes its options is what kubectl itself is asked for."""
    place = words.index("--") if "--" in words else len(words)
    (verb, *rest), inner = words[:place], words[place + 1 :]
    assert bool(inner) == (verb == "exec")
    for option, value in itertools.pairwise(rest):
        if option in ("-f", "--filename"):
            assert (ROOT / value).is_file(), value
            assert objects_of(ROOT / value)
        elif option in ("-k", "--kustomize"):
            assert (ROOT / value / "kustomization.yaml").is_file(), value
        elif option == "-L":
            assert value in (vf_plan.LABEL, vf_plan.STATE_LABEL)
        elif option in ("-n", "--namespace"):
            assert value == the(objects_of(MANIFEST), "DaemonSet")["metadata"]["namespace"]
    if verb in ("create", "apply", "delete"):
        assert {"-f", "-k", "--filename"} & set(rest), "of what?"
    elif verb == "logs":
        assert "-n" in rest or not rest
    elif verb in ("get", "describe", "label"):
        assert rest[0] in NOUNS, rest[0]
    elif verb == "rollout":
        assert rest[0] in ("status", "restart")
        assert (rest[1], rest[2]) in OWN_OBJECTS
    elif verb == "exec" and inner != SIGHUP:
        assert inner[0] == entry_point(), inner[0]
        check_plugin_program(inner[1:])
    else:
        assert verb in ("cordon", "drain", "uncordon", "exec"), verb
    if verb == "label":
        check_label(rest[2])


def check_label(assignment: str) -> None:
    match = re.fullmatch(r"([^=]+?)(?:=(.+)|-)", assignment)
    assert match
    assert match[1] == vf_plan.LABEL
    if match[2] not in (None, "N", "x"):
        vf_plan.parse(match[2])


def entry_point() -> str:
    """The program in the image."""
    match = re.search(r'^ENTRYPOINT \["([^"]+)"', (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert match
    return match[1]


def check_plugin_program(words: list[str]) -> None:
    command = words[0] if words and not words[0].startswith("-") else ""
    assert command in ("", *cli.COMMANDS), command
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0].lstrip("-") in own_options(command), word


@cache
def own_options(*of: str) -> set[str]:
    """The options of sub-commands, and of the daemon by the name "", as their help shows them."""
    found = set()
    for command in of:
        arguments = [command, "--help"] if command else ["--help"]
        program = [sys.executable, "-P", "-m", "xpu_plugin"]
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=True)
        found |= set(re.findall(r"(?<![-\w])--([a-z][-a-z]*)", done.stdout))
    return found


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "./build.sh": check_build,
    "buildah": check_image_build,
    "cd": check_cd,
    "docker": check_image_build,
    "git": check_git,
    "helm": check_helm,
    "kubectl": check_kubectl,
    "make": check_make,
    "podman": check_image_build,
    config.PROGRAM: check_plugin_program,
}


def check_command(command: list[str]) -> None:
    assert command[0] in PROGRAMS, f"{command[0]}: there is no check for it"
    PROGRAMS[command[0]](command[1:])


# --- the READMEs ---------------------------------------------------------------------------------

COMMANDS = {
    f"{readme}: {shlex.join(command)}": command
    for readme in CHECKED
    for command in [*in_code_blocks(readme), *in_prose(readme)]
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_about_what_is_there(command: list[str]) -> None:
    check_command(command)


@pytest.mark.parametrize("name", [name for name, words in COMMANDS.items() if words[0] == "kubectl"])
def test_kubectl_takes_the_options_of_a_command(name: str) -> None:
    """kubectl reads a command's words before it sees that only help is wanted."""
    if not kubectls():
        pytest.skip("no kubectl in PATH, nor in XPU_E2E_KUBECTL")
    command = COMMANDS[name]
    place = command.index("--") if "--" in command else len(command)
    for kubectl in kubectls():
        done = subprocess.run(
            [*kubectl, *command[1:place], "--help", *command[place:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_translation_has_the_same_commands(page: str) -> None:
    assert in_code_blocks(page) == in_code_blocks(TRANSLATED[page])


@pytest.mark.parametrize("readme", CHECKED)
def test_every_code_block_is_of_a_kind_that_is_checked(readme: str) -> None:
    """Without a language: what a program prints."""
    assert {language for language, _ in blocks(readme)} <= {"", "sh", "yaml", "mermaid"}


@pytest.mark.parametrize("readme", READMES)
def test_every_yaml_is_valid_and_a_template_in_script(readme: str) -> None:
    templates = objects_of(*sorted((ROOT / "script").iterdir()))
    found = [each for language, text in blocks(readme) if language == "yaml" for each in objects_in(text)]
    assert found
    for each in found:
        check([each])
        assert each in templates, title(each)


@pytest.mark.parametrize("readme", READMES)
def test_every_template_is_listed(readme: str) -> None:
    listed = [row[0].strip("`") for table in tables(ROOT / readme) for row in table if "`script/" in row[0]]
    assert sorted(listed) == sorted(f"script/{path.name}" for path in (ROOT / "script").iterdir())


@pytest.mark.parametrize("readme", CHECKED)
def test_every_file_that_is_named_is_there(readme: str) -> None:
    named = {span for span in spans(readme) if PATHS.fullmatch(span)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("readme", CHECKED)
def test_every_option_that_is_named_is_one(readme: str) -> None:
    named = {span for span in spans(readme) if re.match(r"--?[a-z]", span)}
    chart = {span for span in named if span.startswith("--set ")}
    for span in chart:
        check_values(span.removeprefix("--set "))
    former = {name for name, successor in legacy_arguments.SUCCESSORS.items() if successor}
    known = own_options("", *(command for command in cli.COMMANDS if command != "simulate")) | former
    options = {span: re.split(r"[= ]", span)[0].lstrip("-") for span in named - chart}
    shortened = {"half1", "16G", "32G", "10G"}  # the ends of names in tables
    renamed = {"wish-pending", "grant-settle"} if readme.endswith("upgrade.md") else set()
    assert {span for span, option in options.items() if option not in known | shortened | renamed} == set()


# --- the checks themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "make rum",
        "make run ARG=--once",
        "./build.sh --fast",
        "docker build -t kunlunxpu/xpu-device-plugin:v0.9 -f docker/Dockerfile .",
        "docker build -t kunlunxpu/xpu-device-plugin:v1.1.0 -f Dockerfile .",
        "kubectl create -f ./deployment/xpu-plugin.yml",
        "kubectl create ./deployment/xpu-device-plugin.yml",
        "kubectl apply -k deployment/kustomize/overlays",
        "kubectl label node NODE baidu.com/sriov-num-vf=2 --overwrite",
        "kubectl label node NODE baidu.com/sriov-num-vfs=64 --overwrite",
        "kubectl get nodes -L baidu.com/sriov-num-vfs.status",
        "kubectl rollout restart daemonset xpu-device-plugin",
        "kubectl exec -n kube-system POD -- xpu-device-plugin plan",
        "kubectl exec -n kube-system POD -- /opt/xpu-device-plugin/bin/xpu-device-plugin plans",
        "kubectl exec -n default POD -- /opt/xpu-device-plugin/bin/xpu-device-plugin plan",
        "xpu-device-plugin list --sriov-num-vfs 2",
        "xpu-device-plugin plan --all",
        "helm install xpu-device-plugin deployment/helm --namespace kube-system",
        "helm install xpu-device-plugin deployment/helm/xpu-device-plugin --namespace kube-system --set a=2",
        "rm -rf build",
    ],
)
def test_the_checks_find(command: str) -> None:
    (words,) = commands(command)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check_command(words)
