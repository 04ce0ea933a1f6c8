from .generate import SyntheticConfig as SyntheticConfig
from .generate import make_cohort as make_cohort
from .generate import make_scan as make_scan
from .phantom import LABEL_SPACE as LABEL_SPACE
