# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin simulate`: makes, changes and shows the machine behind `--xpuml-library=simulator`."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping

from xpu_plugin import config
from xpu_plugin.commands.output import table
from xpu_plugin.config import Parser, UsageError
from xpu_plugin.simulation.machine import MODELS, HostError, Machine, MachineError, cards


MAX_CARDS = 8192
MAX_MAJOR = 511
PROGRAM = f"{config.PROGRAM} simulate"
COMMANDS = {
    "init": "write a new machine, with its device nodes, and print these",
    "set": "change it; running processes notice at once",
    "show": "print the machine file",
    "remove": "remove it, with its device nodes",
}
OF_INIT = {"--cards", "--model", "--major", "--force"}
"""Options that no other command has: without any command they mean `init`."""
WHAT_TO_SET = """\
the change, one of
  KEY=VALUE...               settings of the machine, such as quirks=off
  card K KEY=VALUE...        a card; a new number plugs one in, KEY= brings a default back
  fault KEY=VALUE...         a fault, such as function=xpumlDeviceGetState card=1 action=code:999
  process KEY=VALUE...       a process on a card, such as pid=4711 card=0 memory=512
  remove card K              pull a card out
  clear faults | processes   all of them"""


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"'{text}'; accepted: a whole number {low}..{high}")
        return int(text)

    return number


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__.partition(": ")[2])
    _add_place(parser, environment=os.environ)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{init,set,show,remove}")
    for command, text in COMMANDS.items():
        sub = commands.add_parser(
            command,
            help=text,
            description=text,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        _add_place(sub, environment=None)
        if command == "init":
            _add_machine(sub)
        if command == "set":
            sub.add_argument("words", nargs="+", metavar="WHAT", help=WHAT_TO_SET)
    return parser


def _add_place(parser: argparse.ArgumentParser, *, environment: Mapping[str, str] | None) -> None:
    """Add the same options before and after the command.

    environment: the source of defaults; None keeps the values given before
    """
    for option, metavar, text in (
        ("simulator-file", "FILE", "the machine file"),
        ("dev-root", "DIR", "directory of device nodes; init remembers it, /dev by default"),
        (
            "sysfs-root",
            "DIR",
            "directory for a tree like sysfs; init remembers it, none by default",
        ),
    ):
        variable = "XPU_PLUGIN_" + option.upper().replace("-", "_")
        parser.add_argument(
            f"--{option}",
            metavar=metavar,
            default=argparse.SUPPRESS if environment is None else environment.get(variable) or None,
            help=f"{text} [{variable}]",
        )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cards", type=_number(0, MAX_CARDS), default=4, help="number of cards [4]")
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="R200",
        metavar="MODEL",
        help=f"of the cards, and the machine that has such: {', '.join(MODELS)} [R200]",
    )
    parser.add_argument(
        "--major",
        type=_number(1, MAX_MAJOR),
        help="of device nodes, one that no driver has; 240, or for P800 195 if that is free",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing machine")


def _pairs(words: list[str]) -> dict[str, str]:
    for word in words:
        if not word.partition("=")[1]:
            raise UsageError(f"'{word}'; accepted: KEY=VALUE")
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _set(machine: Machine, words: list[str]) -> None:
    card = _number(0, MAX_CARDS - 1)
    match words:
        case ["card", number, _, *_]:
            machine.set_card(card(number), _pairs(words[2:]))
        case ["remove", "card", number]:
            machine.remove_card(card(number))
        case ["fault" | "process" as word, _, *_]:
            machine.add_line(word, " ".join(words[1:]))
        case ["clear", "faults"]:
            machine.clear_faults()
        case ["clear", "processes"]:
            machine.clear_processes()
        case [first, *_] if "=" in first:
            machine.set(_pairs(words))
        case _:
            raise UsageError(
                f"'{' '.join(words)}'; accepted: KEY=VALUE..., card K KEY=VALUE..., fault KEY=VALUE..., "
                "process KEY=VALUE..., remove card K, clear faults, clear processes"
            )


def _settings(options: argparse.Namespace) -> dict[str, str]:
    settings = {"model": options.model}
    return settings if options.major is None else {**settings, "major": str(options.major)}


def _run(arguments: list[str]) -> None:
    parser = _parser()
    names = {word.partition("=")[0] for word in arguments}
    implied = ["init"] if names & OF_INIT and not names & COMMANDS.keys() else []
    options = parser.parse_args([*implied, *arguments])
    if options.simulator_file is None:
        parser.error("the following arguments are required: --simulator-file")
    machine = Machine(options.simulator_file, dev_root=options.dev_root, sysfs_root=options.sysfs_root)
    match options.command:
        case "init":
            machine.init(cards(options.cards, options.model), _settings(options), force=options.force)
            *nodes, control = machine.nodes()
            rows = [*((str(index), *node) for index, node in enumerate(nodes)), ("-", *control)]
            print(table(("index", "node", "device", "pci", "numa", "model"), rows, "no nodes"))
        case "set":
            _set(machine, options.words)
        case "show":
            print(machine.text(), end="")
        case "remove":
            machine.remove()


def main(arguments: list[str]) -> int:
    """Run the sub-command. Return 0; 2 for bad input; 1 if this host cannot have such a machine."""
    try:
        _run(arguments)
    except (UsageError, argparse.ArgumentTypeError, MachineError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1 if isinstance(error, HostError) else 2
    return 0
