"""Builds the wheel: the native part with maturin, and the program ``iovcache``.

Both come from the same crates, features and profile, so nothing is compiled twice.
``IOVCACHE_PROFILE`` selects a profile of Cargo other than ``release`` (``dev`` for tests, ``dist``
for published wheels), ``IOVCACHE_PROGRAM`` a program that is already built.
"""

from __future__ import annotations

import json
import os
import pathlib
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
    with _Program():
        settings = _with_profile(config_settings)
        return maturin.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Optional[Mapping[str, Any]] = None,
    metadata_directory: Optional[str] = None,
) -> str:
    with _Program():
        settings = _with_profile(config_settings)
        return maturin.build_editable(wheel_directory, settings, metadata_directory)


def _profile() -> str:
    return os.environ.get("IOVCACHE_PROFILE") or "release"


def _with_profile(settings: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    settings = dict(settings or {})
    settings.setdefault("build-args", f"--profile {_profile()}")
    return settings


class _Folder:
    """The folder that maturin packs. It exists during the build."""

    def __init__(self) -> None:
        self.folder = HERE / "iovcache.data"

    def __enter__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Program(_Folder):
    """The folder, with the program."""

    def __enter__(self) -> None:
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
    command = ["build", "--profile", _profile(), "--bin", "iovcache", "--manifest-path", manifest]
    command += ["--message-format", "json-render-diagnostics", "--locked"]
    for line in _cargo(command, HERE).splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == "iovcache":
            return pathlib.Path(message["executable"])
    raise RuntimeError("cargo built no program iovcache")


def _cargo(arguments: List[str], folder: pathlib.Path) -> str:
    cargo = os.environ.get("CARGO", "cargo")
    done = subprocess.run([cargo, *arguments], cwd=folder, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout
