"""Profiles of hypothesis for this folder: `ci` is short and always draws the same; `long`, which
`make fuzz` runs, draws others each time and keeps what failed in `.hypothesis`.
"""

from hypothesis import HealthCheck, settings

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}

settings.register_profile(
    "ci", settings.get_profile("ci"), max_examples=15, derandomize=True, database=None, **QUIET
)
settings.register_profile(
    "long",
    settings.get_profile("default"),
    max_examples=5000,
    derandomize=False,
    print_blob=True,
    **QUIET,
)
