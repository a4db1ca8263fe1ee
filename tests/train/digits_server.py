"""Start trainings of `digits_run.py` as processes of their own, with the slow imports paid once.

Each line of input is a JSON list of arguments of `train`. Answers with the number of the process that trains,
and, when that has ended, with its exit code on the next line. The number stays taken until the next request.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401 - the first optimizer of a process would import it


def serve() -> None:
    train = runpy.run_path(str(Path(__file__).with_name("digits_run.py")))["train"]
    child = 0
    for line in sys.stdin:
        if child:
            os.waitpid(child, 0)
        child = os.fork()
        if child == 0:
            try:
                train(*json.loads(line))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        answer(child)
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        answer(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
