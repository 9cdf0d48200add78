"""What the pages of `docs` promise: tests that exist and flags that act."""

import ast
import re
import shlex

import pytest
from conftest import ROOT

from run_alternating_hand_finetuning import get_parser

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
    assert list(rows) == list(range(1, 27))
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
