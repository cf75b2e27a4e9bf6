"""Pages and commands that can't drift, because they are compared with what they speak of."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest
from our_files import DATA, files_in

from understudy.settings import Settings

# Where packages come from is the business of the machine that installs them.
REGISTRY = re.compile(
    r"\b(pypi|pythonhosted|npmjs|anaconda)\.\w+|--?(extra-)?index-url|trusted-host|find-links"
)

FROM_AN_INDEX = re.compile(r"pip install [^\n`]*(?<![\w/.-])understudy\b")


@pytest.fixture(scope="module")
def generator(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", root / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generator: ModuleType) -> None:
    stale = [
        path.name for path, text in generator.pages().items() if not path.exists() or path.read_text() != text
    ]
    assert not stale, f"run `make docs`: {stale}"


def test_every_setting_is_documented(generator: ModuleType) -> None:
    """Nearest to the code: a comment at the end of the line, or a name that needs none."""
    page = generator.settings_page()
    undocumented = [
        name
        for struct in Settings.__subclasses__()
        for name in struct.__struct_fields__
        if f"`{name}`" not in page and f"{name}]" not in page
    ]
    assert not undocumented, undocumented


def test_commands_in_the_readme_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", _code(root / "README.md")))
    assert named <= targets, f"no such targets: {named - targets}"


def test_links_in_the_docs_lead_somewhere(root: Path) -> None:
    dead = []
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        dead += [f"{page.relative_to(root)}: {link}" for link in links if not (page.parent / link).exists()]
    assert not dead, "\n".join(dead)


def test_proofs_in_the_failure_model_exist(root: Path) -> None:
    """A row names its tests' files, but for the one that the page's first lines name."""
    default = root / "tests" / "integration" / "test_faults.py"
    missing = []
    for row in (root / "docs" / "failure-model.md").read_text().splitlines():
        files = [root / file for file in re.findall(r"`(tests/[\w/]+\.py)`", row)]
        text = "".join(file.read_text() for file in [*files, default] if file.exists())
        missing += [str(file) for file in files if not file.exists()]
        missing += [name for name in re.findall(r"`(test_\w+)`", row) if f"def {name}(" not in text]
    assert not missing, f"no such tests: {missing}"


def test_the_clients_page_shows_the_examples_as_they_are(root: Path) -> None:
    page = (root / "docs" / "clients.md").read_text()
    files = sorted((root / "examples" / "clients").glob("*.*"))
    assert files
    assert not [file.name for file in files if f"\n{file.read_text().strip()}\n```" not in page]


def test_the_page_on_own_models_shows_the_examples_as_they_are(root: Path) -> None:
    """Manifests, models and their packages whole; the other files too, or a link to them."""
    page = (root / "docs" / "bring-your-own-model.md").read_text()
    folder = root / "examples" / "bring-your-own"
    files = [file for each in folder.glob("*/") for file in files_in(each)]
    files = [file for file in files if file.suffix in (".py", ".toml", ".txt")]
    missing = []
    for file in files:
        shown = f"\n{file.read_text().strip()}\n```" in page
        linked = f"({os.path.relpath(file, root / 'docs')})" in page
        whole = file.name in ("APP.toml", "model.py", "requirements.txt")
        data = file.name in ("passages.txt", "questions.txt")
        if not (shown or data or (linked and not whole)):
            missing.append(str(file.relative_to(root)))
    assert len(files) > 20
    assert not missing, missing


def test_no_registry_is_named(root: Path) -> None:
    folders = ("src", "tests", "docs", "benchmarks", "examples", "deploy", ".ci")
    files = [path for folder in folders for path in files_in(root / folder) if path.suffix != ".pyc"]
    named = [
        str(path.relative_to(root))
        for path in [*files, *root.glob("*.*"), root / "Makefile"]
        if path.is_file() and path != Path(__file__) and REGISTRY.search(path.read_text(errors="ignore"))
    ]
    assert not named, f"package registries are named in: {named}"


def test_what_clusters_leave_in_the_examples_is_nobody_elses_business(root: Path) -> None:
    """Neither git's, nor ruff's, which reads the same file; and it goes with what else was made."""
    assert f"{DATA}/" in (root / ".gitignore").read_text().splitlines()
    _, _, clean = (root / "Makefile").read_text().partition("\nclean:")
    assert f"rm -rf examples/*/{DATA}" in clean


def test_nobody_is_told_to_install_this_from_an_index(root: Path) -> None:
    """It is on none: what has its name there would be somebody else's."""
    files = [root / "README.md", *(root / "docs").rglob("*.md"), *files_in(root / "examples")]
    files += (root / "src").rglob("*.py")
    told = [
        f"{path.relative_to(root)}: {found[0]}"
        for path in files
        if path.is_file() and (found := FROM_AN_INDEX.search(path.read_text(errors="ignore")))
    ]
    assert not told, "\n".join(told)


def _code(page: Path) -> str:
    """What stands in code blocks and between back-ticks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
