"""Every command in the docs: a shell reads it, its program knows its flags, and what can run here is run."""

import contextlib
import io
import re
import shutil
from itertools import pairwise

import pytest
from conftest import ROOT
from doc_pages import COMMAND, PAGES, Code, Shell, Unusable, read_page
from doc_programs import TRAINER, Checker, load_tool


@pytest.fixture(scope="session")
def checker(tmp_path_factory):
    return Checker(Shell(tmp_path_factory.mktemp("shell")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_are_ones_that_their_programs_take(path, checker):
    problems = []
    for code in filter(lambda code: code.is_command, read_page(path).codes):
        try:
            checker.check(code)
        except Unusable as error:
            problems.append(f"{code}: {error}")
    assert not problems, "\n".join(problems)


WRONG = [
    ("python -m scripts.tools.show_metrics", "required"),
    ("python -m scripts.tools.show_metrics output/run --requires 75", "--requires"),
    ("python -m scripts.tools.show_metrics output/run --requ 75", "--requ"),
    ("python -m scripts.tools.no_such_tool output/run", "no_such_tool"),
    ("python -m scripts.data.prepare_havid --input a --output b --view 3", "invalid choice"),
    ("python -m scripts.tools.benchmark data --bogus", "--bogus"),
    ("python -m scripts.tools.trained_model", "make_parser"),
    ("python run_finetuning.py", "run_finetuning.py"),
    ("python run_alternating_hand_finetuning.py --batch_size 0", "--batch_size"),
    ("python run_alternating_hand_finetuning.py --lh_data_path a", "--rh_data_path is needed"),
    ("torchrun --nproc_per_nodes 8 run_alternating_hand_finetuning.py", "--nproc_per_nodes"),
    ("torchrun --nproc_per_node 8 run_alternating_hand_finetuning.py --epoch 3", "--epoch"),
    ("torchrun --nproc_per_node 8 -m scripts.tools.extract_features --checkpoint a --strides 3", "--strides"),
    ("mpirun -np 8 python run_alternating_hand_finetuning.py --dist_on_it", "--dist_on_it"),
    ("bash scripts/finetune/no_such.sh", "no_such.sh"),
    ("GPUS=8 bash scripts/finetune/train_havid_alternating.sh --model_emma", "--model_emma"),
    ("GPUS=x bash scripts/finetune/train_multinode.sh", "set MASTER"),
    ("sbatch --node 2 scripts/finetune/slurm_havid_alternating.sh", "--node"),
    ("sbatch scripts/finetune/slurm_havid_alternating.sh --bogus", "--bogus"),
    ("python -m scripts.data.measure_keyframes --cut 9 tests/clips/no_such.mp4", "no_such.mp4"),
    ("for n in 1 2; do python -m scripts.tools.show_metrics --bogus $n; done", "--bogus"),
    ("for n in 1 2; python -m scripts.tools.show_metrics $n; done", "no valid shell"),
    ("frobnicate --all", "frobnicate"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), WRONG, ids=[text for text, _ in WRONG])
def test_wrong_command_is_found_with_its_reason(text, reason, checker):
    with pytest.raises(Unusable, match=re.escape(reason)):
        checker.check(Code(ROOT / "README.md", 1, "bash", text))


def test_commands_in_running_text_are_told_from_names():
    for text in (
        "python -m scripts.tools.show_metrics output/run",
        "A=1 bash scripts/test.sh",
        "sbatch x.sh",
    ):
        assert COMMAND.match(text)
    for text in ("python", "torchrun", "--epochs 3", "WEIGHTS=", "bash_history", "scripts/test.sh"):
        assert not COMMAND.match(text)


# ------------------------------------------------------------------------------------- running

# What makes a command small, given after its own flags; of the trainer, evaluations alone are run.
MAKER = "scripts.data.make_sample_havid"
SMALL = {
    "scripts.data.check_dataset": ("--num_workers", "1"),
    MAKER: ("--recordings", "5", "--size", "48", "64", "--workers", "1"),
    "scripts.data.prepare_havid": ("--workers", "1"),
    "scripts.tools.browse_dataset": ("--n", "2"),
    TRAINER: ("--device", "cpu", "--num_workers", "0"),
}
# Parsed and not run, and why.
NOT_RUN = {
    "scripts.tools.benchmark": "measures for minutes; tests/test_benchmark.py runs it",
    "scripts.tools.make_doc_figures": "draws from the whole sample data; tests/test_tools.py runs it",
    "scripts.tools.store_backbone": "wants a finished pretraining",
}
# Run by `bash scripts/test.sh --all` alone.
SLOW = {"scripts.data.measure_keyframes"}


def program_of(command):
    """The tool that a command runs, and its arguments; None for what is not ours."""
    match command.words:
        case ("python", "-m", module, *words) if module.startswith("scripts."):
            return module, words
        case ("python", script, *words) if script == TRAINER:
            return script, words
    return None, ()


class World:
    """A folder in which the paths of a page exist: data, finished runs, videos."""

    def __init__(self, folder, sample, finished_run, run_main):
        self.folder, self._sample, self._finished_run, self._run_main = folder, sample, finished_run, run_main
        for name in ("docs", "models", "tests/clips"):
            shutil.copytree(ROOT / name, folder / name)  # copies: a command may write there

    def provide(self, words):
        """Makes what the words name and no command of the page has made."""
        for before, word in pairwise(("", *words)):
            if before.startswith("--output"):
                continue
            if word.startswith("data/havid/"):
                self._make("data/havid", lambda path: path.symlink_to(self._sample.root))
            elif word == "data/havid_raw":
                self._make(word, lambda path: self.run(MAKER, ["--raw", "--output", str(path)]))
            elif match := re.match(r"output/[\w-]+(?=/|$)", word):
                self._make(match[0], lambda path: shutil.copytree(self._finished_run, path))
            elif re.fullmatch(r"[\w/.-]+\.mp4", word):
                self._make(word, lambda path: path.symlink_to(self._sample.path("lh") / "videos" / "r00.mp4"))

    def _make(self, place, make):
        path = self.folder / place
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)

    def run(self, program, words):
        """Runs a program in this process; returns its exit code and what it said."""
        words = [path for word in words for path in self._expand(word)] + [*SMALL.get(program, ())]
        with contextlib.chdir(self.folder):
            if program == TRAINER:
                result = self._run_main(*words)
                return result.code, result.output
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                return load_tool(program).main(words), said.getvalue()

    def _expand(self, word):
        # The shell that read the page stood elsewhere.
        found = self.folder.glob(word) if re.search(r"[*?[]", word) and word[0] not in "/-" else ()
        return sorted(str(path.relative_to(self.folder)) for path in found) or [word]


@pytest.fixture
def world(sample, full_run, run_main, tmp_path):
    return World(tmp_path, sample, full_run, run_main)


def can_run(program, words, skipped):
    """Whether small data and a CPU are enough for a command."""
    if program is None or program in skipped or "--help" in words:
        return False
    of_a_run = any(word.startswith("output/") for flag, word in pairwise(words) if flag == "--resume")
    return program != TRAINER or (("--eval" in words or "--validation" in words) and of_a_run)


def run_page(page, world, shell, skipped=()):
    """Runs what can be run of a page's blocks, in their order; returns the programs."""
    ran, names = [], {}
    for code in page.codes:
        if code.language == "python":
            world.provide(re.findall(r"output/[\w-]+", code.text))
            with contextlib.chdir(world.folder):
                exec(compile(code.text, str(code), "exec"), names)
            ran.append("python")
        elif code.is_command and code.language != "inline":
            ran += run_commands(code, world, shell, {*NOT_RUN, *skipped})
    return ran


def run_commands(code, world, shell, skipped):
    """Runs what can be run of one block; returns the programs."""
    ran = []
    for command in shell.commands_of(code.script):
        program, words = program_of(command)
        world.provide(words)
        if can_run(program, words, skipped):
            exit_code, said = world.run(program, words)
            assert exit_code == 0, f"{code}: {command} ends with {exit_code}:\n{said}"
            ran.append(program)
    return ran


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_can_run_here_runs(path, world, checker):
    if "scripts.tools.export" in path.read_text():
        pytest.importorskip("onnxruntime", reason="needs requirements-tools.txt")
    run_page(read_page(path), world, checker.shell, SLOW)


@pytest.mark.slow
def test_slow_commands_run(world, checker):
    assert set(run_page(read_page(ROOT / "docs" / "tools.md"), world, checker.shell)) >= SLOW


def test_command_that_fails_is_found(world, checker):
    blocks = "```bash\n{0} output/run\n{0} nowhere\n```".format("python -m scripts.tools.show_metrics")
    with pytest.raises(AssertionError, match=r"page.md:2: .*nowhere ends with 1:\s+show_metrics: nowhere/"):
        run_page(read_page(ROOT / "page.md", blocks), world, checker.shell)
