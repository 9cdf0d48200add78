"""Which program reads a command of the docs: the parsers of trainer, tools and launchers."""

import argparse
import contextlib
import importlib
import importlib.util
import io
import itertools
import re

from conftest import ROOT
from doc_pages import Command, Unusable
from torch.distributed.run import get_args_parser as torchrun_parser

import run_alternating_hand_finetuning as trainer
from utils import UserError

TRAINER = "run_alternating_hand_finetuning.py"
# Not this project's: bash has read the command, and nobody here knows their flags.
OTHERS = {"cd", "ffmpeg", "git", "ls", "nvidia-smi", "pip", "scontrol", "source", "tee", "uv"}
OTHER_MODULES = {"pytest", "ruff", "tensorboard.main"}
# They start another command, which is looked at.
LAUNCHERS = {"docker", "mpirun", "srun", "taskset"}
SBATCH = {"--nodes", "--ntasks-per-node", "--cpus-per-task", "--time"}
# Words of the pages that stand for a value; None: for whatever may follow.
PLACEHOLDERS = {"...": None, "COMMAND": "decode", "SEED": "0", "N": "1"}


def load_tool(module):
    """The module that `python -m module` runs.

    Raises:
        Unusable: there is none.
    """
    for name in (f"{module}.__main__", module):
        with contextlib.suppress(ModuleNotFoundError):
            if name.startswith("scripts.") and importlib.util.find_spec(name):
                return importlib.import_module(name)
    raise Unusable(f"there is no module {module}")


def parser_of(module):
    """The command line of `python -m module`."""
    make = getattr(load_tool(module), "make_parser", None)
    if make is None:
        raise Unusable(f"{module} has no make_parser(), so its flags cannot be checked")
    return make()


def tools():
    """Modules of `scripts` that can be run: those with a `make_parser`."""
    files = (path for path in ROOT.glob("scripts/**/*.py") if "\ndef make_parser(" in path.read_text())
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return sorted(name.removesuffix(".__main__") for name in names)


def all_parsers(parser):
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from all_parsers(child)


def parse(parser, words, whole):
    """Parses words as a program would.

    Args:
        parser: the program's own.
        words: its arguments.
        whole: whether what it requires must be there; running text may leave it out.

    Raises:
        Unusable: the program would refuse them.
    """
    for one in all_parsers(parser):
        one.allow_abbrev = False
        for action in () if whole else one._actions:
            action.required = False
            if not action.option_strings and action.nargs in (None, "+"):
                action.nargs = "?" if action.nargs is None else "*"
    said = io.StringIO()
    try:
        # Where people run it: some flags want files that exist.
        with contextlib.chdir(ROOT), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser.parse_args(words)
    except SystemExit as stop:
        if stop.code:
            raise Unusable(said.getvalue().strip().splitlines()[-1]) from None
    return None


class Checker:
    """Finds for each command the parser that reads it, down to what scripts and launchers start."""

    def __init__(self, shell):
        self.shell = shell

    def check(self, code):
        """Checks a piece of a page's code; returns its commands.

        Raises:
            Unusable: something in it cannot be run as it stands.
        """
        commands = self.shell.commands_of(code.script)
        for command in commands:
            self.check_command(command, whole=code.language != "inline")
        return commands

    def check_command(self, command, whole=True):
        program, *words = (PLACEHOLDERS.get(word, word) for word in command.words)
        words = [word for word in words if word is not None]
        for word in words:
            if re.match(r"(scripts|tests|docs|dataset)/", word) and not [*ROOT.glob(word)]:
                raise Unusable(f"there is no {word}")
        if program in LAUNCHERS:
            words = itertools.dropwhile(lambda word: word not in ("bash", "python", "torchrun"), words)
            program, *words = [*words] or [""]
        if program == "torchrun":
            self._check_torchrun(words, command, whole)
        elif program == "python":
            self._check_python(words, command, whole)
        elif program == "sbatch":
            self._check_sbatch(words, command)
        elif program == "bash":
            self._check_script(Command(("bash", *words), command.environment))
        elif program not in OTHERS:
            raise Unusable(f"no parser is known for {program!r}; is it one of {__name__}.OTHERS?")

    def _check_python(self, words, command, whole):
        match words:
            case ["-c", text, *_]:
                compile(text, "-c", "exec")
            case ["-m", "torch.distributed.run", *rest]:
                self._check_torchrun(rest, command, whole)
            case ["-m", module, *rest] if module not in OTHER_MODULES:
                # A tool that is only named needs no flags.
                parse(parser_of(module), rest, whole or bool(rest))
            case [script, *rest] if script == TRAINER:
                self._check_trainer(rest, whole)
            case ["-m", _, *_] | ["-", *_]:  # `-`: what a script gives to python itself
                pass
            case _:
                raise Unusable(f"no parser is known for {' '.join(words)!r}")

    @staticmethod
    def _check_trainer(words, whole):
        args = parse(trainer.get_parser(), words, whole)
        if args and args.lh_data_path:
            try:
                trainer.check_args(args)
            except UserError as error:
                raise Unusable(str(error)) from None

    def _check_torchrun(self, words, command, whole):
        args = parse(torchrun_parser(), words, whole)
        if args.training_script:
            module = ["-m"] * args.module
            words = ("python", *module, args.training_script, *args.training_script_args)
            self.check_command(Command(words, command.environment), whole)

    def _check_sbatch(self, words, command):
        script = next((i for i, word in enumerate(words) if word.endswith(".sh")), None)
        if script is None:
            raise Unusable("sbatch starts no script")
        unknown = {word for word in words[:script] if word.startswith("-")} - SBATCH
        if unknown:
            raise Unusable(f"unknown to this test as flags of sbatch: {unknown}")
        self._check_script(Command(("bash", *words[script:]), command.environment))

    def _check_script(self, command):
        for called in self.shell.commands_of_script(command):
            self.check_command(called)
