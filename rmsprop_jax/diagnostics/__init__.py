"""What an RMSProp run is doing: effective step sizes, ε, noise, ends of a dtype.

`values` computes them, `watch` keeps the last ones in the optimizer's state, `to_log`,
`table` and `picture` are for loggers and people, `sweep_rates` finds a learning rate.
"""

from ._finder import Sweep as Sweep
from ._finder import best_rate as best_rate
from ._finder import sweep_rates as sweep_rates
from ._pictures import picture as picture
from ._pictures import rate_picture as rate_picture
from ._show import table as table
from ._show import to_log as to_log
from ._trees import names as names
from ._values import QUANTILES as QUANTILES
from ._values import Diagnostics as Diagnostics
from ._values import Values as Values
from ._values import values as values
from ._watch import ALSO as ALSO
from ._watch import WatchState as WatchState
from ._watch import watch as watch

__all__ = [
    "ALSO",
    "QUANTILES",
    "Diagnostics",
    "Sweep",
    "Values",
    "WatchState",
    "best_rate",
    "names",
    "picture",
    "rate_picture",
    "sweep_rates",
    "table",
    "to_log",
    "values",
    "watch",
]
