"""Files, packets, and where they go: each case says what a director with this file does with this packet.

The addresses are those of the lab (lbd.lab.topology.experiment with three servers, two clients and IPv6).
core/test_trace.py follows the packets through the rules, kernel/test_trace.py sends them.
"""

from trace_cases import passing, untracked, where, which

CASES = [*where.CASES, *which.CASES, *passing.CASES, *untracked.CASES]
