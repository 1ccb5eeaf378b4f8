"""Mutation testing: break the code on purpose, one place at a time, and see whether a test goes red.

``python -m tools.mutation --num 20 --seed 1`` judges twenty more places over all modules of ``TESTS``, a
module as likely as another; ``--module ppl_ext/smoothing`` keeps to one folder or module. Verdicts add up in
``tools/mutants.json``; those already judged there are passed over while their line stands in the source, and
``--again`` judges the survivors anew. ``--report`` prints kills by folder and each survivor with its note: a
survivor wants a test, or a note in that file that says why no test can tell.

Each mutant runs in a copy of the tree against the tests named for its module, up to the first failure. Tests
that are known to enter the changed function come first, the fastest of them before, and those known not to
enter it are left out; that knowledge, and what XLA compiled, grow from run to run in ``.mutation``.
``--learn`` gathers it for all tests beforehand, in the time that they take: without it the first mutants of
each module pay for it.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue

from tools.mutants import Mutant, mutants
from tools.verdicts import ALIVE, KILLED, UNDECIDED, Verdict, add, load, report
from tools.watching import meets, run_tests

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tools" / "mutants.json"
HABITS = ROOT / ".mutation"

_CORE = (
    "tests/tracing tests/densities tests/gradients tests/expectations tests/handlers tests/objectives "
    "tests/test_program.py tests/test_program_scan.py tests/test_program_modules.py "
    "tests/test_program_mistakes.py"
)
TESTS = {
    "ppl_ext/program.py": _CORE,
    "ppl_ext/tracing": _CORE,
    "ppl_ext/densities/distributions.py": f"tests/densities/test_derivatives_of_laws.py {_CORE}",
    "ppl_ext/densities/bound_direction.py": "tests/densities/test_bound_direction.py",
    "ppl_ext/densities": _CORE,
    "ppl_ext/expectations": _CORE,
    "ppl_ext/gradients": _CORE,
    "ppl_ext/state_space": "tests/state_space tests/algorithms tests/smoothing "
    "tests/infer/test_particle_gibbs.py",
    "ppl_ext/algorithms": "tests/algorithms tests/state_space tests/smoothing "
    "tests/infer/test_particle_gibbs.py tests/test_composition.py",
    "ppl_ext/scores": "tests/scores",
    "ppl_ext/transport": "tests/transport",
    "ppl_ext/designs": "tests/designs",
    "ppl_ext/smoothing": "tests/smoothing tests/algorithms/test_contract.py tests/fuzz tests/test_fuzz.py",
    "ppl_ext/meta": "tests/meta tests/fuzz tests/test_fuzz.py",
    "ppl_ext/priors": "tests/priors tests/fuzz tests/test_fuzz.py",
    "ppl_ext/objectives/terms": _CORE,
    "ppl_ext/objectives": "tests/objectives tests/conformance/test_objectives.py",
    "ppl_ext/handlers": _CORE,
    "ppl_ext/infer": "tests/infer tests/smoothing/test_inputs.py tests/fuzz tests/test_fuzz.py",
}
"""From a module, or a folder of them, to the tests that should notice; the examples of the module's own
docstrings come on top.
"""

PRELOAD = [
    "jax",
    "numpyro.infer",
    "numpyro.infer.autoguide",
    "arviz",
    "equinox",
    "optax",
    "funsor",
    "scipy.stats",
    "hypothesis",
    "tqdm.auto",
]
STUCK = 20.0
"""A test that takes so many times its known seconds, and five minutes at least, never ends."""


def tests_of(module: str) -> list[str]:
    return next(
        tests for path, tests in TESTS.items() if module == path or module.startswith(f"{path}/")
    ).split()


def sources(only: str | None = None) -> dict[str, str]:
    """The text of every module under ``TESTS``, or of those in one folder."""
    paths = [
        p
        for path in TESTS
        for p in ([ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py")))
    ]
    names = [p.relative_to(ROOT).as_posix() for p in paths if p.name != "__init__.py"]
    return {
        n: (ROOT / n).read_text(encoding="utf-8")
        for n in names
        if only is None or n == only or n.startswith(f"{only.rstrip('/')}/")
    }


def sample(num: int, seed: int, only: str | None = None, judged: frozenset = frozenset()) -> list[Mutant]:
    """Mutants that are not judged yet, a module as likely as another, none twice."""
    rng = random.Random(seed)
    pool = {
        name: [m for m in mutants(name, source) if m.place not in judged]
        for name, source in sources(only).items()
    }
    chosen: list[Mutant] = []
    while len(chosen) < num and any(pool.values()):
        name = rng.choice([n for n, left in pool.items() if left])
        chosen.append(pool[name].pop(rng.randrange(len(pool[name]))))
    return chosen


def everything(only: str | None = None) -> list[str]:
    """The tests of all modules, a file at a time, and the examples of the modules' docstrings, a folder at a
    time.
    """
    files = {file for name in sources(only) for file in files_of(tests_of(name), ROOT)}
    folders: dict[Path, list[str]] = {}
    for name in sources(only):
        folders.setdefault(Path(name).parent, []).append(name)
    return sorted(files) + [" ".join(names) for names in folders.values()]


def files_of(tests: list[str], root: Path) -> list[str]:
    """Files of tests in place of their folders."""
    paths = [
        path
        for test in tests
        for path in (sorted((root / test).rglob("test_*.py")) if (root / test).is_dir() else [root / test])
    ]
    return list(dict.fromkeys(path.relative_to(root).as_posix() for path in paths))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class NothingRanError(RuntimeError):
    """pytest ended before a test."""


class Trials:
    """Copies of a tree, one a job, and what is known of its tests: their seconds, and the functions that they
    enter.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        jobs: int = 1,
        habits: Path | None = None,
        options: tuple[str, ...] = (),
        again: bool = False,
    ):
        self.options, self.habits, self.lock, self.again = list(options), habits, threading.Lock(), again
        self.known: dict[str, tuple[float, list[str]]] = {}
        self.whole: dict[str, str] = {}  # files all of whose tests are known, and what the files were then
        if habits is not None:
            habits.mkdir(exist_ok=True)
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(habits / "jax"))
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
            if (habits / "tests.json").exists():
                self.known, self.whole = json.loads((habits / "tests.json").read_text(encoding="utf-8"))
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        self.trees: Queue[Path] = Queue()
        left_out = shutil.ignore_patterns(
            ".git", ".venv", "__pycache__", "_build", "output", ".mutation", ".*_cache"
        )
        for job in range(jobs):
            shutil.copytree(root, tree := folder.resolve() / f"tree{job}", symlinks=True, ignore=left_out)
            self.trees.put(tree)
        self.context = multiprocessing.get_context("forkserver")
        # a second of imports, not ten; nothing of XLA runs before the fork
        self.context.set_forkserver_preload(PRELOAD)

    def judge(self, mutant: Mutant, seconds: float) -> Verdict:
        """Killed where a test that is green without the mutant goes red, or never ends."""
        started, tree, note = time.perf_counter(), self.trees.get(), ""
        try:
            with changed(tree / mutant.module, mutant.source):
                function = mutant.function or f"{mutant.module}:"
                tests = [
                    mutant.module,
                    *(
                        t
                        for t in files_of(tests_of(mutant.module), tree)
                        if self.may_enter(t, function, tree)
                    ),
                ]
                try:
                    outcome, by = self.run(tree, tests, function, seconds)
                except NothingRanError:
                    # a conftest.py cannot import the module; if it is a mistake of ours, it comes again
                    outcome, by = KILLED, "collection"
            if outcome == KILLED and by not in self.known:
                # Without the mutant: the test itself, or the import of its file, or of all.
                alone = [by] if "::" in by else [*(tests if by == "collection" else [by]), "--collect-only"]
                if self.run(tree, alone, "", seconds)[0] != ALIVE:
                    outcome, note = UNDECIDED, "this test is not green without the mutant either"
            if outcome == KILLED and self.options:
                note = f"Killed under pytest {shlex.join(self.options)}."
        finally:
            self.trees.put(tree)
        return Verdict.on(mutant, outcome, time.perf_counter() - started, by, note)

    def run(self, tree: Path, tests: list[str], function: str, seconds: float) -> tuple[str, str]:
        """The outcome of these tests in a process of their own, and the test that decided it."""
        here, there = self.context.Pipe(duplex=False)
        log = tree.with_suffix(".log")
        arguments = (there, str(tree), str(log), [*self.options, *tests], self.known, function, self.again)
        process = self.context.Process(target=run_tests, args=arguments)
        process.start()
        there.close()
        try:
            with here:
                return self.watch(here, log, seconds)
        finally:
            for stop in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
                with suppress(ProcessLookupError):
                    stop()
            process.join()

    def watch(self, tells: Connection, log: Path, seconds: float) -> tuple[str, str]:
        started, current, last = time.perf_counter(), "", float("inf")
        while True:
            now = time.perf_counter()
            if now > last:
                return KILLED, current
            if now > started + seconds:
                return UNDECIDED, current
            if not tells.poll(1.0):
                continue
            try:
                what, *told = tells.recv()
            except EOFError as error:
                if not current:
                    raise RuntimeError(
                        f"pytest never began: {log.read_text(encoding='utf-8')[-2000:]}"
                    ) from error
                return KILLED, current  # a test took the interpreter down
            if what == "starts":
                (current,) = told
                last = (
                    now + max(300.0, STUCK * self.known[current][0])
                    if current in self.known
                    else float("inf")
                )
            elif what == "failed":
                return KILLED, told[0]
            elif what == "passed":
                self.learn(*told)
            elif what == "ends":
                # a usage error or a crash: no test has spoken; 5 is a file without tests
                if told[0] not in (0, 5):
                    raise NothingRanError(
                        f"pytest ended with {told[0]}: {log.read_text(encoding='utf-8')[-2000:]}"
                    )
                return ALIVE, ""

    def learn(self, nodeid: str, seconds: float, enters: list[str]) -> None:
        with self.lock:
            before = self.known.get(nodeid, (seconds, []))
            self.known[nodeid] = (round(min(seconds, before[0]), 2), sorted({*before[1], *enters}))

    def learn_all(self, tests: str) -> str:
        """What the tests of one file, or of a folder's docstrings, enter in the tree as it stands; returns
        the first that is red, or "".
        """
        tree = self.trees.get()
        try:
            # what is known enters "" not, and is left out
            outcome, red = self.run(tree, tests.split(), "", float("inf"))
            if outcome == ALIVE:
                self.whole |= {test: digest(tree / test) for test in tests.split()}
            return red
        finally:
            self.trees.put(tree)
            self.remember()

    def may_enter(self, file: str, function: str, tree: Path) -> bool:
        """Whether one of a file's tests enters the function, or is not known: the file is not even collected
        if none does.
        """
        if self.options or self.whole.get(file) != digest(tree / file):
            return True
        return any(
            test.startswith(f"{file}::") and meets(function, enters)
            for test, (_, enters) in self.known.items()
        )

    def remember(self) -> None:
        if self.habits is not None:
            with self.lock:
                (self.habits / "tests.json").write_text(
                    json.dumps([self.known, self.whole]), encoding="utf-8"
                )


@contextmanager
def changed(path: Path, source: str) -> Iterator[None]:
    original = path.read_text(encoding="utf-8")
    path.write_text(source, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(original, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=20, help="so many places that are not judged yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", help="one module, or a folder of them")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=1800.0, help="for the tests of one mutant; then it is undecided"
    )
    parser.add_argument("--kept", type=Path, default=KEPT, help="the file of verdicts")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show the sample and stop")
    what.add_argument(
        "--again", action="store_true", help="judge those anew that are alive or undecided, and stop"
    )
    what.add_argument(
        "--learn",
        action="store_true",
        help="run the tests without any mutant, to know which functions each enters, and stop",
    )
    what.add_argument("--report", action="store_true", help="print what is kept and stop")
    parser.add_argument("options", nargs="*", help="for pytest, after --")
    given = parser.parse_args()
    kept = load(given.kept)
    standing = {m.place: m for name, source in sources(given.module).items() for m in mutants(name, source)}
    if given.report:
        print(
            report([v for v in kept if given.module is None or v.module.startswith(given.module)], standing)
        )
        return
    if given.again:
        chosen = [standing[v.place] for v in kept if v.verdict != KILLED and v.place in standing]
    else:
        chosen = sample(given.num, given.seed, given.module, frozenset(v.place for v in kept))
    if given.list:
        print(*(f"{m.module}:{m.line}  {m.before}  ->  {m.after}" for m in chosen), sep="\n")
        return
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        trials = Trials(ROOT, Path(folder), given.jobs, HABITS, tuple(given.options), given.again)
        if given.learn:
            for tests, red in zip(
                shares := everything(given.module), pool.map(trials.learn_all, shares), strict=True
            ):
                print(f"{len(trials.known):5} known  {tests[:100]}   {red and f'RED: {red}'}", flush=True)
            return

        def judge(numbered: tuple[int, Mutant]) -> None:
            number, mutant = numbered
            verdict = trials.judge(mutant, given.seconds)
            with lock:
                trials.remember()
                add(given.kept, verdict)
                what = f"{mutant.module}:{mutant.line}  {mutant.before}  ->  {mutant.after}"
                print(
                    f"{number:4}/{len(chosen)}  {verdict.verdict:9}  {verdict.seconds:6.0f} s  {what}   "
                    f"{verdict.by}",
                    flush=True,
                )

        list(pool.map(judge, enumerate(chosen, 1)))
    print(report([v for v in load(given.kept) if v.place in {m.place for m in chosen}], standing))


if __name__ == "__main__":
    main()
