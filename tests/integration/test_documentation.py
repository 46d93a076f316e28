"""Every code block of the documentation and of the README is run or checked, or says why it is not."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import trimtab
import yaml
from trimtab.core.errors import SpecError
from trimtab.core.imports import import_object
from trimtab.experiments.cli import app
from typer.main import get_command

blocks_spec = importlib.util.spec_from_file_location("doc_blocks", Path(__file__).with_name("doc_blocks.py"))
doc_blocks = importlib.util.module_from_spec(blocks_spec)
sys.modules["doc_blocks"] = doc_blocks  # dataclasses look their module up
blocks_spec.loader.exec_module(doc_blocks)

ROOT, DOCS = doc_blocks.ROOT, doc_blocks.DOCS
QUICK_START = DOCS / "quick-start.md"
PAGES = doc_blocks.list_pages()
#: page → blocks with ``<!-- not run: … -->`` above them; another one is a decision
NOT_RUN = {
    "README.md": 2,  # makes an environment; the reader's own model
    "docs/how-to/another-budget.md": 1,  # a second search
    "docs/how-to/another-device.md": 1,  # a second search
    "docs/how-to/cluster.md": 2,  # a Ray cluster
    "docs/how-to/production.md": 1,  # an MLflow server
    "docs/how-to/profile.md": 1,  # minutes on a quiet machine
    "docs/how-to/remote-devices.md": 1,  # runs until it is interrupted
    "docs/how-to/report.md": 1,  # runs until it is interrupted
    "docs/how-to/serving.md": 2,  # a run with several policies on its front
    "docs/quick-start.md": 1,  # the network
}
#: how often a page is followed where the machine is too unquiet
N_ATTEMPTS = 3
#: page → indented blocks, which are neither run nor checked; these pages are older than the site
INDENTED = {"docs/adr/0009-predicting-unseen-kernels.md": 1, "docs/lut-format.md": 1}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks_of(page):
    """The blocks of a page that are run or checked."""
    return [b for b in doc_blocks.read_blocks(page) if b.excuse is None and b.language != "indented"]


def is_followed(page):
    """Whether a page has something to run, and so needs the folder that the quick start leaves behind."""
    return any(block.language in ("python", "sh") and block.file is None for block in blocks_of(page))


@contextmanager
def a_reader_in(folder):
    """Runs blocks in a folder; what they import, and where they are, is taken back."""
    before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield doc_blocks.PageRun(folder)
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


def follow(page, make_folder):
    """Follows a page in a new folder and returns that; anew where the machine was too unquiet to measure."""
    for attempt in range(1, N_ATTEMPTS + 1):
        folder = make_folder(f"reader-{attempt}")
        try:
            with a_reader_in(folder) as run:
                for block in blocks_of(page):
                    run.run(block)
            return folder
        except doc_blocks.UnquietError:
            if attempt == N_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def after_the_quick_start(tmp_path_factory):
    """The folder of a reader who has followed the quick start; to be copied."""
    return follow(QUICK_START, tmp_path_factory.mktemp)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_start_ends_with_an_artifact_that_keeps_its_promise(after_the_quick_start):
    assert trimtab.verify(after_the_quick_start / "runs" / "mine" / "artifact", tolerance=1.0).is_kept


@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if is_followed(page) and page != QUICK_START], ids=name_of)
def test_the_blocks_of_a_page_do_what_they_say(page, after_the_quick_start, tmp_path):
    follow(page, lambda name: shutil.copytree(after_the_quick_start, tmp_path / name))


@pytest.mark.parametrize("page", [page for page in PAGES if not is_followed(page) and blocks_of(page)], ids=name_of)
def test_the_files_that_a_page_shows_can_be_read(page, tmp_path):
    for block in blocks_of(page):
        doc_blocks.PageRun(tmp_path).run(block)


def test_blocks_that_are_not_run_are_known():
    excused = {name_of(page): sum(block.excuse is not None for block in doc_blocks.read_blocks(page)) for page in PAGES}
    assert {name: n for name, n in excused.items() if n} == NOT_RUN


def test_no_block_escapes_by_its_form():
    found = Counter(
        name_of(page) for page in PAGES for block in doc_blocks.read_blocks(page) if block.language == "indented"
    )
    assert dict(found) == INDENTED


def test_a_block_of_an_unknown_language_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Text\n\n```fortran\nstop\n```\n")
    (block,) = doc_blocks.read_blocks(page)
    with pytest.raises(AssertionError, match="no language that is run or checked"):
        doc_blocks.PageRun(tmp_path).run(block)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "assert 1 + 1 == 3"), ("sh", "false\ntrue"), ("sh", "trimtab no-such-command"),
        ("yaml", "budget: {latency: soon}"), ("yaml", "search: {algorithms: auto}"), ("json", "{"),
        ("csv", "a,b\n1\n"), ("text", "$ trimtab search digits"),
    ],
)  # fmt: skip
def test_a_block_that_is_wrong_fails(language, code, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```{language}\n{code}\n```\n")
    (block,) = doc_blocks.read_blocks(page)
    with pytest.raises((AssertionError, ValueError, SpecError, yaml.YAMLError)):
        doc_blocks.PageRun(tmp_path).run(block)


def test_an_excuse_covers_one_block_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a cluster -->\n```sh\na\n```\n\n```sh\nb\n```\n")
    assert [block.excuse for block in doc_blocks.read_blocks(page)] == ["needs a cluster", None]


def test_links_of_the_readme_lead_somewhere():
    dead = [link for link in doc_blocks.list_links(ROOT / "README.md") if not (ROOT / link).exists()]
    assert dead == []


def test_the_reference_names_everything_that_the_package_offers():
    named = re.findall(r"^::: (trimtab[\w.]+)$", (DOCS / "reference" / "python.md").read_text(), re.MULTILINE)
    documented = {path.rpartition(".")[2]: import_object(":".join(path.rsplit(".", 1)), noun="name") for path in named}
    assert sorted(documented) == sorted(trimtab.__all__)
    # the name of the folder `search` is called like the function, see trimtab/__init__.py
    strangers = [name for name in documented if name != "search" and documented[name] is not getattr(trimtab, name)]
    assert strangers == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_dead_link_and_documents_every_command(site):
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    missing = [name for name in get_command(app).commands if f"<code>trimtab {name}</code>" not in page]
    assert missing == []


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(site):
    fetched = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"')
    found = {url for page in site.rglob("*.html") for url in fetched.findall(page.read_text(encoding="utf-8"))}
    assert found == set()
