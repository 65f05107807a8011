"""The README and the documentation: their Python runs, their commands and names exist."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psycopg
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from project import User
from run_page import blocks

import tensorage
from tensorage import cli, errors
from tensorage.embedded.lifetime import ENDS_WITH_VARIABLE

if TYPE_CHECKING:
    from tensorage.embedded.control import Running

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *RECIPES]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
PAGES_WITH_PYTHON = [page for page in PAGES if page not in RECIPES and blocks(page, "python", "pycon")]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def reader(backend: Running, new_user: User, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has an account, a running embedded backend and an empty home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPABASE", "USER_", "TENSORAGE"))}
    return {
        **kept,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        # Pages make folders for what would be the reader's own, such as a spool.
        "TMPDIR": str(tmp_path),
        "TENSORAGE_DATA_DIR": str(backend.data_dir),
        ENDS_WITH_VARIABLE: os.environ[ENDS_WITH_VARIABLE],
        "SUPABASE_URL": backend.api_url,
        "SUPABASE_KEY": backend.anon_key,
        "USER_EMAIL": new_user.email,
        "USER_PASSWORD": new_user.password,
    }


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    """A process that runs pages, each in a child of its own."""
    command = [sys.executable, "-W", "error", Path(__file__).with_name("run_page.py")]
    # The workers of a cluster are forked from one process, which loads for all of them what they need.
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    ) as runner:
        yield runner
        # With a page that did not come to an end, if there was one.
        os.killpg(runner.pid, signal.SIGKILL)


@pytest.fixture
def leaves_nothing(backend: Running) -> Iterator[None]:
    """Pages share an account: arrays that one leaves would be in the way of others."""
    stored = "select key from public.datasets where state = 'committed' order by key"
    with psycopg.connect(backend.superuser_url, autocommit=True) as connection:
        before = connection.execute(stored).fetchall()
        yield
        assert connection.execute(stored).fetchall() == before


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=page_name)
def test_the_python_of_a_page_runs_and_can_run_again(
    page: Path, reader: dict[str, str], tmp_path: Path, runner: subprocess.Popen[str]
) -> None:
    for _ in range(2):
        run_pages([page], reader, tmp_path, runner)


@pytest.mark.usefixtures("leaves_nothing")
def test_recipes_run_one_after_the_other_and_can_run_again(
    reader: dict[str, str], tmp_path: Path, runner: subprocess.Popen[str]
) -> None:
    """Recipes are short: a process for each would take longer than they do."""
    for _ in range(2):
        run_pages(RECIPES, reader, tmp_path, runner)


def run_pages(
    pages: list[Path],
    reader: dict[str, str],
    folder: Path,
    runner: subprocess.Popen[str],
    *arguments: str,
) -> str:
    """Run the Python of pages in a process of the runner, and return its output, or show it if it fails."""
    assert runner.stdin is not None
    assert runner.stdout is not None
    output = folder / "output"
    names = [str(page) for page in pages]
    job = {"pages": names, "environment": reader, "folder": str(folder), "output": str(output)}
    job |= {"arguments": list(arguments)}
    print(json.dumps(job), file=runner.stdin, flush=True)
    status = runner.stdout.readline()
    assert status == "0\n", output.read_text()
    return output.read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sql", "postgresql")], ids=page_name)
def test_the_sql_of_a_page_runs_as_the_owner_of_a_project(page: Path, backend: Running) -> None:
    with psycopg.connect(backend.db_url) as connection:
        for block in blocks(page, "sql", "postgresql"):
            connection.execute(block.content.encode())
        connection.rollback()


def commands(page: Path) -> list[list[str]]:
    """Every line of shell on a page, as words, without what follows a comment, a pipe or a redirection."""
    shell = [line for block in blocks(page, "bash") for line in block.content.splitlines()]
    lines = [shlex.split(line, comments=True) for line in shell]
    return [list(takewhile(lambda word: word not in {"|", ">", ">>"}, words)) for words in lines if words]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(page):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        if words[0] == "tensorage":
            assert_click_accepts(words[1:])


def assert_click_accepts(words: list[str]) -> None:
    """The words name a command and its options: parsed as the program would, and not carried out."""
    command: click.Command = cli.main
    context = click.Context(command, info_name="tensorage")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, words)


def test_the_size_of_the_sql_on_the_hosted_page() -> None:
    text = (ROOT / "docs" / "hosted.md").read_text(encoding="utf-8")
    said = re.search(r"prints (\d+) kB of SQL", text)
    assert said is not None
    size = sum(file.stat().st_size for file in (ROOT / "supabase" / "migrations").glob("*.sql"))
    assert int(said[1]) == pytest.approx(size / 1000, rel=0.1)


def test_the_landing_page_has_each_card_and_each_heading_once() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for pattern in (r"^:link: (.+)$", r"^## (.+)$"):
        found = re.findall(pattern, text, re.M)
        assert found
        assert sorted(found) == sorted(set(found))
        assert not [line for line in found if '"' in line]


def test_the_terminals_of_the_landing_page_show_commands_that_exist() -> None:
    pictures = runpy.run_path(str(ROOT / "docs" / "terminal_pictures.py"))["SESSIONS"]
    landing = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for name, lines in pictures.items():
        picture = (ROOT / "docs" / "_static" / f"{name}.svg").read_text(encoding="utf-8")
        assert f"_static/{name}.svg" in landing
        # Nothing is fetched from elsewhere by who looks at it.
        assert not re.findall(r"(?:url\(|href=)\W*https?:", picture)
        # Spaces are not to be joined there, and text that changes its colour is in several parts.
        said = html.unescape("".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))).replace("\xa0", " ")
        for line in lines:
            assert_click_accepts(shlex.split(line)[1:])
            assert line in said


def test_installing_asks_for_a_version_that_can_be_imported() -> None:
    asked = [
        (path.name, requirement)
        for path in [*PAGES, *(ROOT / "tensorage").rglob("*.py")]
        for requirement in re.findall(
            r"pip install (?:-U |--upgrade )?'?(tensorage\b[^\s'`]*)", path.read_text(encoding="utf-8")
        )
    ]
    assert len(asked) > 5
    assert not [each for each in asked if not each[1].endswith(">=0.2")]


#: Words that open a sentence without a subject, or lean on the sentence before.
RIDDLES = {"What", "Where", "Which", "Who", "Whom", "Whose", "How", "Those", "Of", "As", "And", "So"}


def sentences(page: Path) -> Iterator[tuple[int, str]]:
    """Every sentence of a page outside of headings and code, with the line on which its paragraph begins."""
    in_heading = False
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type in {"heading_open", "heading_close"}:
            in_heading = token.type == "heading_open"
        elif token.type == "inline" and not in_heading:
            line = token.map[0] + 1 if token.map else 0
            for sentence in re.split(r"(?<=[.!?])\**\s+", " ".join(token.content.split())):
                yield line, sentence


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS, ROOT / "CHANGELOG.md"], ids=page_name)
def test_sentences_begin_with_what_they_are_about(page: Path) -> None:
    riddles = [
        f"{page.name}:{line}: {sentence}"
        for line, sentence in sentences(page)
        if re.sub(r"^\W+", "", sentence).split(" ")[0] in RIDDLES and not sentence.endswith("?")
    ]
    assert not riddles


def test_the_first_screen_of_the_readme() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45]
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in first_screen}
    assert "```python" in first_screen


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md"], ids=page_name)
def test_the_links_of_a_page_outside_of_the_documentation_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for words in commands(ROOT / "README.md"):
        if words[0] == "make" and words[1] in {"demo", "test", "check"}:
            assert re.search(rf"^{' '.join(words)}$", script, re.M), words


def shown_in_the_reference() -> dict[str, str]:
    """The names that the pages of the API describe, each with its page."""
    shown: dict[str, str] = {}
    for page in sorted((ROOT / "docs" / "api").glob("*.rst")):
        text = page.read_text(encoding="utf-8")
        for kind, target, options in re.findall(
            r"^ *\.\. (?:py:)?(\w+):: ([\w.]+).*\n((?: +:.*\n)*)", text, re.M
        ):
            name = target.removeprefix("tensorage.")
            if kind in {
                "autofunction",
                "autoclass",
                "autoexception",
                "automethod",
                "autoproperty",
                "attribute",
                "method",
                "property",
            }:
                shown[name] = text
            for members in re.findall(r":(?:special-)?members: (.+)", options):
                shown.update({f"{name}.{member}": text for member in members.split(", ")})
        shown.update(dict.fromkeys(re.findall(r"^``tensorage\.(\w+)`` is", text, re.M), text))
    return shown


def test_every_export_has_a_place_in_the_reference_and_in_the_list_of_names() -> None:
    shown, names = shown_in_the_reference(), (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not set(dir(tensorage)) - shown.keys()
    # The list names the errors by their root.
    listed = set(dir(tensorage)) - {name for name in errors.__all__ if name != "TensorageError"}
    assert not [name for name in listed if not re.search(rf"\b{name}\b", names)]


#: Methods by which Python's syntax, numpy and PyTorch use an object.
SYNTAX = {
    "TensorStore": ["getitem", "setitem", "delitem", "contains", "iter", "len", "getattr"],
    "Tensor": ["getitem", "setitem", "iter", "len", "array", "getitems"],
    "BackendSession": ["call"],
}

#: Public for other modules of the package only.
INNER = {
    "BackendSession": {"hold", "release", "takes", "transfer"},
    "Dataset": {"from_json"},
    "Tensor": {"on_latest", "reopen"},
    "TensorStore": {"arrays", "full_key", "write_declared"},
}


@pytest.mark.parametrize(
    "kind", [tensorage.TensorStore, tensorage.Tensor, tensorage.BackendSession, tensorage.Dataset]
)
def test_every_public_method_has_a_place_in_the_reference(kind: type) -> None:
    public = {name for name in dir(kind) if not name.startswith("_")}
    public |= {f"__{name}__" for name in SYNTAX.get(kind.__name__, [])}
    # Fields of a dataclass are parameters on its page.
    public -= set(getattr(kind, "__dataclass_fields__", {})) | INNER.get(kind.__name__, set())
    missing = {f"{kind.__name__}.{name}" for name in public} - shown_in_the_reference().keys()
    assert not missing


@pytest.mark.parametrize("kind", [tensorage.TensorStore, tensorage.Tensor, tensorage.BackendSession])
def test_every_public_method_is_in_the_tables_by_task(kind: type) -> None:
    tables = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    public = {name for name in dir(kind) if not name.startswith("_")}
    public -= set(getattr(kind, "__dataclass_fields__", {})) | INNER.get(kind.__name__, set())
    assert not [name for name in sorted(public) if not re.search(rf"[. ]{name}\b", tables)]


def test_every_error_has_its_place_in_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    assert errors.TensorageError in classes
    missing = [c.__name__ for c in classes if f"| `{c.__name__}`" not in page]
    assert not missing


def test_the_messages_in_troubleshooting_are_those_of_the_code() -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder, suffix in (("tensorage", "py"), ("supabase", "sql"))
        for path in (ROOT / folder).rglob(f"*.{suffix}")
    )
    # Texts that are written in several lines.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r'"([^"]+)"', "".join(re.findall(r'^(?:## "|\| ").*', page, re.M)))
    assert len(quoted) > 50
    parts = {part.strip(" ,'") for text in quoted for part in text.split("...")} - ELSEWHERE
    assert not [part for part in sorted(parts) if part and part not in code]


#: Messages of Supabase and PostgreSQL, and of a shell.
ELSEWHERE = {
    "Email address not authorized", "Invalid login credentials", "email rate limit exceeded", "cannot execute",
    "in a read-only transaction", "permission denied", "Request rate limit reached", "no matches found",
}  # fmt: skip


def test_the_demonstration_trains_and_can_run_again(
    backend: Running, tmp_path: Path, runner: subprocess.Popen[str]
) -> None:
    program, environment = ROOT / "examples" / "train_digits.py", dict(os.environ)
    for _ in range(2):
        printed = run_pages([program], environment, tmp_path, runner, os.fspath(backend.data_dir))
        held_out = re.findall(r"held-out images (0\.\d+)$", printed, re.M)
        (again,) = re.findall(r"second session: accuracy (0\.\d+)$", printed, re.M)
        assert float(held_out[-1]) > 0.9
        assert again == held_out[-1]
    # The last line of `make demo`, with the folder of this test.
    (line,) = re.findall(r"look at what it stored: (.+)\"$", (ROOT / "Makefile").read_text(), re.M)
    program, *words = shlex.split(line.replace("$(DEMO_DATA)", str(backend.data_dir)))
    assert program == "$(VENV)/bin/tensorage"
    shown = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "weights/" in shown.stdout
