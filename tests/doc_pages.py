"""The pages of the docs as tests see them: headings, links, code, and what a shell makes of that."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from markdown_it import MarkdownIt  # rich stands on it

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell", "console")
# Programs that start a command in running text; alone they are just names.
_STARTS = r"(?:python3?|torchrun|bash|sbatch|srun|mpirun|docker|taskset)"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S* )*{_STARTS} \S.*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Code:
    """A piece of code in a page: `language` is a fence's, `indented`, or `inline`."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def is_command(self):
        """Whether it is for a shell."""
        if self.language in SHELL:
            return True
        text = self.text if self.language == "inline" else self.text.lstrip()
        return self.language in ("inline", "indented") and COMMAND.match(text) is not None

    @property
    def script(self):
        """The text without what a terminal shows beside commands."""
        if self.language != "console":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith(("$ ", "> ")))

    def __str__(self):
        first = self.text.strip().splitlines()[0]
        return f"{self.page.name}:{self.line}: `{first}`"


@dataclasses.dataclass(frozen=True)
class Page:
    path: Path
    codes: list
    links: list  # (line, target)
    images: list  # (line, target)
    anchors: set
    tables: list  # tables of rows of cells, as they are written


def read_page(path, text=None):
    """Parses a page, or another text in its place."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text() if text is None else text)
    page = Page(path, [], [], [], set(), [])
    line = 0
    for token, before in zip(tokens, [None, *tokens], strict=False):
        line = token.map[0] + 1 if token.map else line
        if token.type == "fence":
            page.codes.append(Code(path, line + 1, token.info.strip(), token.content))
        elif token.type == "code_block":
            page.codes.append(Code(path, line, "indented", token.content))
        elif token.type == "table_open":
            page.tables.append([])
        elif token.type == "tr_open":
            page.tables[-1].append([])
        elif token.type == "inline":
            _read_inline(page, token, line)
            if before.type in ("td_open", "th_open"):
                page.tables[-1][-1].append(token.content)
            if before.type == "heading_open":
                page.anchors.add(_slug(token, page.anchors))
    return page


def _read_inline(page, token, line):
    for child in token.children:
        if child.type == "code_inline":
            page.codes.append(Code(page.path, line, "inline", child.content))
        elif child.type == "link_open":
            page.links.append((line, child.attrs["href"]))
        elif child.type == "image":
            page.images.append((line, child.attrs["src"]))


def _slug(heading, taken):
    """The anchor that GitHub gives to a heading."""
    text = "".join(child.content for child in heading.children if child.type in ("text", "code_inline"))
    slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    count = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in taken)
    return f"{slug}-{count}" if count else slug


# ------------------------------------------------------------------------------ what a shell does

_RECORDER = """#!{python} -IS
import json, os, sys
with open({file!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
"""
# Nothing is on the path: whatever is called is written down. `cd` and `source` would act on this shell.
_PRELUDE = """
command_not_found_handle() {{ {recorder} "$@"; }}
source() {{ {recorder} source "$@"; }}
cd() {{ :; }}
PATH=/nowhere
"""
# What the project's own scripts call beside the standard tools.
_STUBS = ("python", "git", "srun", "scontrol")


@dataclasses.dataclass(frozen=True)
class Command:
    """A program's call as the shell makes it: words after expansion, and its environment."""

    words: tuple
    environment: dict

    def __str__(self):
        return shlex.join(self.words)


class Unusable(Exception):
    """What is wrong with a command."""


class Shell:
    """A bash that writes down the commands it would run, in a copy of the project's scripts."""

    def __init__(self, folder):
        self.folder, self._file = folder / "project", folder / "commands.jsonl"
        self._recorder = folder / "recorder"
        self._write_program(self._recorder, _RECORDER.format(python=sys.executable, file=str(self._file)))
        self._stubs = folder / "bin"
        for name in _STUBS:
            self._write_program(
                self._stubs / name, f'#!/usr/bin/env bash\nexec {self._recorder} {name} "$@"\n'
            )
        for path in (*ROOT.glob("scripts/**/*.sh"), *ROOT.glob("requirements*.txt")):
            copy = self.folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())

    @staticmethod
    def _write_program(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def commands_of(self, text):
        """The commands of a page's text. Variables that nothing sets are 1."""
        check_syntax(text)
        used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", text))
        given = {name for pair in re.findall(r"(\w+)=|for (\w+) in", text) for name in pair}
        dummies = dict.fromkeys(used - given, "1")
        environment = {**dummies, "HOME": str(self.folder), "PYTHON": "python"}
        script = _PRELUDE.format(recorder=shlex.quote(str(self._recorder))) + text
        return self._record([shutil.which("bash"), "-c", script], environment)

    def commands_of_script(self, command):
        """The commands that one of the project's scripts runs with these words and variables."""
        script = self.folder / command.words[1]
        if not script.is_file():
            raise Unusable(f"there is no script {command.words[1]}")
        for word in filter(lambda word: "/" in word, command.words[2:]):
            (self.folder / word).parent.mkdir(parents=True, exist_ok=True)
        path = f"{self._stubs}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PYTHON": "python", "SLURM_JOB_ID": "1"}
        return self._record(list(command.words), {**command.environment, **own})

    def _record(self, argv, environment):
        self._file.unlink(missing_ok=True)
        done = subprocess.run(
            argv, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Unusable(f"bash ends with {done.returncode}: {done.stderr.strip()}")
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [Command(tuple(words), environment) for words, environment in map(json.loads, lines)]


def check_syntax(text):
    """Asks bash whether it could read the text.

    Raises:
        Unusable: it could not.
    """
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise Unusable(f"no valid shell: {done.stderr.strip()}")
