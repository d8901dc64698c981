"""Servers of this stack: each a class that starts one program in a folder of its own, on a free port, and ends it.

Contract: `start` returns when the server answers, `stop` when nothing of it runs on. Configurations are those that this
repository ships or documents. Imports stack.download, stack.faults.network and what stands in stack/ itself; a server
may name another one. Imported by stack/__init__, clients, bench and tests.
"""
