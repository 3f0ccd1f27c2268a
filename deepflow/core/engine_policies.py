"""Who goes first in an engine, and how much of a step prefills take: the choices, the usual first.

The engine's own table of the same names is `flowserve/scheduler/policies/`.
"""

POLICIES = ("priority", "fcfs", "slo")
SLO = "slo"
