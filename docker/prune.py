# SPDX-License-Identifier: Apache-2.0
"""Takes out of an installation what the plugin never uses: `prune.py SITE_PACKAGES`.

What goes is listed here, with the reason; everything else stays. A line that finds nothing to take out is an
error, so that the list is looked at again when a dependency has changed. tests/image runs the tests of the
API server's edge, and the demo, on what is left.
"""

import argparse
import importlib.metadata
import re
import shutil
from pathlib import Path


DISTRIBUTIONS = {
    # For kubernetes.aio alone, the client's second half, for asyncio: the plugin uses the first, on threads.
    "aiohappyeyeballs": "aiohttp",
    "aiohttp": "kubernetes.aio",
    "aiohttp-retry": "kubernetes.aio",
    "aiosignal": "aiohttp",
    "attrs": "aiohttp",
    "frozenlist": "aiohttp",
    "multidict": "aiohttp",
    "propcache": "aiohttp",
    "yarl": "aiohttp",
    # What is parsed are the times in a kubeconfig, and those have offsets; dateutil does without.
    "tzdata": "zones by name",
}
"""Distribution -> the only one, or the only use, that it is there for."""

USERS = {"kubernetes", "python-dateutil"}
"""Distributions that stay and ask for some of the above all the same."""

PATHS = {
    "kubernetes/aio": "a second client, for asyncio",
    "kubernetes/client/api": "a class for each API group; requests are made with the layer below",
    "kubernetes/client/apis": "the former name of the same",
    "kubernetes/client/models/*": "a class for each kind of object; the plugin reads JSON",
    "kubernetes/config/*_test.py": "tests",
    "grpc/framework": "an API from before gRPC 1.0",
    "grpc/beta": "the same",
    "pydantic/v1": "the former major version; one class of the present one is used, SecretStr",
}
"""Pattern in site-packages -> why it goes."""

KEPT = {"kubernetes/client/models/__init__.py"}  # imported; it looks for the others only when asked for one

EVERYWHERE = re.compile(
    r"(^|/)(__pycache__|tests?|testing)(/|$)"  # byte code is made anew for what stays
    r"|\.(pyi|pyx|pxd|pxi|c|h|cpp|hpp|proto|a|o)$"  # for compilers and type checkers
    r"|(^|/)py\.typed$"
)
"""Paths in site-packages that go whatever they belong to."""

STANDARD_LIBRARY = {
    "config-*": "a static library and a Makefile, to embed Python",
    "ensurepip": "holds pip",
    "idlelib": "an editor",
    "pydoc_data": "help of the interactive interpreter",
    "sqlite3": "a database that nobody opens",
    "lib-dynload/_sqlite3.*": "the same",
    "tkinter": "windows",
    "lib-dynload/_tkinter.*": "the same",
    "turtle.py": "the same",
    "turtledemo": "the same",
    "test": "its tests",
    "unittest/test": "the same",
    "ctypes/test": "the same",
    "lib2to3": "a translator from Python 2",
    "distutils": "builds packages",
    "crypt.py": "passwords",
    "lib-dynload/_crypt.*": "the same",
    "lib-dynload/nis.*": "yellow pages, with Kerberos behind them",
    "venv": "makes installations",
    "curses": "terminals",
    "lib-dynload/_curses*": "the same",
    "lib-dynload/readline.*": "the same",
    "dbm": "old databases",
    "lib-dynload/_*dbm.*": "the same",
    "lib-dynload/_test*": "tests",
    "lib-dynload/_ctypes_test.*": "tests",
    "lib-dynload/_xx*": "tests",
    "lib-dynload/xx*": "examples",
    "site-packages": "the environment has its own",
    "dist-packages": "the same",
    "sitecustomize.py": "the builder's",
}
"""Pattern in the standard library -> why it goes. Which of them are there depends on who has built Python."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def required(distribution: importlib.metadata.Distribution) -> set[str]:
    """Names of what it asks for, extras left aside."""
    lines = [line for line in distribution.requires or [] if not re.search(r";.*\bextra\b", line)]
    return {normal(match[0]) for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line))}


def remove_distributions(site: Path) -> None:
    """Those of DISTRIBUTIONS. Raises SystemExit when one is not there, or somebody else needs it by now."""
    installed = {
        normal(distribution.name): distribution
        for distribution in importlib.metadata.distributions(path=[str(site)])
    }
    if absent := DISTRIBUTIONS.keys() - installed.keys():
        raise SystemExit(f"prune.py: not installed, to be taken off the list: {', '.join(sorted(absent))}")
    for name in sorted(installed.keys() - DISTRIBUTIONS.keys() - USERS):
        if needed := required(installed[name]) & DISTRIBUTIONS.keys():
            raise SystemExit(f"prune.py: {name} needs {', '.join(sorted(needed))}")
    for name in sorted(DISTRIBUTIONS):
        for file in installed[name].files or []:
            path = site / file
            if path.is_file() and path.resolve().is_relative_to(site.resolve()):
                path.unlink()


def remove_paths(site: Path) -> None:
    """Those of PATHS and EVERYWHERE. Raises SystemExit when a pattern finds nothing."""
    kept = {site / path for path in KEPT}
    if missing := [path for path in kept if not path.is_file()]:
        raise SystemExit(f"prune.py: not there: {missing}")
    for pattern in PATHS:
        found = [path for path in site.glob(pattern) if path not in kept]
        if not found:
            raise SystemExit(f"prune.py: nothing is {pattern}")
        for path in found:
            remove(path)
    for path in sorted(site.rglob("*")):
        if path.exists() and EVERYWHERE.search(path.relative_to(site).as_posix()):
            remove(path)


def remove_empty(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def correct_records(site: Path) -> None:
    """Whoever reads which files a distribution has finds those that it has."""
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines()
        record.write_text(
            "".join(f"{line}\n" for line in lines if (site / line.split(",")[0].strip('"')).exists()),
            encoding="utf-8",
        )


def remove_from_standard_library(library: Path) -> None:
    """Those of STANDARD_LIBRARY that are there."""
    for pattern in STANDARD_LIBRARY:
        for path in library.glob(pattern):
            remove(path)
    for path in list(library.rglob("__pycache__")):
        remove(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site_packages", type=Path)
    arguments = parser.parse_args()
    site = arguments.site_packages
    remove_distributions(site)
    remove_paths(site)
    remove_empty(site)
    correct_records(site)


if __name__ == "__main__":
    main()
