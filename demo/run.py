"""Models, each written once, each under several algorithms: a table and a picture a chapter, and one page
with all of it.

``python demo/run.py`` (or ``make demo``) takes a few minutes on two cores and writes ``report.html``,
pictures and a netCDF file for each run to ``demo/output/``; the page grows as chapters end, the first of them
within a minute. ``python demo/run.py nile crash`` runs those chapters only; ``make quick`` runs the first.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

# run as a script, not as a module: Python then looks beside this file and not in the repository's root
if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.page import LEGEND, Told, write_page  # noqa: E402  after the path is set

OUTPUT = Path(__file__).resolve().parent / "output"
CHAPTERS = ["radon", "faithful", "nile", "crash", "chicks"]
STARTED = ["radon", "nile", "chicks", "faithful", "crash"]
"""One that is soon done, for something to look at, and then the longest first."""


def prepare(started) -> None:
    """For each of the two processes: its progress bars have their own line, and XLA its older code generator.

    Most of the demo's time goes into compiling, and that one compiles in about half the time.
    """
    with started.get_lock():
        os.environ["TQDM_POSITION"] = str(started.value)
        started.value += 1
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"


def tell(name: str) -> Told:
    """Run a chapter and write its picture, and a netCDF file for each run."""
    from demo import chapters, page  # JAX, set up as `prepare` says

    chapter = chapters.ALL[name]()
    chapter.picture.savefig(OUTPUT / f"{chapter.name}.png", dpi=130)
    for run in chapter.runs:
        words = "".join(c if c.isalnum() else " " for c in run.name.lower()).split()
        run.report.to_netcdf(str(OUTPUT / f"{'_'.join([chapter.name, *words])}.nc"))
    return page.told(chapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help=f"of: {', '.join(CHAPTERS)} (default all)"
    )
    names = parser.parse_args().chapters or CHAPTERS
    if unknown := sorted(set(names) - set(CHAPTERS)):
        parser.error(f"no such chapter: {', '.join(unknown)}; there are: {', '.join(CHAPTERS)}")
    start = time.perf_counter()
    OUTPUT.mkdir(exist_ok=True)
    print(f"{len(names)} chapters, two at a time; each tells what it runs", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), context, prepare, (context.Value("i", 0),)) as pool:
        running = {pool.submit(tell, name): name for name in STARTED if name in names}
        done: dict[str, Told] = {}
        for future in as_completed(running):
            chapter = done[running[future]] = future.result()
            seconds = time.perf_counter() - start
            chapters = [done[name] for name in names if name in done]
            write_page(OUTPUT / "report.html", chapters, seconds)
            print(f"\n{chapter.title}\n\n{chapter.tables}\n{chapter.finding}", flush=True)
            print(f"{seconds:.0f} s; demo/output/report.html has {len(done)} of {len(names)}\n", flush=True)
    print(LEGEND, flush=True)
    for chapter in chapters:
        print(f"{chapter.title}. {chapter.finding}")
    files = sum(chapter.files for chapter in chapters)
    print(
        f"Done in {seconds:.0f} s: open demo/output/report.html; {files} netCDF files for arviz.from_netcdf "
        "lie beside it",
        flush=True,
    )


if __name__ == "__main__":
    main()
