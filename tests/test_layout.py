"""The layout: tests mirror the source, and documents name what there is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNTESTED = {"errors.py", "__init__.py"}  # no behaviour of their own


def test_every_module_has_a_test_module() -> None:
    for package, tests in (
        ("src/dermtune", "dermtune"),
        ("src/dermtune_bundle", "dermtune_bundle"),
        ("src/dermtune_server", "dermtune_server"),
        ("pipelines", "pipelines"),
    ):
        for module in (ROOT / package).rglob("*.py"):
            if module.name not in UNTESTED:
                folder = ROOT / "tests" / tests / module.relative_to(ROOT / package).parent
                assert (folder / f"test_{module.name}").is_file(), module


def test_links_in_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").rglob("README.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_the_architecture_names_every_concept() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    plumbing = {"__init__.py", "errors.py", "progress.py", "labels.py", "onnx_export.py"}
    for module in (ROOT / "src/dermtune").glob("*.py"):
        assert module.name in plumbing or f"`{module.name}`" in text, module.name
