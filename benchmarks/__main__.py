"""Run every benchmark, or the ones named: ``python -m benchmarks``, ``python -m benchmarks vae --quick``."""

import argparse
import importlib
import pkgutil

import benchmarks

_LONG = {"posteriors"}  # an hour or more: quick unless it is named
_NOT_BENCHMARKS = {"__main__", "everywhere", "harness", "reference", "rows", "tables"}


def available() -> list[str]:
    """Names of the benchmarks: every module of this package that is not the machinery."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _NOT_BENCHMARKS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run, of: {', '.join(available())} (default all)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer sizes and compilations, still 100 timed calls each; prints only",
    )
    parser.add_argument(
        "--genjax-python",
        metavar="PATH",
        help="for chains: the interpreter of an environment with genjax 0.10.3",
    )
    parser.add_argument(
        "--particles-python",
        metavar="PATH",
        help="for smc: the interpreter of an environment with particles 0.4",
    )
    parser.add_argument(
        "--dppy-python", metavar="PATH", help="for dpp: the interpreter of an environment with dppy 0.3.3"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(available()))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(available())}")
    for name in options.names or available():
        peers = {
            "chains": {"genjax_python": options.genjax_python},
            "dpp": {"dppy_python": options.dppy_python},
            "smc": {"particles_python": options.particles_python},
        }
        quick = options.quick or (not options.names and name in _LONG)
        importlib.import_module(f"benchmarks.{name}").main(quick=quick, **peers.get(name, {}))


if __name__ == "__main__":
    main()
