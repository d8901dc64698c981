"""What needs no server and no Odoo: single modules of the addon, and files that are read. Seconds in all.

Contract: asks for no fixture that starts something (conftest.py sees to that). Imports stack and bench, no other room.
"""
