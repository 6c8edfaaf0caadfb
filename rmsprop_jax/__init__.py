"""RMSProp for JAX: exact, and correct in every dtype.

`rmsprop` is the optimizer, `scale_by_rms` its division alone. Then there are, each with
a `help` of its own:

- `decay`: schedules of the decay.
- `dialects`: the RMSProps of other frameworks, under their own argument names.
- `convert`: runs of other frameworks, and of other options, go on here; and back.
- `rounding`: parameters of 16 and 8 bits that move under small updates.
- `storage`: what narrow state is stored in, read and counted.
- `diagnostics`: what a run is doing; a learning-rate finder.
- `sharding`: state that follows sharded parameters; ZeRO.
- `checkpoint`: checkpoints that survive; to be imported by itself.
"""

from . import _interrupt as _interrupt  # isort: split

from optax import ScaleByRmsState as ScaleByRmsState

from . import convert as convert
from . import decay as decay
from . import diagnostics as diagnostics
from . import dialects as dialects
from . import rounding as rounding
from . import sharding as sharding
from . import storage as storage
from ._rmsprop import rmsprop as rmsprop
from ._state import RmsState as RmsState
from ._transform import scale_by_rms as scale_by_rms

__all__ = [
    "RmsState",
    "ScaleByRmsState",
    "convert",
    "decay",
    "diagnostics",
    "dialects",
    "rmsprop",
    "rounding",
    "scale_by_rms",
    "sharding",
    "storage",
]

__version__ = "0.2.0"
