# SPDX-License-Identifier: Apache-2.0
"""Makes a virtual environment independent of the machine that it is on: `bundle.py ENVIRONMENT PATCHELF`.

Run by the interpreter that the environment was made with. That interpreter, its standard library without what
prune.py lists, and the shared libraries that any of it needs go to ENVIRONMENT/python, where they are found
without LD_LIBRARY_PATH: what the vendor's library finds is not changed. The C and C++ run-time libraries are
those of the base image, which has to be at least as new as the builder. Byte code is there for everything, as
nothing can be written later. python/lib/libraries.json says which packages the libraries are from, and
python/licenses has their licences.
"""

import compileall
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import prune


OF_THE_BASE = re.compile(
    r"(linux-vdso|ld-linux[-\w]*|lib(c|m|dl|rt|pthread|util|resolv|gcc_s|stdc\+\+))\.so(\.[0-9]+)*$"
)
"""Libraries that are not taken along: those of glibc, of which there can be but one, and of GCC."""

PACKAGES = (
    ("deb", ("dpkg-query", "--search"), ("dpkg-query", "--show", "--showformat=${Version}\n")),
    ("rpm", ("rpm", "-qf", "--qf", "%{NAME}\n"), ("rpm", "-q", "--qf", "%{VERSION}-%{RELEASE}\n")),
)
"""Kind of package, whose a file is, which version a package has."""


def strip(path: Path) -> None:
    """Not for what is in distributions: those objects are as their makers want them."""
    path.chmod(0o755)
    subprocess.run(["strip", "--strip-unneeded", path], check=True)


def copy_interpreter(environment: Path) -> Path:
    """The interpreter's new home. The environment's `python` leads there."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = environment / "python"
    library = home / "lib" / name
    (home / "bin").mkdir(parents=True)
    shutil.copy2(os.path.realpath(sys.executable), home / "bin" / name)
    own_packages = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__")
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=own_packages, ignore_dangling_symlinks=True)
    prune.remove_from_standard_library(library)
    for path in objects(home):
        strip(path)
    for program in ("python", "python3"):
        link = environment / "bin" / program
        link.unlink(missing_ok=True)
        link.symlink_to(f"../python/bin/{name}")
    (environment / "pyvenv.cfg").write_text(
        f"home = {home / 'bin'}\n"
        "include-system-site-packages = false\n"
        f"version = {'.'.join(map(str, sys.version_info[:3]))}\n"
    )
    return home


def remove_scripts(environment: Path) -> None:
    """All programs but ours and the interpreter."""
    for path in (environment / "bin").iterdir():
        if path.name not in ("python", "python3", "xpu-device-plugin"):
            path.unlink()
    shutil.rmtree(environment / "include", ignore_errors=True)
    (environment / "lib64").unlink(missing_ok=True)


def objects(directory: Path) -> Iterator[Path]:
    """Everything that is linked dynamically."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def needed(path: Path) -> dict[str, Path]:
    """Libraries that an object needs, directly or not, and where they are on this machine."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    if missing := re.findall(r"(\S+) => not found", listed):
        raise SystemExit(f"bundle.py: {path} needs {', '.join(missing)}")
    return {name: Path(place) for name, place in re.findall(r"(\S+) => (/\S+)", listed)}


def origin(library: Path) -> dict[str, str]:
    """The package of the builder's system that a library is from; empty if it is from none."""
    for place in dict.fromkeys((library, library.resolve(), Path("/usr", library.relative_to("/")))):
        for kind, owner, version in PACKAGES:
            try:
                listed = subprocess.run([*owner, place], capture_output=True, text=True, check=True).stdout
                name = re.split(r"[:\s]", listed)[0]
                text = subprocess.run([*version, name], capture_output=True, text=True, check=True).stdout
            except (FileNotFoundError, subprocess.CalledProcessError):
                continue
            return {"type": kind, "name": name, "version": text.split()[0]}
    return {}


def copy_libraries(environment: Path, home: Path, patchelf: str) -> None:
    own = home / "lib"
    takers = {path: needed(path) for path in objects(environment)}
    taken: dict[str, Path] = {}
    for libraries in takers.values():
        taken |= {
            name: place
            for name, place in libraries.items()
            if not OF_THE_BASE.match(name) and environment not in place.parents
        }
    origins: dict[str, dict[str, str]] = {}
    for name, place in taken.items():
        shutil.copy2(place.resolve(), own / name)
        strip(own / name)
        origins[name] = origin(place)
    (own / "libraries.json").write_text(json.dumps(origins, indent=1) + "\n")
    for package in {entry["name"] for entry in origins.values() if entry}:
        for place in (Path("/usr/share/doc", package, "copyright"), Path("/usr/share/licenses", package)):
            if place.exists():
                goal = environment / "python/licenses" / package
                goal.parent.mkdir(exist_ok=True)
                (shutil.copytree if place.is_dir() else shutil.copy2)(place, goal)
    for path in [*(path for path, libraries in takers.items() if libraries.keys() & taken.keys()),
                 *(own / name for name in taken)]:  # fmt: skip
        places = ["$ORIGIN/" + os.path.relpath(own, path.parent)]
        former = subprocess.run(
            [patchelf, "--print-rpath", path], capture_output=True, text=True, check=True
        ).stdout.strip()
        # Of the former places those that move with the object, as wheels with libraries of their own have.
        places += [place for place in former.split(":") if place.startswith("$ORIGIN")]
        subprocess.run([patchelf, "--set-rpath", ":".join(places), path], check=True)


def main() -> None:
    environment, patchelf = Path(sys.argv[1]).resolve(), sys.argv[2]
    home = copy_interpreter(environment)
    remove_scripts(environment)
    copy_libraries(environment, home, patchelf)
    compiled = compileall.compile_dir(
        environment, maxlevels=64, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    if not compiled:
        raise SystemExit("bundle.py: not everything could be compiled")


if __name__ == "__main__":
    main()
