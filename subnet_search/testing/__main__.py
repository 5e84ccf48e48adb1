"""`python -m subnet_search.testing NAME`: a line for each check of an extractor, and a verdict."""

import argparse
import logging
import sys

from subnet_search.core.errors import UserError
from subnet_search.testing import results


def main(arguments: list[str] | None = None) -> int:
    """Run the checks. Returns the exit code: 0 if all pass, 1 if one fails, 2 for a name that is not an extractor."""
    parser = argparse.ArgumentParser(
        prog="python -m subnet_search.testing",
        description="Check that an extractor keeps to what the training loop and the files rely on: some seconds of short "
        "runs on small networks. Exit code 1 when a check fails, 2 for a name that is not an extractor.",
    )
    parser.add_argument(
        "name", help="package.module:Class, in the current folder or on PYTHONPATH; or a name of `subnet-search methods`"
    )
    name = parser.parse_args(arguments).name
    failed = checks = 0
    try:
        for sound, wrong in results(name):
            checks += 1
            failed += bool(wrong)
            print(f"FAILED  {sound}: {wrong}" if wrong else f"ok      {sound}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{name} fails {failed} of {checks} checks" if failed else f"{name} passes all {checks} checks")
    return bool(failed)


if __name__ == "__main__":
    logging.getLogger("subnet_search").setLevel(logging.ERROR)  # warnings of short runs are not faults of the method
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
