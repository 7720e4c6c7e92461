"""How long hypothesis looks. UBLKD_EXAMPLES says how many examples each property is tried with."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A decorator and no profile: a profile would be every other suite's, too. No database: the tree
# may be read-only. Fixtures live as long as the property: its tests clean up behind themselves.
searching = settings(
    max_examples=int(os.environ.get("UBLKD_EXAMPLES", "120")),
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
