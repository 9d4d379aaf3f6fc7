"""The example of distributed training, of which rank 1 dies once, in its third step."""

from __future__ import annotations

import os
import signal
import sys


def die_once(step: int) -> None:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if step == 3 and os.environ["RANK"] == "1" and first:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from examples.distributed_train import main  # which needs scikit-learn

    main(sys.argv[1:], die_once)
