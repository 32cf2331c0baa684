"""The command ``python -m deeplearning_tutorial.report``."""

import sys

from deeplearning_tutorial.report.training_report import main

sys.exit(main())
