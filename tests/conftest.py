"""What holds for all tests."""

from hypothesis import settings

# An example that takes its time on a busy machine is no failure; a test that hangs has a timeout.
settings.register_profile("meshrun", deadline=None)
settings.load_profile("meshrun")
