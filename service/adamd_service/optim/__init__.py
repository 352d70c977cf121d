"""The optimizer's math, pure: settings, scalars, the recurrences, and the kernels that run them. Importing it starts no
compiler.
"""

from adamd_service.optim.encoded import Encoded, Lazy, Raw, encoded
from adamd_service.optim.fused import FusedKernel, warm_up
from adamd_service.optim.gradient import check_gradient
from adamd_service.optim.kernel import Block, Kernel
from adamd_service.optim.narrowing import narrow
from adamd_service.optim.reference import ReferenceKernel
from adamd_service.optim.scalars import (
    NUMERICS_ID,
    Scalars,
    Update,
    check_scalars,
    plan,
    updates_from_json,
    updates_to_json,
)
from adamd_service.optim.settings import (
    Group,
    Hyper,
    Settings,
    SettingsError,
    check_groups,
    merge_settings,
    parse_settings,
    resolve,
    to_json,
)
from adamd_service.optim.state import State, apply, check_state

__all__ = [
    "NUMERICS_ID",
    "Block",
    "Encoded",
    "FusedKernel",
    "Group",
    "Hyper",
    "Kernel",
    "Lazy",
    "Raw",
    "ReferenceKernel",
    "Scalars",
    "Settings",
    "SettingsError",
    "State",
    "Update",
    "apply",
    "check_gradient",
    "check_groups",
    "check_scalars",
    "check_state",
    "encoded",
    "merge_settings",
    "narrow",
    "parse_settings",
    "plan",
    "resolve",
    "to_json",
    "updates_from_json",
    "updates_to_json",
    "warm_up",
]
