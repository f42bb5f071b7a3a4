"""What holds for all tests."""

import pytest
from hypothesis import settings
from support.sampling import WHOLE

# An example that takes its time on a busy machine is no failure; a test that hangs has a timeout.
settings.register_profile("meshrun", deadline=None)
settings.load_profile("meshrun")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is `slow` to `make test-long`."""
    if not WHOLE:
        slow = [item for item in items if item.get_closest_marker("slow") is not None]
        items[:] = [item for item in items if item not in set(slow)]
        config.hook.pytest_deselected(items=slow)
