"""What code and which libraries made something, so that it is not taken for the work of others."""

import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def code_fingerprint(*modules: str) -> str:
    """SHA-256 of some modules' source, which need not be imported.

    Raises:
        ValueError: there is no such module.
    """
    digest = hashlib.sha256()
    for module in modules:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"no module {module}")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


def package_fingerprint() -> str:
    """SHA-256 of all of dermtune's own source."""
    digest = hashlib.sha256()
    source = Path(__file__).parents[1]
    for path in sorted(
        path for name in ("dermtune", "dermtune_bundle") for path in (source / name).rglob("*.py")
    ):
        digest.update(f"{path.relative_to(source)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    return {package: version(package) for package in packages}
