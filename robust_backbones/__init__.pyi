from .attacks import fgsm as fgsm
from .attacks import pgd as pgd
from .checkpoint.read import read_weights as read_weights
from .commands.conversion import convert_weights as convert_weights
from .core.errors import UserError as UserError
from .core.input_statistics import InputStatistics as InputStatistics
from .core.resources import get_config_file as get_config_file
from .weights import fetch_weights as fetch_weights
from .zoo import find_model as find_model
from .zoo import list_models as list_models

__version__: str
