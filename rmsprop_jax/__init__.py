"""RMSProp for JAX: exact, correct in every dtype, light on memory."""

from . import decay as decay
from ._rmsprop import rmsprop as rmsprop
from ._transform import ScaleByRmsState as ScaleByRmsState
from ._transform import scale_by_rms as scale_by_rms

__version__ = "0.1.0"
