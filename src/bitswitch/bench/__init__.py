"""Measuring on the user's machine: times taken in turn, memory, and what the machine is."""

from bitswitch.bench.machine import Machine, machine, read_bandwidth
from bitswitch.bench.output import add_options, write_json
from bitswitch.bench.timing import Timing, interleave

__all__ = ["Machine", "Timing", "add_options", "interleave", "machine", "read_bandwidth", "write_json"]
