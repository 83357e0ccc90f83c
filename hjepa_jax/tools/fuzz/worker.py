"""The worker process of `harness` that makes the attempts of one target.

A target is a module with `make(rng: random.Random, folder: pathlib.Path)`, which makes an odd input
below the empty `folder` and returns `(about, attempt)`: a line that describes it, and a function
without arguments that passes it to the package. `attempt` returns if the result is right, lets the
package's UserError pass, and raises AssertionError if the result is wrong.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import random
import resource
import sys
import traceback
from collections.abc import Callable

from hjepa_jax.errors import UserError

# Memory limit of an attempt, beyond that of the imports, and growth that counts as a defect.
_ADDRESS_SPACE = 6 << 30
_RESIDENT_KIB = 1 << 20


def _outcome(attempt: Callable[[], object]) -> dict[str, str]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        attempt()
        found = {"outcome": "right"}
    except UserError as error:
        if not str(error).strip():
            return {"outcome": "other", "what": f"{type(error).__name__} without a sentence"}
        found = {"outcome": "refused"}
    except BaseException as error:  # Anything else is a defect to report.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{pathlib.Path(place.filename).name}:{place.lineno}"
        text = f"{type(error).__name__}: {str(error)[:300]} ({where})"
        return {"outcome": "other", "what": " ".join(text.split())}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > _RESIDENT_KIB:
        return {"outcome": "other", "what": f"took {grown >> 10} MiB of memory"}
    return found


def _limit_memory() -> None:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    """Answers requests, one line each, until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    # What the package prints must not pass for a reply.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def reply(values: dict[str, str]) -> None:
        replies.write(json.dumps(values) + "\n")

    target = importlib.import_module(sys.argv[1])
    _limit_memory()
    reply({"outcome": "ready"})
    for line in sys.stdin:
        request = json.loads(line)
        rng = random.Random(f"{request['seed']}/{request['number']}")
        about, attempt = target.make(rng, pathlib.Path(request["folder"]))
        reply({"about": " ".join(about.split())})
        reply(_outcome(attempt))


if __name__ == "__main__":
    main()
