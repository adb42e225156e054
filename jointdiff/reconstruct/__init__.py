"""Observations to samples of the sharp sky; ``jointdiff.reconstruct(…)`` is this package, called."""

import sys
from types import ModuleType


class _Package(ModuleType):
    """Importing any module of this package sets jointdiff.reconstruct to it, so the function must be the package."""

    def __call__(self, *args, **kwargs):
        from jointdiff.reconstruct.api import reconstruct

        return reconstruct(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
