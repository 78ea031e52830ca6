"""How long the fuzzing suite looks: `FUZZ_PROFILE=long` for an hour, a short look else."""

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=10, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "ci"))
