"""Faults: what breaks a network, a session, a commit or the way to a server, and mends it again.

Contract: a fault is a call that returns when the fault is there, and has one that ends it. Nothing of this machine but
the stack's own servers notices. Imports stack.base and stack.process only: a server is given, never imported. Imported
by servers, bench and tests.
"""
