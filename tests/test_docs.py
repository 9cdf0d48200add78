"""What the docs say exists: files, headings, pictures, tests, and flags with their values and defaults."""

import ast
import functools
import pkgutil
import re
import shlex

import pytest
from conftest import ROOT
from doc_pages import PAGES, Unusable, read_page
from doc_programs import all_parsers, parse, parser_of, tools

from run_alternating_hand_finetuning import get_parser
from scripts.tools.make_doc_figures import FIGURES

FIDELITY = (ROOT / "docs" / "fidelity.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
TEST = re.compile(r"(tests/\w+\.py)?::(\w+)")


def deviations():
    """{number: {column: cell}} of the deviations table."""
    lines = FIDELITY.split("## Deviations")[1].split("\n## ")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|")
    return {int(row[0]): dict(zip(head, row, strict=True)) for row in rows}


def named_tests(text):
    """(file, function) of every test that a line names; `::name` alone is in the file named before."""
    file = ""
    for match in TEST.finditer(text):
        file = match[1] or file
        yield file, match[2]


def functions_of(file):
    return {node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")}


def restoring_flags():
    return [flag for row in deviations().values() for flag in re.findall(r"`(.+?)`", row["restored by"])]


def test_every_deviation_names_its_tests():
    rows = deviations()
    assert list(rows) == list(range(1, 28))
    assert not [number for number, row in rows.items() if not list(named_tests(row["test"]))]


def lines_with_tests(*pages):
    return [line for page in pages for line in page.splitlines() if "tests/" in line]


@pytest.mark.parametrize("line", lines_with_tests(FIDELITY, RELIABILITY))
def test_tests_that_the_pages_name_exist(line):
    for path in re.findall(r"tests/[\w/.]*\w", line):
        assert (ROOT / path).exists(), path
    for file, name in named_tests(line):
        assert name in functions_of(file), f"{file}::{name}"


def test_published_recipe_sets_the_restoring_flags_and_no_others():
    script = (ROOT / "scripts" / "finetune" / "train_havid_published.sh").read_text()
    command = script.split('train_havid_alternating.sh"')[1].replace("\\\n", " ")
    given = shlex.split(command)[:-1]  # the last word is the caller's own arguments
    assert given == shlex.split(" ".join(restoring_flags()))
    assert len(restoring_flags()) == 6


@pytest.mark.parametrize("flag", restoring_flags())
def test_restoring_flag_is_accepted_and_changes_a_default(flag):
    name = flag.split()[0].removeprefix("--")
    default, restored = (getattr(get_parser().parse_args(argv), name) for argv in ([], flag.split()))
    assert restored != default


# ------------------------------------------------------------------------------- links and pictures


@functools.cache
def page_of(path):
    return read_page(path)


def broken_links(page):
    """What links and pictures of a page point to in vain, a line each."""
    for line, target in (*page.links, *page.images):
        if re.match(r"\w+:", target):  # not ours to look after
            continue
        place, _, anchor = target.partition("#")
        path = (page.path.parent / place).resolve() if place else page.path
        if not path.exists() or not path.is_relative_to(ROOT):
            yield f"{page.path.name}:{line}: there is no {place}"
        elif anchor and anchor not in (page if path == page.path else page_of(path)).anchors:
            yield f"{page.path.name}:{line}: {path.name} has no heading #{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_point_to_files_and_headings(path):
    assert not [*broken_links(page_of(path))]


def test_every_page_is_linked_from_the_readme():
    linked = {target.partition("#")[0] for _, target in page_of(ROOT / "README.md").links}
    assert linked >= {str(path.relative_to(ROOT)) for path in PAGES[1:]}


def test_every_tool_is_on_the_page_of_tools():
    page = (ROOT / "docs" / "tools.md").read_text()
    assert not [tool for tool in tools() if not re.search(rf"{re.escape(tool)}\b", page)]


def test_pictures_are_made_by_the_script_and_shown():
    files = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert files == {f"{name}.png" for name in FIGURES}
    shown = {target.rpartition("/")[2] for path in PAGES for _, target in page_of(path).images}
    assert shown == files


# ---------------------------------------------------------------------------------- paths and names

# What looks like a path of the project and is none, by reason.
NO_PATHS = {
    "another place": r"/.*|\w+://.*",
    "made by runs and scripts": r"(\.venv|data|output|weights|features|predictions)(/.*)?",
    "folders within an output folder": r"(ema|raw|tensorboard|report)/",
    "TensorBoard's tags": r"(train|val|val_ema|test|test_ema|\{[\w,]+\})/[\w{}.]*",
    "the layout of data": r"(videos|video)(_train|_val)?/|(INPUT|groundTruth|splits)/.*",
    "another project's": r"(OpenGVLab|MCG-NJU)/[\w.-]+|docs/MODEL_ZOO\.md",
    "shares in a sum": r"\d+(\.\d+)?/\d+",
}
PATH = re.compile(r"[\w.{}*-]*/[\w./{}*-]*|[\w-]+\.(py|sh|toml)|requirements[\w-]*\.txt")
NAME = re.compile(r"((?:dataset|models|scripts|utils|optim_factory|engine_\w+)(?:\.\w+)+)(\(.*\))?")


def missing_paths(page):
    """Paths and dotted names in a page's running code that name nothing, a line each."""
    for code in page.codes:
        if code.language != "inline":
            continue
        if PATH.fullmatch(code.text) and not any(re.fullmatch(no, code.text) for no in NO_PATHS.values()):
            if not [*ROOT.glob(re.sub(r"\{.*?\}", "*", code.text).rstrip("/"))]:
                yield f"{code}: there is no such file"
        elif (match := NAME.fullmatch(code.text)) and not PATH.fullmatch(code.text):
            try:
                pkgutil.resolve_name(match[1])
            except (ImportError, AttributeError) as error:
                yield f"{code}: {error}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_paths_and_names_in_the_text_exist(path):
    assert not [*missing_paths(page_of(path))]


WRONG = [
    ("[a](docs/no_such.md)", broken_links, "no_such.md"),
    ("[a](docs/data.md#no-such-heading)", broken_links, "#no-such-heading"),
    ("# One\n\n[a](#two)", broken_links, "#two"),
    ("![a](docs/images/no_such.png)", broken_links, "no_such.png"),
    ("[a](../outside.md)", broken_links, "outside.md"),
    ("`scripts/no_such.sh`", missing_paths, "scripts/no_such.sh"),
    ("`tests/no_such/`", missing_paths, "tests/no_such/"),
    ("`optim_factory.no_such`", missing_paths, "no_such"),
]


@pytest.mark.parametrize(("text", "find", "named"), WRONG)
def test_what_is_not_there_is_found(text, find, named):
    (found,) = find(read_page(ROOT / "README.md", text))
    assert named in found


def test_anchors_are_those_of_github():
    page = read_page(ROOT / "README.md", "# A `b_c`: d-e, f?\n\n## Two\n\n## Two\n")
    assert page.anchors == {"a-b_c-d-e-f", "two", "two-1"}


# ----------------------------------------------------------------------------------- flags in the text

# Of launchers, containers and this project's shell scripts.
OTHER_FLAGS = {
    "--all",
    "--cpus-per-task",
    "--gpus",
    "--pids-limit",
    "--shm-size",
    "--stop-timeout",
    "--ulimit",
}


@functools.cache
def parsers():
    """The parsers of the trainer and of every tool, with those of subcommands."""
    return [p for parser in (get_parser(), *map(parser_of, tools())) for p in all_parsers(parser)]


def unknown_flags(page):
    """Flags in a page's running code that no program has, or not with such a value, a line each."""
    for code in page.codes:
        words = code.text.split() if code.language == "inline" and code.text.startswith("--") else []
        for start, flag in enumerate(words):
            if not flag.startswith("--") or flag in OTHER_FLAGS:
                continue
            end = next((i for i in range(start + 1, len(words)) if words[i].startswith("--")), len(words))
            values = words[start + 1 : end]
            if any(re.fullmatch(r"[A-Z_x]+", value) for value in values):  # stands for a value
                values = []
            problem = _problem_of(flag, [value.split("|") for value in values])
            if problem:
                yield f"{code}: {problem}"


def _problem_of(flag, values):
    having = [parser for parser in parsers() if flag in parser._option_string_actions]
    if not having:
        return f"no program has {flag}"
    if not values:
        return None
    for alternative in range(max(map(len, values))):
        words = [flag, *(value[min(alternative, len(value) - 1)] for value in values)]
        problems = []
        for parser in having:
            try:
                parse(parser, words, whole=False)
            except Unusable as error:
                problems.append(str(error))
        if len(problems) == len(having):
            return problems[0]
    return None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_flags_in_the_text_are_some_program_s(path):
    assert not [*unknown_flags(page_of(path))]


WRONG_FLAGS = ["--no_such_flag", "--short_clips sideways", "--view 0|1|3", "--eval --resum FILE"]


@pytest.mark.parametrize("text", WRONG_FLAGS)
def test_wrong_flag_in_the_text_is_found(text):
    assert len([*unknown_flags(read_page(ROOT / "README.md", f"`{text}`"))]) == 1


def stated_defaults():
    """(flag, default as it is written) of every table whose first columns are called so."""
    for path in PAGES:
        for head, *rows in page_of(path).tables:
            if head[:2] == ["flag", "default"]:
                yield from ((row[0].strip("`"), row[1].strip("`")) for row in rows)


@pytest.mark.parametrize(("flag", "stated"), [*stated_defaults()])
def test_stated_defaults_are_the_trainer_s(flag, stated):
    default = get_parser().get_default(flag.removeprefix("--"))
    if isinstance(default, bool):
        default = "on" if default else "off"
    assert (stated if isinstance(default, str) else float(stated)) == default


def test_messages_of_the_troubles_table_are_in_the_code():
    (table,) = (t for t in page_of(ROOT / "docs" / "distributed.md").tables if t[0][0] == "what is seen")
    messages = [text for row in table for text in re.findall(r'"(.+?)"', row[0])]
    files = [*ROOT.glob("*.py"), *(ROOT / "dataset").glob("*.py")]
    code = " ".join(re.sub(r'"\s+f?"', "", path.read_text()) for path in files)
    assert len(messages) > 5
    assert not [message for message in messages if message not in code]
