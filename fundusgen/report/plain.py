"""Results as plain values for JSON: data classes become objects, estimates value and interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from fundusgen.evaluation.resampling import Estimate


def plain(value: object) -> Any:
    """Turn a result into what JSON can hold.

    Args:
        value: Nested data classes, mappings, sequences, arrays and numbers. Replicates of an
            `Estimate` are left out; its interval stays. What is not a finite number becomes null.

    Raises:
        TypeError: There is something else in it.
    """
    if isinstance(value, Estimate):
        low, high = value.interval
        return {"value": plain(value.value), "low": plain(low), "high": plain(high)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Sequence | frozenset) and not isinstance(value, bytes | bytearray):
        return [plain(content) for content in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON")
