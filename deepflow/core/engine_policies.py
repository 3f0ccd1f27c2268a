"""Who goes first in an engine, and how much of a step prefills take: the choices, the usual first.

The engine's own table of the same names is `flowserve/scheduler/policies/`.
"""

POLICIES = ("priority", "fcfs", "slo")
SLO = "slo"
TARGET_MS_MAX = 3_600_000  # of the times that slo aims at
