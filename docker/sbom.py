# SPDX-License-Identifier: Apache-2.0
"""Writes the image's software bill of materials in CycloneDX: `sbom.py ENVIRONMENT PYPROJECT OUTPUT`.

Run where cyclonedx-bom is installed. That tool lists the distributions; added are the interpreter and the
shared libraries that bundle.py took along, which it does not look at.
"""

import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


VERSIONS = "import platform, ssl; print(platform.python_version()); print(ssl.OPENSSL_VERSION)"


def purl(*, type: str, name: str, version: str) -> str:
    system = platform.freedesktop_os_release().get("ID", "linux")
    return f"pkg:{type}/{system}/{quote(name)}@{quote(version)}"


def described(environment: Path) -> list[dict[str, Any]]:
    """Components that are no distributions."""
    python, openssl = subprocess.run(
        [environment / "bin/python", "-c", VERSIONS], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    components: list[dict[str, Any]] = [
        {
            "type": "platform",
            "bom-ref": "cpython",
            "name": "cpython",
            "version": python,
            "purl": f"pkg:generic/cpython@{python}",
            "cpe": f"cpe:2.3:a:python:python:{python}:*:*:*:*:*:*:*",
            "licenses": [{"license": {"id": "PSF-2.0"}}],
        },
        {
            "type": "library",
            "bom-ref": "openssl",
            "name": "openssl",
            "version": openssl.split()[1],
            "description": f"{openssl}, as the interpreter says",
        },
    ]
    origins = json.loads((environment / "python/lib/libraries.json").read_text())
    for name, origin in sorted(origins.items()):
        library = environment / "python/lib" / name
        content = hashlib.sha256(library.read_bytes()).hexdigest()
        component: dict[str, Any] = {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": str(library),
            "hashes": [{"alg": "SHA-256", "content": content}],
        }
        if origin:
            component["version"] = origin["version"]
            component["purl"] = purl(**origin)
        components.append(component)
    return components


def main() -> None:
    environment, pyproject, output = map(Path, sys.argv[1:])
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", environment / "bin/python",
         "--pyproject", pyproject, "--mc-type", "application", "--output-reproducible",
         "--spec-version", "1.6", "--output-format", "JSON", "--output-file", output],
        check=True,
    )  # fmt: skip
    document = json.loads(output.read_text(encoding="utf-8"))
    document["components"] += described(environment)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"sbom.py: {error}")
    output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
