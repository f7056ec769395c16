"""Files, packets, and where they go: each case says what a director with this file does with this packet.

The addresses are those of the lab (lbd.lab.topology.experiment with three servers, two clients and IPv6), so
that a case can also be tried with real packets. core/test_trace.py follows them through the rules.
"""

from trace_cases import passing, where, which

CASES = [*where.CASES, *which.CASES, *passing.CASES]
