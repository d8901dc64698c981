# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Holes of upstream's own bus that lose notifications, each mended by a module of its own.

``history`` and ``websockets`` are for 16 and later, ``long_polls`` is for the versions before, ``log_db`` for all. What
a version lacks of what a mend needs is not patched: there the bus is as upstream has it.
"""
