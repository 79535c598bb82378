"""Builds the wheel: the native part with maturin, and the program ``iovcache``.

Both come from the same crates, features and profile, so nothing is compiled twice.
``IOVCACHE_PROFILE`` selects a profile of Cargo other than ``release`` (``dev`` for tests, ``wheel``
for published wheels), ``IOVCACHE_PROGRAM`` a program that is already built.

The wheel is tagged with the oldest manylinux whose C library has the symbols that the program needs.
maturin checks the native part against this tag.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
from typing import Any, Dict, List, Mapping, Optional

import maturin

HERE = pathlib.Path(__file__).resolve().parent.parent

get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Optional[Mapping[str, Any]] = None
) -> str:
    with _Folder():
        return maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Optional[Mapping[str, Any]] = None
) -> str:
    with _Folder():
        return maturin.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: Optional[Mapping[str, Any]] = None) -> str:
    with _Folder():
        return maturin.build_sdist(sdist_directory, config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: Optional[Mapping[str, Any]] = None,
    metadata_directory: Optional[str] = None,
) -> str:
    with _Program() as program:
        settings = _with_options(config_settings, program)
        return maturin.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Optional[Mapping[str, Any]] = None,
    metadata_directory: Optional[str] = None,
) -> str:
    with _Program() as program:
        settings = _with_options(config_settings, program)
        return maturin.build_editable(wheel_directory, settings, metadata_directory)


def _profile() -> str:
    return os.environ.get("IOVCACHE_PROFILE") or "release"


#: Minor versions of glibc that manylinux tags exist for.
_MANYLINUX = (17, 28, 31, 34, 35, 39)


def _with_options(
    given: Optional[Mapping[str, Any]], program: Optional[pathlib.Path]
) -> Dict[str, Any]:
    """The settings for maturin; its arguments are left alone if ``build-args`` gives some."""
    settings = dict(given or {})
    arguments = ["--profile", _profile(), "--strip", "--compatibility", _platform(program)]
    if _profile() == "wheel":
        arguments += ["--compression-level", "9"]
    if _linker_arguments():
        arguments += ["--", *_linker_arguments()]
    settings.setdefault("build-args", " ".join(arguments))
    return settings


def _linker_arguments() -> List[str]:
    """Arguments of rustc that fold identical functions in published wheels.

    On x86_64 Rust links with lld, which can do this.
    """
    fold = _profile() == "wheel" and platform.machine() == "x86_64"
    return ["-Clink-arg=-Wl,--icf=all"] if fold else []


def _platform(program: Optional[pathlib.Path]) -> str:
    """The oldest manylinux that has the versions of glibc's symbols that the program needs."""
    names = re.findall(rb"GLIBC_2\.(\d+)", program.read_bytes()) if program else []
    needed = max(map(int, names), default=None)
    fitting = (minor for minor in _MANYLINUX if needed is not None and minor >= needed)
    minor = next(fitting, None)
    return "off" if minor is None else f"manylinux_2_{minor}"


class _Folder:
    """The folder that maturin packs. It exists during the build."""

    def __init__(self) -> None:
        self.folder = HERE / "iovcache.data"

    def __enter__(self) -> Optional[pathlib.Path]:
        self.folder.mkdir(exist_ok=True)
        return None

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Program(_Folder):
    """The folder, with the program."""

    def __enter__(self) -> Optional[pathlib.Path]:
        given = os.environ.get("IOVCACHE_PROGRAM")
        built = pathlib.Path(given) if given else _built()
        scripts = self.folder / "scripts"
        scripts.mkdir(parents=True, exist_ok=True)
        target = scripts / "iovcache"
        target.unlink(missing_ok=True)
        strip = shutil.which("strip")
        if strip:
            subprocess.run([strip, "-o", str(target), str(built)], check=True)
        else:
            shutil.copy2(built, target)
        target.chmod(0o755)
        return target


def _built() -> pathlib.Path:
    metadata = _cargo(["metadata", "--format-version", "1", "--no-deps"], HERE)
    described = json.loads(metadata)
    manifest = next(
        (one["manifest_path"] for one in described["packages"] if one["name"] == "iovcache"), None
    )
    if manifest is None:  # in an unpacked sdist, the crate is a path dependency
        described = json.loads(_cargo(["metadata", "--format-version", "1"], HERE))
        packages = described["packages"]
        manifest = next(one["manifest_path"] for one in packages if one["name"] == "iovcache")
    command = ["rustc", "--profile", _profile(), "--bin", "iovcache", "--manifest-path", manifest]
    command += ["--message-format", "json-render-diagnostics", "--locked", "--"]
    command += _linker_arguments()
    for line in _cargo(command, HERE).splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == "iovcache":
            return pathlib.Path(message["executable"])
    raise RuntimeError("cargo built no program iovcache")


def _cargo(arguments: List[str], folder: pathlib.Path) -> str:
    cargo = os.environ.get("CARGO", "cargo")
    done = subprocess.run([cargo, *arguments], cwd=folder, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout
