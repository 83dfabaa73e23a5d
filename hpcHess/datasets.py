"""Known data sets: `python -m hpcHess.datasets fetch NAME`, `python -m hpcHess.datasets list`."""

import argparse

from hpcHess.networks import datasets
from hpcHess.parallel.agree import on_root
from hpcHess.runtime.session import run_driver


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description="Fetch known data sets into $HPCHESS_DATA, else into the user's cache.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="download a data set and check its checksum")
    fetch.add_argument("name", choices=list(datasets.SOURCES))
    fetch.add_argument("--from", dest="base", metavar="URL", help="a folder, or an address (http, https, file) below which the files lie")
    commands.add_parser("list", help="the data sets, where their files lie, and which are missing")
    return parser


def main(session, args):
    """Exit status 0; raises InputError where a data set cannot be fetched. Collective."""
    if args.command == "fetch":
        on_root(session.comm, datasets.fetch, args.name, args.base, session.say)
        return 0
    for name, source in datasets.SOURCES.items():
        missing = datasets.missing(name)
        state = f"missing: {', '.join(missing)}" if missing else "there"
        session.output(f"{name:<8}{datasets.folder(name)}  {state}" if source.files else f"{name:<8}comes with scikit-learn")
    return 0


if __name__ == "__main__":
    run_driver("datasets", build_parser, main)
