"""The C boundary, as cffi makes it from core/core.cdef.txt. Any, because C is where typing ends."""

from typing import Any

ffi: Any
lib: Any
