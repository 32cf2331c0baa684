"""Time a training step of LeNet beside PyTorch's plain eager step, interleaved in one run.

    python benchmarks/lenet_step.py                       # the tutorial's sizes, 2 threads
    python benchmarks/lenet_step.py --batch-size 100 --threads 1

Prints the median of each and the median of the ratios pair by pair. Needs the ``bench`` extra.
"""

import argparse
import os
import statistics
from timeit import default_timer


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--nkerns", type=int, nargs=2, default=(20, 50))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=41, help="timed steps of each")
    return parser.parse_args()


def ours(batch_size, nkerns):
    import numpy as np
    import pytensor
    import pytensor.tensor as pt

    from deeplearning_tutorial import HiddenLayer, LeNetConvPoolLayer, LogisticRegression

    pytensor.config.floatX = "float32"
    rng = np.random.RandomState(23455)
    data = pytensor.shared(
        rng.uniform(size=(4 * batch_size, 784)).astype("float32"), shape=(4 * batch_size, 784)
    )
    labels = pytensor.shared(rng.randint(0, 10, 4 * batch_size).astype("int32"), shape=(4 * batch_size,))
    index, x, y = pt.lscalar(), pt.matrix(), pt.ivector()
    layer0 = LeNetConvPoolLayer(
        rng, x.reshape((batch_size, 1, 28, 28)), (nkerns[0], 1, 5, 5), (batch_size, 1, 28, 28)
    )
    layer1 = LeNetConvPoolLayer(
        rng, layer0.output, (nkerns[1], nkerns[0], 5, 5), (batch_size, nkerns[0], 12, 12)
    )
    layer2 = HiddenLayer(rng, layer1.output.flatten(2), nkerns[1] * 16, 500)
    layer3 = LogisticRegression(layer2.output, 500, 10)
    cost = layer3.negative_log_likelihood(y)
    params = layer3.params + layer2.params + layer1.params + layer0.params
    minibatch = slice(index * batch_size, (index + 1) * batch_size)
    step = pytensor.function(
        [index],
        cost,
        updates=[(p, p - 0.1 * g) for p, g in zip(params, pytensor.grad(cost, params), strict=True)],
        givens={x: data[minibatch], y: labels[minibatch]},
    )
    return lambda i: step(i % 4)


def pytorch(batch_size, nkerns, threads):
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, nkerns[0], 5),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Conv2d(nkerns[0], nkerns[1], 5),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(nkerns[1] * 16, 500),
        nn.Tanh(),
        nn.Linear(500, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.rand(4 * batch_size, 1, 28, 28)
    labels = torch.randint(0, 10, (4 * batch_size,))

    def step(i):
        minibatch = slice(i % 4 * batch_size, (i % 4 + 1) * batch_size)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[minibatch]), labels[minibatch]).backward()
        optimizer.step()

    return step


def main():
    arguments = parse()
    # Read by OpenBLAS, OpenMP and Numba when they are loaded, so set before anything else is imported.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    steps = {
        "deeplearning_tutorial": ours(arguments.batch_size, arguments.nkerns),
        "PyTorch (plain)": pytorch(arguments.batch_size, arguments.nkerns, arguments.threads),
    }
    times = {name: [] for name in steps}
    for run in range(arguments.runs + 5):
        for name, step in steps.items():
            start = default_timer()
            step(run)
            if run >= 5:
                times[name].append(default_timer() - start)
    print(f"LeNet training step, batch {arguments.batch_size}, nkerns {tuple(arguments.nkerns)}, ", end="")
    print(f"{arguments.threads} threads, float32")
    for name, seconds in times.items():
        print(f"{name:24} median {statistics.median(seconds) * 1e3:8.2f} ms")
    mine, theirs = times.values()
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    print(f"{'ratio':24} median {statistics.median(ratios):8.3f}")


if __name__ == "__main__":
    main()
