"""One of two processes of a run; started by a test with the variables that `accelerate launch` sets."""

import sys
from pathlib import Path

from toys import LinearConfig, setup, small

from outrider.train.run import accelerator, train

if __name__ == "__main__":
    processes = accelerator("cpu")
    assert processes.num_processes == 2
    train(setup(small(), settings=LinearConfig()), Path(sys.argv[1]), processes)
    processes.end_training()
