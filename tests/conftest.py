"""What holds for every test."""

from hypothesis import HealthCheck, settings

# The same examples on every machine, however slow it is today: what fails, fails for everybody.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
