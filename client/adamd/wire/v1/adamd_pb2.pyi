import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT64: _ClassVar[Dtype]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_RAW: _ClassVar[Encoding]
    ENCODING_INT8: _ClassVar[Encoding]
    ENCODING_SPARSE: _ClassVar[Encoding]
    ENCODING_SPARSE_LAZY: _ClassVar[Encoding]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_COMMITTED: _ClassVar[Durability]
    DURABILITY_MEMORY: _ClassVar[Durability]

class ContributionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTRIBUTION_KIND_UNSPECIFIED: _ClassVar[ContributionKind]
    CONTRIBUTION_KIND_DELTA: _ClassVar[ContributionKind]
    CONTRIBUTION_KIND_PARAMETERS: _ClassVar[ContributionKind]
    CONTRIBUTION_KIND_GRADIENT: _ClassVar[ContributionKind]

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_TRAIN: _ClassVar[TaskKind]
    TASK_KIND_EVALUATE: _ClassVar[TaskKind]
    TASK_KIND_STOP: _ClassVar[TaskKind]

class RoundState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_STATE_UNSPECIFIED: _ClassVar[RoundState]
    ROUND_STATE_OPEN: _ClassVar[RoundState]
    ROUND_STATE_OVERDUE: _ClassVar[RoundState]
    ROUND_STATE_CLOSED: _ClassVar[RoundState]

class ClosedBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSED_BY_UNSPECIFIED: _ClassVar[ClosedBy]
    CLOSED_BY_QUORUM: _ClassVar[ClosedBy]
    CLOSED_BY_DEADLINE: _ClassVar[ClosedBy]
    CLOSED_BY_HAND: _ClassVar[ClosedBy]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT64: Dtype
ENCODING_UNSPECIFIED: Encoding
ENCODING_RAW: Encoding
ENCODING_INT8: Encoding
ENCODING_SPARSE: Encoding
ENCODING_SPARSE_LAZY: Encoding
DURABILITY_UNSPECIFIED: Durability
DURABILITY_COMMITTED: Durability
DURABILITY_MEMORY: Durability
CONTRIBUTION_KIND_UNSPECIFIED: ContributionKind
CONTRIBUTION_KIND_DELTA: ContributionKind
CONTRIBUTION_KIND_PARAMETERS: ContributionKind
CONTRIBUTION_KIND_GRADIENT: ContributionKind
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_TRAIN: TaskKind
TASK_KIND_EVALUATE: TaskKind
TASK_KIND_STOP: TaskKind
ROUND_STATE_UNSPECIFIED: RoundState
ROUND_STATE_OPEN: RoundState
ROUND_STATE_OVERDUE: RoundState
ROUND_STATE_CLOSED: RoundState
CLOSED_BY_UNSPECIFIED: ClosedBy
CLOSED_BY_QUORUM: ClosedBy
CLOSED_BY_DEADLINE: ClosedBy
CLOSED_BY_HAND: ClosedBy

class Tensor(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("tensors", "vector")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    vector: bool
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., vector: bool = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "name", "step", "chain", "incarnation", "optimizer", "settings_revision", "layout", "dtype", "durability", "labels", "created_at", "parameters_missing", "diverged", "snapshot_step", "elements", "lr", "stop", "warnings", "progress", "damaged", "rounds", "round")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_REVISION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_MISSING_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_STEP_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    step: int
    chain: str
    incarnation: str
    optimizer: _struct_pb2.Struct
    settings_revision: int
    layout: Layout
    dtype: Dtype
    durability: Durability
    labels: _containers.ScalarMap[str, str]
    created_at: _timestamp_pb2.Timestamp
    parameters_missing: bool
    diverged: bool
    snapshot_step: int
    elements: int
    lr: float
    stop: str
    warnings: _containers.RepeatedCompositeFieldContainer[Stall]
    progress: _struct_pb2.Struct
    damaged: str
    rounds: _struct_pb2.Struct
    round: RoundStanding
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., step: _Optional[int] = ..., chain: _Optional[str] = ..., incarnation: _Optional[str] = ..., optimizer: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., settings_revision: _Optional[int] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., durability: _Optional[_Union[Durability, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parameters_missing: bool = ..., diverged: bool = ..., snapshot_step: _Optional[int] = ..., elements: _Optional[int] = ..., lr: _Optional[float] = ..., stop: _Optional[str] = ..., warnings: _Optional[_Iterable[_Union[Stall, _Mapping]]] = ..., progress: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., damaged: _Optional[str] = ..., rounds: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., round: _Optional[_Union[RoundStanding, _Mapping]] = ...) -> None: ...

class RoundStanding(_message.Message):
    __slots__ = ("round", "received", "wanted")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    round: int
    received: int
    wanted: int
    def __init__(self, round: _Optional[int] = ..., received: _Optional[int] = ..., wanted: _Optional[int] = ...) -> None: ...

class Stall(_message.Message):
    __slots__ = ("code", "detail", "eps")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    eps: float
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., eps: _Optional[float] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("name", "optimizer", "layout", "dtype", "durability", "labels", "idempotency_key", "parameters", "parameters_dtype", "rounds")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    optimizer: _struct_pb2.Struct
    layout: Layout
    dtype: Dtype
    durability: Durability
    labels: _containers.ScalarMap[str, str]
    idempotency_key: str
    parameters: bytes
    parameters_dtype: Dtype
    rounds: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., optimizer: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., durability: _Optional[_Union[Durability, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., idempotency_key: _Optional[str] = ..., parameters: _Optional[bytes] = ..., parameters_dtype: _Optional[_Union[Dtype, str]] = ..., rounds: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("session", "replayed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    replayed: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., replayed: bool = ...) -> None: ...

class RestoreSessionRequest(_message.Message):
    __slots__ = ("idempotency_key", "nbytes", "offset", "data")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    nbytes: int
    offset: int
    data: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., nbytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RestoreSessionResponse(_message.Message):
    __slots__ = ("session", "replayed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    replayed: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., replayed: bool = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateSessionRequest(_message.Message):
    __slots__ = ("session", "optimizer", "labels", "rounds")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    session: str
    optimizer: _struct_pb2.Struct
    labels: Labels
    rounds: _struct_pb2.Struct
    def __init__(self, session: _Optional[str] = ..., optimizer: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., labels: _Optional[_Union[Labels, _Mapping]] = ..., rounds: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Labels(_message.Message):
    __slots__ = ("labels",)
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class UpdateSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session", "if_match")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IF_MATCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    if_match: str
    def __init__(self, session: _Optional[str] = ..., if_match: _Optional[str] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Base(_message.Message):
    __slots__ = ("step", "chain", "most")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    step: int
    chain: str
    most: int
    def __init__(self, step: _Optional[int] = ..., chain: _Optional[str] = ..., most: _Optional[int] = ...) -> None: ...

class StepHeader(_message.Message):
    __slots__ = ("session", "step", "if_match", "idempotency_key", "nbytes", "dtype", "encoding", "tensors", "settings", "metrics", "minimal", "answer_dtype", "base")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IF_MATCH_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MINIMAL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_DTYPE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    session: str
    step: int
    if_match: str
    idempotency_key: str
    nbytes: int
    dtype: Dtype
    encoding: Encoding
    tensors: _containers.RepeatedScalarFieldContainer[str]
    settings: _struct_pb2.Struct
    metrics: _containers.ScalarMap[str, float]
    minimal: bool
    answer_dtype: Dtype
    base: Base
    def __init__(self, session: _Optional[str] = ..., step: _Optional[int] = ..., if_match: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., nbytes: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., tensors: _Optional[_Iterable[str]] = ..., settings: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., minimal: bool = ..., answer_dtype: _Optional[_Union[Dtype, str]] = ..., base: _Optional[_Union[Base, _Mapping]] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("step", "chain", "durability", "dtype", "nbytes", "replayed", "diverged", "applied_step", "overflowed", "stop", "warnings")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_STEP_FIELD_NUMBER: _ClassVar[int]
    OVERFLOWED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    step: int
    chain: str
    durability: Durability
    dtype: Dtype
    nbytes: int
    replayed: bool
    diverged: bool
    applied_step: int
    overflowed: int
    stop: str
    warnings: _containers.RepeatedCompositeFieldContainer[Stall]
    def __init__(self, step: _Optional[int] = ..., chain: _Optional[str] = ..., durability: _Optional[_Union[Durability, str]] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., nbytes: _Optional[int] = ..., replayed: bool = ..., diverged: bool = ..., applied_step: _Optional[int] = ..., overflowed: _Optional[int] = ..., stop: _Optional[str] = ..., warnings: _Optional[_Iterable[_Union[Stall, _Mapping]]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("header", "gradient")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    header: StepHeader
    gradient: bytes
    def __init__(self, header: _Optional[_Union[StepHeader, _Mapping]] = ..., gradient: _Optional[bytes] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("standing", "parameters")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    parameters: bytes
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., parameters: _Optional[bytes] = ...) -> None: ...

class StepStreamRequest(_message.Message):
    __slots__ = ("header", "offset", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: StepHeader
    offset: int
    data: bytes
    def __init__(self, header: _Optional[_Union[StepHeader, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StepStreamResponse(_message.Message):
    __slots__ = ("standing", "offset", "data")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    offset: int
    data: bytes
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetParametersRequest(_message.Message):
    __slots__ = ("session", "dtype", "at", "min_step", "wait_s")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MIN_STEP_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    session: str
    dtype: Dtype
    at: str
    min_step: int
    wait_s: float
    def __init__(self, session: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., at: _Optional[str] = ..., min_step: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class GetParametersResponse(_message.Message):
    __slots__ = ("standing", "offset", "data")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    offset: int
    data: bytes
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SetParametersRequest(_message.Message):
    __slots__ = ("session", "dtype", "offset", "data")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    session: str
    dtype: Dtype
    offset: int
    data: bytes
    def __init__(self, session: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SetParametersResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ExportStateRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class ExportStateResponse(_message.Message):
    __slots__ = ("standing", "offset", "data")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    offset: int
    data: bytes
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WatchSessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class WatchSessionResponse(_message.Message):
    __slots__ = ("standing", "optimizer", "metrics", "lr", "round")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STANDING_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    optimizer: _struct_pb2.Struct
    metrics: _containers.ScalarMap[str, float]
    lr: float
    round: RoundStanding
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., optimizer: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., lr: _Optional[float] = ..., round: _Optional[_Union[RoundStanding, _Mapping]] = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("session", "client", "wait_s")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    session: str
    client: str
    wait_s: float
    def __init__(self, session: _Optional[str] = ..., client: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class GetTaskResponse(_message.Message):
    __slots__ = ("kind", "round", "base_step", "chain", "selected", "contributed", "config", "deadline", "received", "wanted", "private_tensors")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_STEP_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    SELECTED_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_TENSORS_FIELD_NUMBER: _ClassVar[int]
    kind: TaskKind
    round: int
    base_step: int
    chain: str
    selected: bool
    contributed: bool
    config: _struct_pb2.Struct
    deadline: _timestamp_pb2.Timestamp
    received: int
    wanted: int
    private_tensors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[_Union[TaskKind, str]] = ..., round: _Optional[int] = ..., base_step: _Optional[int] = ..., chain: _Optional[str] = ..., selected: bool = ..., contributed: bool = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., received: _Optional[int] = ..., wanted: _Optional[int] = ..., private_tensors: _Optional[_Iterable[str]] = ...) -> None: ...

class ContributeHeader(_message.Message):
    __slots__ = ("session", "round", "client", "if_match", "nbytes", "dtype", "encoding", "tensors", "kind", "num_examples", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    IF_MATCH_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    client: str
    if_match: str
    nbytes: int
    dtype: Dtype
    encoding: Encoding
    tensors: _containers.RepeatedScalarFieldContainer[str]
    kind: ContributionKind
    num_examples: float
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ..., if_match: _Optional[str] = ..., nbytes: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., tensors: _Optional[_Iterable[str]] = ..., kind: _Optional[_Union[ContributionKind, str]] = ..., num_examples: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ContributeRequest(_message.Message):
    __slots__ = ("header", "offset", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ContributeHeader
    offset: int
    data: bytes
    def __init__(self, header: _Optional[_Union[ContributeHeader, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ContributeResponse(_message.Message):
    __slots__ = ("duplicate", "round", "received", "wanted", "step")
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    round: int
    received: int
    wanted: int
    step: int
    def __init__(self, duplicate: bool = ..., round: _Optional[int] = ..., received: _Optional[int] = ..., wanted: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("session", "round", "client", "num_examples", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    client: str
    num_examples: float
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ..., num_examples: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("duplicate", "round", "step")
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    round: int
    step: int
    def __init__(self, duplicate: bool = ..., round: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("client", "num_examples", "weight", "norm", "clipped", "staleness", "counted", "reason", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    client: str
    num_examples: float
    weight: float
    norm: float
    clipped: bool
    staleness: int
    counted: bool
    reason: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, client: _Optional[str] = ..., num_examples: _Optional[float] = ..., weight: _Optional[float] = ..., norm: _Optional[float] = ..., clipped: bool = ..., staleness: _Optional[int] = ..., counted: bool = ..., reason: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("num_examples", "metrics", "clients")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    num_examples: float
    metrics: _containers.ScalarMap[str, float]
    clients: int
    def __init__(self, num_examples: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., clients: _Optional[int] = ...) -> None: ...

class LeftOut(_message.Message):
    __slots__ = ("contributions", "metrics", "names")
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    contributions: int
    metrics: int
    names: int
    def __init__(self, contributions: _Optional[int] = ..., metrics: _Optional[int] = ..., names: _Optional[int] = ...) -> None: ...

class RoundFailure(_message.Message):
    __slots__ = ("code", "detail")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("round", "state", "base_step", "opened_at", "closed_at", "closed_by", "received", "wanted", "config", "metrics", "evaluation", "contributions", "epsilon", "step", "deadline", "left_out", "failure")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_STEP_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_BY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    round: int
    state: RoundState
    base_step: int
    opened_at: _timestamp_pb2.Timestamp
    closed_at: _timestamp_pb2.Timestamp
    closed_by: ClosedBy
    received: int
    wanted: int
    config: _struct_pb2.Struct
    metrics: _containers.ScalarMap[str, float]
    evaluation: Evaluation
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    epsilon: float
    step: int
    deadline: _timestamp_pb2.Timestamp
    left_out: LeftOut
    failure: RoundFailure
    def __init__(self, round: _Optional[int] = ..., state: _Optional[_Union[RoundState, str]] = ..., base_step: _Optional[int] = ..., opened_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., closed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., closed_by: _Optional[_Union[ClosedBy, str]] = ..., received: _Optional[int] = ..., wanted: _Optional[int] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., epsilon: _Optional[float] = ..., step: _Optional[int] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., left_out: _Optional[_Union[LeftOut, _Mapping]] = ..., failure: _Optional[_Union[RoundFailure, _Mapping]] = ...) -> None: ...

class GetRoundRequest(_message.Message):
    __slots__ = ("session", "round")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class GetRoundResponse(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: Round
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("session", "from_round", "page_size", "page_token")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    session: str
    from_round: int
    page_size: int
    page_token: str
    def __init__(self, session: _Optional[str] = ..., from_round: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds", "next_page_token")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    next_page_token: str
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CloseRoundRequest(_message.Message):
    __slots__ = ("session", "round")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class CloseRoundResponse(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: Round
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class CancelRoundRequest(_message.Message):
    __slots__ = ("session", "round")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    session: str
    round: int
    def __init__(self, session: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class CancelRoundResponse(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: Round
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "replica", "numerics", "store", "max_message_bytes", "max_body_bytes", "max_in_flight_bytes", "max_concurrent_calls", "dtypes", "optimizers", "encodings", "settings", "device")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_CALLS_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZERS_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    version: str
    replica: str
    numerics: str
    store: str
    max_message_bytes: int
    max_body_bytes: int
    max_in_flight_bytes: int
    max_concurrent_calls: int
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    optimizers: _containers.RepeatedScalarFieldContainer[str]
    encodings: _containers.RepeatedScalarFieldContainer[str]
    settings: _struct_pb2.Struct
    device: str
    def __init__(self, version: _Optional[str] = ..., replica: _Optional[str] = ..., numerics: _Optional[str] = ..., store: _Optional[str] = ..., max_message_bytes: _Optional[int] = ..., max_body_bytes: _Optional[int] = ..., max_in_flight_bytes: _Optional[int] = ..., max_concurrent_calls: _Optional[int] = ..., dtypes: _Optional[_Iterable[str]] = ..., optimizers: _Optional[_Iterable[str]] = ..., encodings: _Optional[_Iterable[str]] = ..., settings: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., device: _Optional[str] = ...) -> None: ...
