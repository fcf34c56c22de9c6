"""The errors of the engine: those of the package."""

from stream_vlm_ros.errors import (
    BudgetExceededError as BudgetExceededError,
)
from stream_vlm_ros.errors import (
    CapTooSmallError as CapTooSmallError,
)
from stream_vlm_ros.errors import (
    DeviceUnavailableError as DeviceUnavailableError,
)
from stream_vlm_ros.errors import (
    EmptyMemoryError as EmptyMemoryError,
)
from stream_vlm_ros.errors import (
    InvalidChoicesError as InvalidChoicesError,
)
from stream_vlm_ros.errors import (
    InvalidImageError as InvalidImageError,
)
from stream_vlm_ros.errors import (
    InvalidParameterError as InvalidParameterError,
)
from stream_vlm_ros.errors import (
    InvalidQuestionError as InvalidQuestionError,
)
from stream_vlm_ros.errors import (
    InvalidTimestampError as InvalidTimestampError,
)
from stream_vlm_ros.errors import (
    ModelLoadError as ModelLoadError,
)
from stream_vlm_ros.errors import (
    OutOfHorizonError as OutOfHorizonError,
)
from stream_vlm_ros.errors import (
    SnapshotEvictedError as SnapshotEvictedError,
)
from stream_vlm_ros.errors import (
    StreamBusyError as StreamBusyError,
)
from stream_vlm_ros.errors import (
    StreamVlmError as StreamVlmError,
)
from stream_vlm_ros.errors import (
    check_model_folder as check_model_folder,
)
from stream_vlm_ros.errors import (
    check_whole_number as check_whole_number,
)
from stream_vlm_ros.errors import (
    in_words as in_words,
)
