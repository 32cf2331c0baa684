"""Recognise digits in your own pictures with a model that a script saved, or test it on MNIST.

    python -m deeplearning_tutorial.predict lenet.npz seven.png photo.jpg
    python -m deeplearning_tutorial.predict lenet.npz --show seven.png      # and what the model is shown
    python -m deeplearning_tutorial.predict lenet.npz                       # its error on the test set

A picture holds one digit, of any size, dark on light or light on dark; an answer of less than 90 % is marked
as unsure. The model is a file that a script wrote with ``--save`` or ``--checkpoint``.
"""

import sys

# What the command does lies elsewhere: once imported, a module of this name hides the package's ``predict``,
# the tutorial's function. Nothing has to import this one.
from deeplearning_tutorial.classify.classification import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
