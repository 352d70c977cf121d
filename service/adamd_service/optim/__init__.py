"""The optimizer's math, pure: settings, scalars, the recurrences, and the kernels that run them. Importing it starts no
compiler.
"""

from adamd_service.optim.box_constraints import NONE, bounded, check_bounds, each, projected
from adamd_service.optim.device import Cpu, Device
from adamd_service.optim.evaluation_average import check_average, write_average
from adamd_service.optim.family import FAMILY, Hyper, Optimizer
from adamd_service.optim.gradients.encoded import Encoded, Lazy, Raw, encoded
from adamd_service.optim.gradients.half_precision import narrow
from adamd_service.optim.gradients.norm import gradient_norm
from adamd_service.optim.gradients.scan import check_gradient
from adamd_service.optim.kernels.numba_kernel import WARM, FusedKernel, prepare, warm_up
from adamd_service.optim.kernels.protocol import Block, Kernel
from adamd_service.optim.kernels.reference import ReferenceKernel
from adamd_service.optim.kernels.threaded import SlicedKernel
from adamd_service.optim.monitoring.progress import Progress
from adamd_service.optim.monitoring.progress import from_json as progress_from_json
from adamd_service.optim.monitoring.stalls import remedy, stalls
from adamd_service.optim.monitoring.stalls import told as stall_words
from adamd_service.optim.monitoring.stop_rules import advice
from adamd_service.optim.recurrence.wrapping import ARRAY, BOUNDS, SURROUNDING
from adamd_service.optim.scalars import (
    NUMERICS_ID,
    Scalars,
    Update,
    carried_from_json,
    check_scalars,
    plan,
    updates_from_json,
    updates_to_json,
)
from adamd_service.optim.schedules import SCHEDULES
from adamd_service.optim.settings import (
    GROUPED,
    KINDS,
    WANTED,
    Group,
    Settings,
    check_groups,
    merge_settings,
    parse_settings,
    resolve,
    settings_of,
    to_json,
)
from adamd_service.optim.state import BEST, State, apply, assign, check_state
from adamd_service.optim.step_factors import at_step, lr_at
from adamd_service.optim.validation import SettingsError

__all__ = [
    "ARRAY",
    "BEST",
    "BOUNDS",
    "FAMILY",
    "GROUPED",
    "KINDS",
    "NONE",
    "NUMERICS_ID",
    "SCHEDULES",
    "SURROUNDING",
    "WANTED",
    "WARM",
    "Block",
    "Cpu",
    "Device",
    "Encoded",
    "FusedKernel",
    "Group",
    "Hyper",
    "Kernel",
    "Lazy",
    "Optimizer",
    "Progress",
    "Raw",
    "ReferenceKernel",
    "Scalars",
    "Settings",
    "SettingsError",
    "SlicedKernel",
    "State",
    "Update",
    "advice",
    "apply",
    "assign",
    "at_step",
    "bounded",
    "carried_from_json",
    "check_average",
    "check_bounds",
    "check_gradient",
    "check_groups",
    "check_scalars",
    "check_state",
    "each",
    "encoded",
    "gradient_norm",
    "lr_at",
    "merge_settings",
    "narrow",
    "parse_settings",
    "plan",
    "prepare",
    "progress_from_json",
    "projected",
    "remedy",
    "resolve",
    "settings_of",
    "stall_words",
    "stalls",
    "to_json",
    "updates_from_json",
    "updates_to_json",
    "warm_up",
    "write_average",
]
