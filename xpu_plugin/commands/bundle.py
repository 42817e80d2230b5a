# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin bundle`: an archive for support, with the facts about this node.

The code below names each part: configuration, picture, decisions, doctor's findings, versions and two
listings. It copies no file, and reads no environment, token or kubeconfig for the archive.
"""

import asyncio
import gzip
import io
import json
import os
import platform
import sys
import tarfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xpu_plugin.commands import doctor
from xpu_plugin.commands.collect import collect
from xpu_plugin.commands.source import RunningPlugin
from xpu_plugin.config import BUNDLE_OPTIONS, PROGRAM, Config, Parser, UsageError, read_config
from xpu_plugin.doctor.evidence import LibraryEvidence
from xpu_plugin.doctor.host_survey import listings
from xpu_plugin.doctor.registry import diagnose


TOP = "xpu-device-plugin-bundle"
_ANSWERS = ("state", "list", "plan", "decisions", "top", "topo")
_PACKAGES = ("xpu-device-plugin", "grpcio", "protobuf", "kubernetes")


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 written, 1 it cannot be written, 2 bad usage. The node's state is
    irrelevant."""
    parser = Parser(
        prog=f"{PROGRAM} bundle",
        description="Write a .tar.gz, readable by its owner only. It contains the configuration, the picture "
        "and the last decisions of the plugin that runs behind --status-socket, the findings of doctor, and "
        "versions. It contains no secrets, but names of pods, nodes and devices.",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the new file, never overwritten; - is standard output; if not given, a new name in TMPDIR",
    )
    config, namespace, warnings = read_config(arguments, os.environ, options=BUNDLE_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    if namespace.output == "-":
        if sys.stdout.isatty():
            raise UsageError("--output: '-' is accepted when standard output is no terminal")
        sys.stdout.buffer.write(asyncio.run(_bundle(config)))
        return 0
    path = Path(namespace.output) if namespace.output else _new_name()
    if os.path.lexists(path):
        raise UsageError(f"--output: {str(path)!r} is there already; accepted: a new name, or -")
    contents = asyncio.run(_bundle(config))
    try:
        _write(path, contents)
    except OSError as error:
        print(f"{PROGRAM}: cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    print(path)
    return 0


async def _bundle(config: Config) -> bytes:
    running = RunningPlugin(config.status_socket)
    answers = {
        name: await running.ask(name, **({"wide": True} if name == "list" else {})) for name in _ANSWERS
    }
    state = answers["state"] or {}
    evidence = await collect(config)
    findings = diagnose(evidence)
    return _tar(
        {
            "configuration.txt": f"running: {state.get('configuration', '-')}\nhere: {config.text()}\n",
            "versions.json": _json(_versions(evidence.library)),
            **{f"{name}.json": _json(answer) for name, answer in answers.items() if answer is not None},
            "doctor.json": _json(doctor.document(findings)),
            "doctor.txt": doctor.text(findings) + "\n",
            "listings.txt": "".join(
                f"{directory}:\n" + "".join(f"  {line}\n" for line in lines)
                for directory, lines in listings(config.dev_root, config.device_plugin_dir).items()
            ),
        }
    )


def _versions(library: LibraryEvidence) -> dict[str, object]:
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "library": library.path,
        "library_version": library.version,
        "driver_version": library.driver_version,
        "driver_release": library.driver_release,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _json(document: object) -> str:
    return json.dumps(document, indent=1) + "\n"


def _tar(files: dict[str, str]) -> bytes:
    now = int(time.time())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            contents = text.encode(errors="backslashreplace")  # names may be other than UTF-8
            entry = tarfile.TarInfo(f"{TOP}/{name}")
            entry.size, entry.mode, entry.mtime = len(contents), 0o600, now
            archive.addfile(entry, io.BytesIO(contents))
    return gzip.compress(buffer.getvalue())


def _new_name() -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    directory = Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - an existing name is refused
    return directory / f"{TOP}-{platform.node()}-{stamp}.tar.gz"


def _write(path: Path, contents: bytes) -> None:
    """Write a new file for its owner alone; after a failure there is none. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(contents)
    except OSError:
        path.unlink(missing_ok=True)
        raise
