"""The command ``python -m deeplearning_tutorial.tune``."""

import sys

from deeplearning_tutorial.training.interrupts import treat_sigterm_alike
from deeplearning_tutorial.training.memory import retain_freed_memory
from deeplearning_tutorial.tune.study import main

treat_sigterm_alike()
retain_freed_memory()
sys.exit(main())
