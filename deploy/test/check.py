"""Runs every check of deploy/ and counts. A check is a function in one of the modules below whose name is its claim.

Promises: a check that could not run is named, never counted as passed; the last line is the count.
"""
import sys
import traceback

import compose_checks
import helm_checks
import image_checks
from shared import NotRun


def main() -> int:
    if "--bless" in sys.argv:
        helm_checks.bless()
    passed, failed, not_run = 0, 0, 0
    for module in (image_checks, compose_checks, helm_checks):
        for name, check in vars(module).items():
            if not name.startswith("check_"):
                continue
            claim = name.removeprefix("check_").replace("_", " ")
            try:
                check()
            except NotRun as reason:
                not_run += 1
                print(f"NOT RUN  {claim}: {reason}")
            except Exception as error:
                failed += 1
                print(f"FAILED   {claim}")
                if not isinstance(error, AssertionError):
                    traceback.print_exc(file=sys.stdout)
                print("         " + str(error).replace("\n", "\n         "))
            else:
                passed += 1
                print(f"ok       {claim}")
    if not_run:
        print(f"{not_run} not run")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
