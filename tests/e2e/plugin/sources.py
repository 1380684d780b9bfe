"""Other versions of vLLM, as source: enough for its scheduler, which needs nothing compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

VERSIONS = ("0.26.0", "0.33.0")
"""The oldest and the newest that the plugin is for; the one between is installed."""
ROOT = Path(__file__).parents[3]
KEPT = ROOT / "out" / "vllm"
BUILD_TOOLS = ("semantic-version", "setuptools-rust", "setuptools-scm", "vcs-versioning")
"""What pip wants, before it hands out a source archive, in order to read the archive's version."""


def source_of(version: str) -> Path:
    """A folder to put on PYTHONPATH; fetched (40 to 50 MB) if it is not there yet.

    Raises CalledProcessError if pip cannot get it.
    """
    folder = KEPT / version
    if not folder.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=KEPT) as scratch:
            _unpack(_download(version, Path(scratch)), Path(scratch) / "source", version)
            (Path(scratch) / "source").rename(folder)
    return folder


def _download(version: str, scratch: Path) -> Path:
    tools = scratch / "tools"
    _pip({}, "install", "--target", str(tools), *BUILD_TOOLS)
    environment = {
        "PYTHONPATH": str(tools),
        "VLLM_TARGET_DEVICE": "empty",
        "VLLM_VERSION_OVERRIDE": version,
    }
    options = ("--no-build-isolation", "--no-binary", "vllm", "--dest", str(scratch))
    _pip(environment, "download", *options, f"vllm=={version}")
    return next(scratch.glob("vllm-*.tar.gz"))


def _pip(environment: dict[str, str], command: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *arguments],
        env=os.environ | environment,
        check=True,
    )


def _unpack(archive: Path, folder: Path, version: str) -> None:
    """The package alone; a version that ends in ``cpu`` is what makes vLLM choose that platform."""
    with tarfile.open(archive) as packed:
        for member in packed:
            _, _, member.name = member.name.partition("/")
            if member.name.startswith("vllm/"):
                packed.extract(member, folder, filter="data")
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
